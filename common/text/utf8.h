// UTF-8 in three questions: how long is the character here, where does well-formed text end, and
// what does broken text look like to a reader. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace updraft {

// Bytes of the well-formed character that begins at text[at] (1..4), or 0 when none does (a stray
// continuation byte, an overlong form, a surrogate, above U+10FFFF, or cut off by the end of the
// text). at < text.size().
size_t utf8_character_bytes(std::string_view text, size_t at);

// Bytes at the end of `text` that begin a character whose remaining bytes could still follow
// (0..3).
size_t utf8_incomplete_tail_bytes(std::string_view text);

// Appends text; each maximal ill-formed part becomes one U+FFFD, as the Unicode standard recommends
// (section 3.9).
void append_utf8_repaired(std::string_view text, std::string& out);

}  // namespace updraft
