// Python's idea of blanks, for templates that strip their messages.
#include "common/text/prompt_builder.h"

#include <algorithm>

#include "common/text/utf8.h"

namespace updraft {
namespace {

// Bytes of the blank at text[at], or 0: Unicode White_Space and U+001C..U+001F, which str.isspace
// also counts.
size_t blank_bytes(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
  const size_t bytes = utf8_character_bytes(text, at);
  if (bytes == 1)
    return byte(0) == ' ' || (byte(0) >= 0x09 && byte(0) <= 0x0D) ||
           (byte(0) >= 0x1C && byte(0) <= 0x1F);
  if (bytes == 2) return byte(0) == 0xC2 && (byte(1) == 0x85 || byte(1) == 0xA0) ? 2 : 0;
  if (bytes != 3) return 0;
  const uint32_t c = (byte(0) & 0x0FU) << 12 | (byte(1) & 0x3FU) << 6 | (byte(2) & 0x3FU);
  const bool blank = c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
                     c == 0x202F || c == 0x205F || c == 0x3000;
  return blank ? 3 : 0;
}

}  // namespace

std::string_view strip_blanks_back(std::string_view text) {
  while (!text.empty()) {
    size_t blank = 0;
    for (size_t bytes = 1; bytes <= 3 && bytes <= text.size() && blank == 0; ++bytes) {
      if (blank_bytes(text, text.size() - bytes) == bytes) blank = bytes;
    }
    if (blank == 0) break;
    text.remove_suffix(blank);
  }
  return text;
}

std::string_view strip_blanks(std::string_view text) {
  while (!text.empty()) {
    const size_t blank = blank_bytes(text, 0);
    if (blank == 0) break;
    text.remove_prefix(blank);
  }
  return strip_blanks_back(text);
}

std::string_view strip_newlines_front(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  return text;
}

std::string_view strip_newlines_back(std::string_view text) {
  return text.substr(0, text.find_last_not_of('\n') + 1);
}

std::string_view strip_newlines(std::string_view text) {
  return strip_newlines_back(strip_newlines_front(text));
}

Error unknown_role(const char* family, size_t index, std::string_view role, const char* known) {
  std::string shown;
  append_utf8_repaired(role.substr(0, 40), shown);
  return fail("chat template " + std::string(family) + ": messages[" + std::to_string(index) +
              "] has role '" + shown + "', which the family does not know (it knows " + known +
              ")");
}

}  // namespace updraft
