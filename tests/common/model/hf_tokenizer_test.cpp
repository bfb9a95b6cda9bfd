// tokenizer.json and its companions: the kinds of tokenizers of published models in small, and
// malformed ones.
#include "common/model/hf_tokenizer.h"

#include <doctest/doctest.h>

#include "common/model/tokenizer_file.h"
#include "tests/common/model/model_files.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

const std::string kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+)";
const std::string kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+)";

std::string split_then_bytes(const std::string& regex) {
  return R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":")" + regex +
         R"("},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,)" +
         R"("use_regex":false}]})";
}

const std::string kVocab = R"("vocab":{"a":0,"b":1,"ab":2,"\u0120":3},"merges":["a b"])";
const std::string kAdded = R"("added_tokens":[{"id":5,"content":"<|end|>","special":true},
  {"id":6,"content":"<think>","special":false}])";

std::string bpe(const std::string& pre_tokenizer, const std::string& model = kVocab,
                const std::string& more = "") {
  return R"({"version":"1.0",)" + kAdded + R"(,"pre_tokenizer":)" + pre_tokenizer +
         R"(,"model":{"type":"BPE",)" + model + "}" + more + "}";
}

Result<TokenizerData> read(const std::string& tokenizer, int32_t vocab_count = 8,
                           const std::string& config = "") {
  const TempDir dir;
  write_file(dir.file("tokenizer.json"), tokenizer);
  if (!config.empty()) write_file(dir.file("tokenizer_config.json"), config);
  return read_hf_tokenizer(dir.path(), vocab_count);
}

std::string pre_of(const std::string& pre_tokenizer, const std::string& model = kVocab) {
  const auto data = read(bpe(pre_tokenizer, model));
  REQUIRE_MESSAGE(data.ok(), data.message());
  CHECK(data->model == "gpt2");
  return data->pre;
}

}  // namespace

TEST_CASE("a byte-level tokenizer is read with its special tokens, and gaps become unused tokens") {
  const auto data = read(bpe(split_then_bytes(kQwen2Regex)));
  REQUIRE_MESSAGE(data.ok(), data.message());
  CHECK(data->model == "gpt2");
  CHECK(data->pre == "qwen2");
  CHECK(data->tokens == std::vector<std::string>{"a", "b", "ab", "\u0120", "[PAD4]", "<|end|>",
                                                 "<think>", "[PAD7]"});
  CHECK(data->types == std::vector<int32_t>{1, 1, 1, 1, 5, 3, 4, 5});
  CHECK(data->merges == std::vector<std::string>{"a b"});
  CHECK(data->ignore_merges == false);
  CHECK(data->add_bos == false);
  CHECK(data->scores.empty());
}

TEST_CASE("merges are read in both forms") {
  const auto data = read(bpe(split_then_bytes(kQwen2Regex),
                             R"("vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"],["ab","a"]])"));
  REQUIRE_MESSAGE(data.ok(), data.message());
  CHECK(data->merges == std::vector<std::string>{"a b", "ab a"});
}

TEST_CASE("splitters are recognised by their expressions") {
  CHECK(pre_of(split_then_bytes(kQwen2Regex)) == "qwen2");
  CHECK(pre_of(split_then_bytes(kLlama3Regex)) == "glm4");
  CHECK(pre_of(split_then_bytes(kLlama3Regex), R"("ignore_merges":true,)" + kVocab) == "llama-bpe");
  CHECK(pre_of(R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true})") == "gpt-2");
  CHECK(pre_of(R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},
    {"type":"ByteLevel","add_prefix_space":false,"use_regex":true}]})") == "starcoder");
  CHECK(contains(pre_of(split_then_bytes("x+")), "unknown pre_tokenizer x+"));
  CHECK(contains(pre_of(R"({"type":"ByteLevel","add_prefix_space":true})"), "unknown"));
  CHECK(contains(
      pre_of(R"({"type":"Sequence","pretokenizers":[{"type":"Whitespace"},{"type":"ByteLevel"}]})"),
      "unknown pre_tokenizer step Whitespace"));
}

