// UTF-8 helpers against the Unicode standard's own tables (3-7 to 3-11).
#include "common/text/utf8.h"

#include <doctest/doctest.h>

using namespace updraft;

namespace {
std::string repaired(std::string_view text) {
  std::string out;
  append_utf8_repaired(text, out);
  return out;
}
const std::string kR = "\xEF\xBF\xBD";
}  // namespace

TEST_CASE("the length of a well-formed character, 0 for what is none") {
  CHECK(utf8_character_bytes(std::string_view("\0", 1), 0) == 1);
  CHECK(utf8_character_bytes("\xC2\x80", 0) == 2);
  CHECK(utf8_character_bytes("\xE0\xA0\x80", 0) == 3);
  CHECK(utf8_character_bytes("\xED\x9F\xBF", 0) == 3);
  CHECK(utf8_character_bytes("\xF0\x90\x80\x80", 0) == 4);
  CHECK(utf8_character_bytes("\xF4\x8F\xBF\xBF", 0) == 4);
  for (const char* bad : {"\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE4\xBD", "\xFF", "\xC2"}) {
    CHECK(utf8_character_bytes(bad, 0) == 0);
  }
}

TEST_CASE("the standard's example of repaired text") {
  // Tables 3-8 to 3-11: one replacement per maximal subpart.
  CHECK(repaired("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41") ==
        kR + kR + kR + kR + kR + kR + kR + kR + "A");
  CHECK(repaired("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41") ==
        kR + kR + kR + kR + kR + kR + kR + kR + "A");
  CHECK(repaired("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42") ==
        kR + kR + kR + kR + kR + "A" + kR + kR + "B");
  CHECK(repaired("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41") == kR + kR + kR + kR + "A");
  CHECK(repaired("plain \xF0\x9F\x9A\x80") == "plain \xF0\x9F\x9A\x80");
}

TEST_CASE("an incomplete tail is only what could still become a character") {
  CHECK(utf8_incomplete_tail_bytes("") == 0);
  CHECK(utf8_incomplete_tail_bytes("a") == 0);
  CHECK(utf8_incomplete_tail_bytes("a\xF0\x9F\x9A\x80") == 0);
  CHECK(utf8_incomplete_tail_bytes("a\xF0\x9F\x9A") == 3);
  CHECK(utf8_incomplete_tail_bytes("a\xF0\x9F") == 2);
  CHECK(utf8_incomplete_tail_bytes("\xC3") == 1);
  CHECK(utf8_incomplete_tail_bytes("\x80\x80") == 0);
  CHECK(utf8_incomplete_tail_bytes("\xED\xA0") == 0);
  CHECK(utf8_incomplete_tail_bytes("\xE4\xBD\xE4") == 1);
}
