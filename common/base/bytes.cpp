// UTF-8 and hex, byte by byte; see the header for the contracts.
#include "common/base/bytes.h"

namespace updraft {
namespace {

struct Utf8Step {
  size_t bytes;  // length of the well-formed character, 0 when malformed
  bool cut_off;  // the text ends inside a character that more bytes could complete
};

// One character at `at`, by the table of well-formed byte sequences in Unicode 15, section 3.9.
Utf8Step utf8_step(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {1, false};
  size_t length = 0;
  unsigned char second_min = 0x80;
  unsigned char second_max = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) second_min = 0xA0;
    if (lead == 0xED) second_max = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) second_min = 0x90;
    if (lead == 0xF4) second_max = 0x8F;
  } else {
    return {0, false};
  }
  for (size_t i = 1; i < length; ++i) {
    if (at + i >= text.size()) return {0, true};
    const unsigned char low = i == 1 ? second_min : 0x80;
    const unsigned char high = i == 1 ? second_max : 0xBF;
    if (byte(i) < low || byte(i) > high) return {0, false};
  }
  return {length, false};
}

}  // namespace

size_t utf8_valid_prefix_bytes(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text, at);
    if (step.bytes == 0) return at;
    at += step.bytes;
  }
  return at;
}

size_t utf8_complete_prefix_bytes(std::string_view text) {
  const size_t tail_max = text.size() < 3 ? text.size() : 3;
  for (size_t back = 1; back <= tail_max; ++back) {
    const size_t at = text.size() - back;
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte >= 0xC2) return utf8_step(text, at).cut_off ? at : text.size();
    if (byte < 0x80) break;
  }
  return text.size();
}

std::string utf8_sanitized(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text, at);
    if (step.bytes > 0) {
      out.append(text.substr(at, step.bytes));
      at += step.bytes;
    } else {
      out.append("\xEF\xBF\xBD");
      ++at;
      while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
    }
  }
  return out;
}

void append_utf8(std::string& out, char32_t c) {
  UPDRAFT_CHECK(c <= 0x10FFFF && !(c >= 0xD800 && c <= 0xDFFF), "not a Unicode scalar value");
  const auto push = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    push(c);
  } else if (c < 0x800) {
    push(0xC0 | (c >> 6));
    push(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    push(0xE0 | (c >> 12));
    push(0x80 | ((c >> 6) & 0x3F));
    push(0x80 | (c & 0x3F));
  } else {
    push(0xF0 | (c >> 18));
    push(0x80 | ((c >> 12) & 0x3F));
    push(0x80 | ((c >> 6) & 0x3F));
    push(0x80 | (c & 0x3F));
  }
}

std::string to_hex(ByteView bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const std::byte b : bytes) {
    out.push_back(kDigits[static_cast<unsigned>(b) >> 4]);
    out.push_back(kDigits[static_cast<unsigned>(b) & 15]);
  }
  return out;
}

std::string printable(std::string_view text, size_t bytes_max) {
  std::string out;
  size_t at = 0;
  while (at < text.size()) {
    if (at >= bytes_max) {
      out += "...";
      break;
    }
    const Utf8Step step = utf8_step(text, at);
    const auto byte = static_cast<unsigned char>(text[at]);
    if (step.bytes == 0 || byte < 0x20 || byte == 0x7F) {
      static constexpr char kDigits[] = "0123456789abcdef";
      out += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
      ++at;
    } else {
      out.append(text.substr(at, step.bytes));
      at += step.bytes;
    }
  }
  return out;
}

}  // namespace updraft