TEST_CASE(
    "the begin token comes from the post-processor's template when it is the only one in front") {
  const auto processor = [](const std::string& single) {
    return R"(,"post_processor":{"type":"Sequence","processors":[{"type":"ByteLevel"},{"type":"TemplateProcessing",
      "single":[)" +
           single + R"(],"pair":[],"special_tokens":{}}]})";
  };
  const std::string text = R"({"Sequence":{"id":"A","type_id":0}})";
  const std::string end = R"({"SpecialToken":{"id":"<|end|>","type_id":0}})";
  const auto with_bos =
      read(bpe(split_then_bytes(kLlama3Regex), kVocab, processor(end + "," + text)));
  REQUIRE_MESSAGE(with_bos.ok(), with_bos.message());
  CHECK(with_bos->add_bos == true);
  CHECK(with_bos->bos_id == 5);
  CHECK(with_bos->add_eos == false);
  const auto two =
      read(bpe(split_then_bytes(kLlama3Regex), kVocab, processor(end + "," + end + "," + text)));
  CHECK(two->add_bos == false);
  const auto behind =
      read(bpe(split_then_bytes(kLlama3Regex), kVocab, processor(text + "," + end)));
  CHECK(behind->add_bos == false);
  CHECK(behind->add_eos == true);
}

TEST_CASE("names and template come from tokenizer_config.json") {
  const auto data = read(
      bpe(split_then_bytes(kQwen2Regex)), 8,
      R"({"bos_token":null,"eos_token":{"content":"<|end|>","special":true},"pad_token":"<think>",
                         "model_max_length":1000000000000000019884624838656,"add_bos_token":true,
                         "chat_template":"{% for m in messages %}"})");
  REQUIRE_MESSAGE(data.ok(), data.message());
  CHECK(data->eos_id == 5);
  CHECK(data->padding_id == 6);
  CHECK(data->bos_id == -1);
  CHECK(data->add_bos == true);
  CHECK(data->chat_template == "{% for m in messages %}");
  const auto named = read(
      bpe(split_then_bytes(kQwen2Regex)), 8,
      R"({"chat_template":[{"name":"tool_use","template":"t"},{"name":"default","template":"d"}]})");
  CHECK(named->chat_template == "d");

  const TempDir dir;
  write_file(dir.file("tokenizer.json"), bpe(split_then_bytes(kQwen2Regex)));
  write_file(dir.file("chat_template.jinja"), "{{ x }}\n");
  CHECK(read_hf_tokenizer(dir.path(), 8)->chat_template == "{{ x }}\n");
}

TEST_CASE("a SentencePiece-style tokenizer gets scores in the order of its merges") {
  // "ab" can be made in two ways, the first rank counts; "c" and "x" are made by no merge.
  const std::string model =
      R"("byte_fallback":true,"unk_token":"<unk>","vocab":{"<unk>":0,"<0x0A>":1,"a":2,"b":3,"ab":4,
    "\u2581ab":5,"c":6,"\u2581":7},"merges":["a b","\u2581 ab",["a","b"]])";
  const std::string normalizer =
      R"(,"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"\u2581"},
    {"type":"Replace","pattern":{"String":" "},"content":"\u2581"}]})";
  const std::string text =
      R"({"added_tokens":[{"id":0,"content":"<unk>","special":true}],"pre_tokenizer":null,
    "model":{"type":"BPE",)" +
      model + "}" + normalizer + "}";
  const auto data = read(text);
  REQUIRE_MESSAGE(data.ok(), data.message());
  CHECK(data->model == "llama");
  CHECK(data->types == std::vector<int32_t>{2, 6, 1, 1, 1, 1, 1, 1});
  CHECK(data->unknown_id == 0);
  CHECK(data->scores[4] == 0.0F);
  CHECK(data->scores[5] == -1.0F);
  CHECK(data->scores[6] < -1000.0F);
  CHECK(data->add_space_prefix == true);
  CHECK(data->merges.empty());
  check_refused(
      read(
          R"({"model":{"type":"BPE","byte_fallback":true,"vocab":{"a":0,"b":1},"merges":["a b"]}})"),
      {"tokenizer.json", "\"ab\"", "no token"});
}

