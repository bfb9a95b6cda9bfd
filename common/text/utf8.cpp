// UTF-8 by table 3-7 of the Unicode standard: the second byte's range depends on the first, the
// others are 80..BF.
#include "common/text/utf8.h"

#include <cstdint>

namespace updraft {
namespace {

// What the first byte promises: total bytes (0: cannot begin a character) and the range of the
// second byte.
struct Lead {
  uint8_t bytes;
  uint8_t second_min;
  uint8_t second_max;
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// Bytes at `at` that agree with the beginning of one character; equal to lead.bytes when it is
// whole.
size_t agreeing_bytes(std::string_view text, size_t at, const Lead& lead) {
  if (lead.bytes == 0) return 0;
  size_t count = 1;
  while (count < lead.bytes && at + count < text.size()) {
    const uint8_t byte = static_cast<uint8_t>(text[at + count]);
    const uint8_t min = count == 1 ? lead.second_min : 0x80;
    const uint8_t max = count == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) break;
    ++count;
  }
  return count;
}

}  // namespace

size_t utf8_character_bytes(std::string_view text, size_t at) {
  const Lead lead = lead_of(static_cast<uint8_t>(text[at]));
  return agreeing_bytes(text, at, lead) == lead.bytes ? lead.bytes : 0;
}

size_t utf8_incomplete_tail_bytes(std::string_view text) {
  const size_t most = text.size() < 3 ? text.size() : 3;
  for (size_t tail = 1; tail <= most; ++tail) {
    const size_t at = text.size() - tail;
    const Lead lead = lead_of(static_cast<uint8_t>(text[at]));
    if (lead.bytes > tail && agreeing_bytes(text, at, lead) == tail) return tail;
  }
  return 0;
}

void append_utf8_repaired(std::string_view text, std::string& out) {
  size_t at = 0;
  while (at < text.size()) {
    const Lead lead = lead_of(static_cast<uint8_t>(text[at]));
    const size_t count = agreeing_bytes(text, at, lead);
    if (count > 0 && count == lead.bytes) {
      out.append(text.substr(at, count));
      at += count;
    } else {
      out.append("\xEF\xBF\xBD");
      at += count > 0 ? count : 1;
    }
  }
}

}  // namespace updraft
