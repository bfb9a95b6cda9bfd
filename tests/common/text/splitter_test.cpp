// Splitters against Python's regex module (golden_splits.json), and what must hold for any text.
#include "common/text/splitter.h"

#include <doctest/doctest.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <fstream>
#include <iterator>

#include "tests/support/shared_data.h"

using namespace updraft;

namespace {

using Pieces = std::vector<std::string>;

Splitter named(std::string_view name) {
  auto splitter = Splitter::by_name(name);
  REQUIRE_MESSAGE(splitter.ok(), splitter.message());
  return std::move(*splitter);
}

Pieces split(const Splitter& splitter, std::string_view text) {
  std::vector<std::string_view> views;
  splitter.split(text, views);
  return {views.begin(), views.end()};
}

const char* const kOneOfEach[] = {"llama-bpe", "glm4",   "qwen2",         "gpt-2",
                                  "starcoder", "falcon", "deepseek-coder"};

}  // namespace

TEST_CASE("every splitter cuts as Python's regex module does with the published patterns") {
  std::ifstream file(updraft::testing::repo_file("tests/common/text/golden_splits.json"),
                     std::ios::binary);
  REQUIRE(file.good());
  const boost::json::value golden =
      boost::json::parse(std::string{std::istreambuf_iterator<char>(file), {}});
  const boost::json::array& cases = golden.at("cases").as_array();
  CHECK(cases.size() > 80);
  for (const auto& [name, column] : std::initializer_list<std::pair<const char*, const char*>>{
           {"llama-bpe", "llama-bpe"},
           {"llama3", "llama-bpe"},
           {"glm4", "llama-bpe"},
           {"chatglm-bpe", "llama-bpe"},
           {"qwen2", "qwen2"},
           {"megrez", "qwen2"},
           {"gpt-2", "gpt-2"},
           {"starcoder", "starcoder"},
           {"refact", "starcoder"},
           {"command-r", "starcoder"},
           {"smollm", "starcoder"},
           {"falcon", "falcon"},
           {"deepseek-r1-qwen", "qwen2"},
           {"deepseek-coder", "deepseek-coder"}}) {
    const Splitter splitter = named(name);
    for (const boost::json::value& item : cases) {
      const std::string text(item.at("text").as_string());
      Pieces expected;
      for (const boost::json::value& piece : item.at(column).as_array())
        expected.emplace_back(piece.as_string());
      CAPTURE(name);
      CAPTURE(text);
      CHECK(split(splitter, text) == expected);
    }
  }
}

TEST_CASE("an unknown splitter is an error that lists the known ones") {
  for (const char* name : {"", "default", "gpt2", "LLAMA3"}) {
    const auto splitter = Splitter::by_name(name);
    REQUIRE_FALSE(splitter.ok());
    CHECK(splitter.message() == "tokenizer.ggml.pre '" + std::string(name) +
                                    "' is not a known splitter (known: " + known_splitters() + ")");
  }
  CHECK(known_splitters().starts_with("llama-bpe, llama3, "));
}

TEST_CASE("bytes that are not UTF-8 stay, as pieces of their own") {
  for (const char* name : kOneOfEach) {
    CHECK(split(named(name), "ab\xFF\xC3 cd\xE4\xBD") ==
          Pieces{"ab", "\xFF\xC3", " cd", "\xE4\xBD"});
    CHECK(split(named(name), "\x80\x80") == Pieces{"\x80\x80"});
    CHECK(split(named(name), "").empty());
  }
}

TEST_CASE("a megabyte of one kind of character is split whole, without giving up") {
  constexpr size_t kCount = 1 << 20;
  std::string mixed;
  while (mixed.size() < kCount) mixed += " \n\t\r \xC2\xA0";
  const std::string texts[] = {
      std::string(kCount, ' '),  std::string(kCount, ' ') + "x",
      std::string(kCount, 'a'),  std::string(kCount, '\n') + std::string(kCount, ' ') + "y",
      std::string(kCount, '!'),  std::string(kCount, '7'),
      std::string(kCount, '\''), mixed};
  for (const char* name : kOneOfEach) {
    const Splitter splitter = named(name);
    CAPTURE(name);
    for (const std::string& text : texts) {
      std::vector<std::string_view> pieces;
      splitter.split(text, pieces);
      size_t bytes = 0;
      for (const std::string_view piece : pieces) bytes += piece.size();
      CHECK(bytes == text.size());
    }
  }
  // The blank that belongs to the word behind a megabyte of them: seen only by a search that did
  // not give up.
  const Pieces llama = split(named("llama-bpe"), texts[1]);
  REQUIRE(llama.size() == 2);
  CHECK(llama[1] == " x");
  CHECK(split(named("llama-bpe"), texts[3]).back() == " y");
  CHECK(split(named("gpt-2"), texts[0]).size() == 1);
}
