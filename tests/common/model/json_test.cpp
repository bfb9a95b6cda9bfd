// The JSON reader: RFC 8259's grammar, and everything that it is strict about.
#include "common/model/json.h"

#include <doctest/doctest.h>

#include "tests/common/model/model_files.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

TEST_CASE("every kind of value is read") {
  const auto parsed = parse_json(
      R"( {"null":null, "yes":true,"no":false, "n":-12, "x":2.5e-1,"text":"a","list":[1,[ ],{}],"":0} )");
  REQUIRE_MESSAGE(parsed.ok(), parsed.message());
  CHECK(parsed->find("null")->is_null());
  CHECK(parsed->find("yes")->boolean() == true);
  CHECK(parsed->find("no")->boolean() == false);
  CHECK(parsed->find("n")->integer() == -12);
  CHECK(parsed->find("n")->number() == -12.0);
  CHECK(parsed->find("x")->number() == 0.25);
  CHECK_FALSE(parsed->find("x")->integer().has_value());
  CHECK(*parsed->find("text")->text() == "a");
  REQUIRE(parsed->find("list")->array() != nullptr);
  CHECK(parsed->find("list")->array()->size() == 3);
  CHECK(parsed->find("")->integer() == 0);
  CHECK(parsed->find("absent") == nullptr);
  CHECK(parsed->find("list")->find("absent") == nullptr);
}

TEST_CASE("escapes become the characters they name") {
  const auto parsed = parse_json(R"("\"\\\/\b\f\n\r\t\u0041\u00e9\u20AC\ud83d\ude00\u0000")");
  REQUIRE_MESSAGE(parsed.ok(), parsed.message());
  const std::string expected = "\"\\/\b\f\n\r\tA\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80";
  CHECK(*parsed->text() == expected + '\0');
}

TEST_CASE("integers keep all 64 bits and larger ones become numbers") {
  CHECK(parse_json("9223372036854775807")->integer() == INT64_MAX);
  CHECK(parse_json("-9223372036854775808")->integer() == INT64_MIN);
  CHECK_FALSE(parse_json("9223372036854775808")->integer().has_value());
  CHECK(parse_json("9223372036854775808")->number() == 9223372036854775808.0);
  // transformers writes this as "no limit".
  CHECK(parse_json("1000000000000000019884624838656")->number() == 1e30);
}

TEST_CASE("text that is no JSON is refused with line and column") {
  const std::pair<const char*, const char*> wrong[] = {
      {"", "ends"},
      {"{", "expected the name"},
      {"{\"a\":1", "expected , or }"},
      {"[1,2", "expected , or ]"},
      {"[1,]", "expected a value"},
      {"{\"a\":1,}", "name of a member"},
      {"{a:1}", "name of a member"},
      {"{\"a\" 1}", "expected : after the name \"a\""},
      {"[1 2]", "expected , or ]"},
      {"1 2", "after the value"},
      {"tru", "expected a value"},
      {"NaN", "expected a value"},
      {"Infinity", "expected a value"},
      {"-", "expected a value"},
      {"+1", "expected a value"},
      {"01", "leading zero"},
      {"1.", "after the point"},
      {".5", "expected a value"},
      {"1e", "exponent"},
      {"1e999", "out of range"},
      {"-1e999", "out of range"},
      {"\"a", "inside a text"},
      {"\"a\nb\"", "control character"},
      {"\"\\x\"", "escape"},
      {"\"\\u12\"", "escape"},
      {"\"\\u12g4\"", "escape"},
      {"\"\\ud800\"", "high surrogate"},
      {"\"\\ud800\\u0041\"", "high surrogate"},
      {"\"\\udc00\"", "low surrogate"},
      {"\"\xFF\"", "UTF-8"},
      {"// c\n1", "expected a value"},
      {"{\"a\":1,\"b\":2,\"a\":3}", "\"a\" twice"},
  };
  for (const auto& [text, expected] : wrong) {
    INFO(text);
    check_refused(parse_json(text), {"line 1 column ", expected});
  }
  check_refused(parse_json("{\n \"a\": 1,\n \"b\": ?}"), {"line 3 column 7"});
}

TEST_CASE("nesting is read to its limit and no deeper") {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(parse_json(nested(kJsonDepthMax)).ok());
  check_refused(parse_json(nested(kJsonDepthMax + 1)), {"nested deeper than 64"});
  check_refused(parse_json(std::string(10'000'000, '[')), {"nested deeper than 64"});
}

TEST_CASE("a text of very many short values is refused before it fills the memory") {
  std::string text = "[0";
  for (int64_t i = 1; i < kJsonValuesMax; ++i) text += ",0";  // and the array itself: one too many
  check_refused(parse_json(text + "]"), {"more than 8388608 values"});
}

TEST_CASE("repeated keys are found among very many") {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i)
    text += "\"k" + std::to_string(i) + "\":" + std::to_string(i) + ",";
  const auto all = parse_json(text + "\"last\":1}");
  REQUIRE(all.ok());
  CHECK(all->find("k123456")->integer() == 123456);
  check_refused(parse_json(text + "\"k77777\":1}"), {"\"k77777\" twice"});
}

TEST_CASE("a file that is too long or wrong is refused by name") {
  const TempDir dir;
  write_file(dir.file("a.json"), "[1, 2");
  check_refused(read_json_file(dir.file("a.json"), 100), {"a.json: line 1 column 6"});
  check_refused(read_json_file(dir.file("a.json"), 4), {"a.json", "5 bytes", "at most 4"});
  check_refused(read_json_file(dir.file("b.json"), 4), {"b.json", "No such file"});
}
