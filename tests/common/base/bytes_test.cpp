// Bytes and UTF-8: expected values from RFC 3629 and the Unicode standard's table of well-formed
// sequences.
#include "common/base/bytes.h"

#include <doctest/doctest.h>

using namespace updraft;

TEST_CASE("well-formed UTF-8 of every length is accepted") {
  CHECK(is_utf8("plain"));
  CHECK(is_utf8("\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80"));
  CHECK(is_utf8("\xF4\x8F\xBF\xBF"));  // U+10FFFF
  CHECK(is_utf8(""));
}

TEST_CASE("overlong forms, surrogates, stray and cut-off bytes are refused at their place") {
  CHECK(utf8_valid_prefix_bytes("ab\xC0\x80") == 2);        // overlong NUL
  CHECK(utf8_valid_prefix_bytes("\xE0\x80\x80") == 0);      // overlong
  CHECK(utf8_valid_prefix_bytes("x\xED\xA0\x80") == 1);     // U+D800
  CHECK(utf8_valid_prefix_bytes("\xF4\x90\x80\x80") == 0);  // above U+10FFFF
  CHECK(utf8_valid_prefix_bytes("abc\x80") == 3);
  CHECK(utf8_valid_prefix_bytes("abc\xE2\x82") == 3);
}

TEST_CASE("a stream holds back only what more bytes could complete") {
  CHECK(utf8_complete_prefix_bytes("abc") == 3);
  CHECK(utf8_complete_prefix_bytes("abc\xE2") == 3);
  CHECK(utf8_complete_prefix_bytes("abc\xE2\x82") == 3);
  CHECK(utf8_complete_prefix_bytes("abc\xE2\x82\xAC") == 6);
  CHECK(utf8_complete_prefix_bytes("abc\xF0\x9F\x98") == 3);
  CHECK(utf8_complete_prefix_bytes("abc\xE2\x28") == 5);  // already malformed: nothing to wait for
  CHECK(utf8_complete_prefix_bytes("abc\x80\x80\x80") == 6);
}

TEST_CASE("malformed bytes become U+FFFD, the rest is kept") {
  CHECK(utf8_sanitized("a\xFF"
                       "b") ==
        "a\xEF\xBF\xBD"
        "b");
  CHECK(utf8_sanitized("\xE2\x82\xAC") == "\xE2\x82\xAC");
}

TEST_CASE("code points are appended in their shortest form") {
  std::string out;
  append_utf8(out, U'A');
  append_utf8(out, U'\u00e9');
  append_utf8(out, U'\u20ac');
  append_utf8(out, U'\U0001F600');
  CHECK(out == "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
}

TEST_CASE("printable text hides control bytes and is cut") {
  CHECK(printable("a\nb\xFF") == "a\\x0ab\\xff");
  CHECK(printable("abcdef", 3) == "abc...");
}

TEST_CASE("sizes that do not fit 64 bits are noticed") {
  CHECK(checked_mul(1ULL << 32, 1ULL << 31).value() == 1ULL << 63);
  CHECK_FALSE(checked_mul(1ULL << 32, 1ULL << 32).has_value());
  CHECK_FALSE(checked_add(~0ULL, 1).has_value());
}