TEST_CASE("kinds that are not supported keep the weights usable and name themselves") {
  CHECK(read(R"({"model":{"type":"Unigram","vocab":[["a",0.0]]}})")->model == "Unigram");
  CHECK(read(R"({"model":{"type":"WordPiece","vocab":{}}})")->model == "WordPiece");
  CHECK(read(bpe("null"))->model == "BPE without bytes");
  CHECK(contains(
      read(bpe(split_then_bytes(kQwen2Regex), kVocab, R"(,"normalizer":{"type":"Lowercase"})"))
          ->pre,
      "unknown"));
  CHECK(read(bpe(split_then_bytes(kQwen2Regex), kVocab, R"(,"normalizer":{"type":"NFC"})"))->pre ==
        "qwen2");
}

TEST_CASE("affixes of words, which no published byte-level model has, are not ignored") {
  const std::string pre = split_then_bytes(kQwen2Regex);
  CHECK(read(bpe(pre, R"("end_of_word_suffix":"",)" + kVocab))->pre == "qwen2");
  CHECK(contains(read(bpe(pre, R"("end_of_word_suffix":"</w>",)" + kVocab))->pre,
                 "unknown end_of_word_suffix"));
}

TEST_CASE("a folder without tokenizer files has empty data") {
  const TempDir dir;
  const auto data = read_hf_tokenizer(dir.path(), 8);
  REQUIRE(data.ok());
  CHECK(data->model.empty());
  check_refused(open_tokenizer_data(dir.path()), {"no tokenizer"});
}

TEST_CASE("added tokens beyond the model's rows stay plain text") {
  const auto data = read(bpe(split_then_bytes(kQwen2Regex)), 6);
  REQUIRE_MESSAGE(data.ok(), data.message());
  CHECK(data->tokens == std::vector<std::string>{"a", "b", "ab", "\u0120", "[PAD4]", "<|end|>"});
}

TEST_CASE("malformed tokenizers are refused by key and value") {
  const std::string pre = split_then_bytes(kQwen2Regex);
  check_refused(read("{"), {"tokenizer.json: line 1"});
  check_refused(read("[]"), {"key model is missing"});
  check_refused(read(bpe(pre, R"("merges":[])")), {"model.vocab"});
  check_refused(read(bpe(pre, R"("vocab":{"a":0})")), {"model.merges"});
  check_refused(read(bpe(pre, R"("vocab":{"a":-1},"merges":[])")), {"\"a\"", "-1"});
  check_refused(read(bpe(pre, R"("vocab":{"a":8},"merges":[])")), {"\"a\"", "8", "0 to 7"});
  check_refused(read(bpe(pre, R"("vocab":{"a":1000000000},"merges":[])"), 0),
                {"\"a\"", "1000000000"});
  check_refused(read(bpe(pre, R"("vocab":{"a":"0"},"merges":[])")), {"\"a\"", "\"0\""});
  check_refused(read(bpe(pre, R"("vocab":{"a":0,"b":0},"merges":[])")),
                {"token id 0", "\"a\"", "\"b\""});
  check_refused(read(bpe(pre, R"("vocab":{"x":5},"merges":[])")), {"token id 5", "<|end|>"});
  for (const char* merge : {"\"ab\"", "\"a \"", "\"a b c\"", "7", "[\"a\"]", "[\"a\",7]",
                            "[\"a\",\"\"]", "[\"a \",\"b\"]"}) {
    INFO(merge);
    check_refused(read(bpe(pre, R"("vocab":{"a":0,"b":1},"merges":[)" + std::string(merge) + "]")),
                  {"model.merges"});
  }
  check_refused(
      read(R"({"added_tokens":[{"content":"x"}],"model":{"type":"BPE","vocab":{},"merges":[]}})"),
      {"added_tokens", "\"x\""});
  check_refused(read(bpe(pre), 8, "{"), {"tokenizer_config.json: line 1"});
}
