// read_tokenizer(): llama.cpp's vocabulary files, and tokenizer keys that contradict each other.
#include <doctest/doctest.h>

#include "common/model/gguf_model.h"
#include "common/model/tokenizer_file.h"
#include "tests/common/model/model_files.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

using Change = std::function<void(GgufWriter&)>;

Result<TokenizerData> read_changed(const Change& change) {
  GgufWriter keys;
  const std::vector<std::string> tokens = {"<unk>", "a", "b", "ab"};
  const std::vector<float> scores = {0, -1, -2, -3};
  const std::vector<int32_t> types = {2, 1, 1, 1};
  const std::vector<std::string> merges = {"a b"};
  keys.set_text("tokenizer.ggml.model", "gpt2");
  keys.set_text("tokenizer.ggml.pre", "qwen2");
  keys.set_texts("tokenizer.ggml.tokens", tokens);
  keys.set_f32s("tokenizer.ggml.scores", scores);
  keys.set_i32s("tokenizer.ggml.token_type", types);
  keys.set_texts("tokenizer.ggml.merges", merges);
  keys.set_u32("tokenizer.ggml.eos_token_id", 3);
  change(keys);
  const std::string bytes = keys.header();
  const auto file = GgufFile::parse(as_bytes_view(bytes), "vocab.gguf");
  REQUIRE_MESSAGE(file.ok(), file.message());
  return read_tokenizer(**file);
}

}  // namespace

TEST_CASE("a tokenizer is read in full") {
  const auto data = read_changed([](GgufWriter& keys) {
    keys.set_u32("tokenizer.ggml.bos_token_id", 1);
    keys.set_i32("tokenizer.ggml.eot_token_id", 2);
    keys.set_u32("tokenizer.ggml.padding_token_id", UINT32_MAX);  // written for "none"
    keys.set_bool("tokenizer.ggml.add_bos_token", true);
    keys.set_bool("tokenizer.ggml.add_space_prefix", false);
    keys.set_text("tokenizer.chat_template", "{{ messages }}");
  });
  REQUIRE_MESSAGE(data.ok(), data.message());
  CHECK(data->model == "gpt2");
  CHECK(data->pre == "qwen2");
  CHECK(data->tokens == std::vector<std::string>{"<unk>", "a", "b", "ab"});
  CHECK(data->scores == std::vector<float>{0, -1, -2, -3});
  CHECK(data->types == std::vector<int32_t>{2, 1, 1, 1});
  CHECK(data->merges == std::vector<std::string>{"a b"});
  CHECK(data->bos_id == 1);
  CHECK(data->eos_id == 3);
  CHECK(data->eot_id == 2);
  CHECK(data->eom_id == -1);
  CHECK(data->padding_id == -1);
  CHECK(data->add_bos == true);
  CHECK_FALSE(data->add_eos.has_value());
  CHECK(data->add_space_prefix == false);
  CHECK(data->chat_template == "{{ messages }}");
}

TEST_CASE("a file without tokenizer keys has empty data") {
  CHECK(read_changed([](GgufWriter& keys) {
          keys.remove_key("tokenizer.ggml.model");
        })->model.empty());
  CHECK(read_changed([](GgufWriter& keys) {
          keys.set_text("tokenizer.ggml.model", "no_vocab");
        })->model.empty());
}

TEST_CASE("arrays shorter or longer than the tokens are refused") {
  for (const size_t size : {0, 3, 5}) {
    const std::string number = std::to_string(size) + " elements for 4 tokens";
    check_refused(read_changed([&](GgufWriter& k) {
                    k.set_f32s("tokenizer.ggml.scores", std::vector<float>(size));
                  }),
                  {"vocab.gguf", "tokenizer.ggml.scores", number.c_str()});
    check_refused(read_changed([&](GgufWriter& k) {
                    k.set_i32s("tokenizer.ggml.token_type", std::vector<int32_t>(size));
                  }),
                  {"vocab.gguf", "tokenizer.ggml.token_type", number.c_str()});
  }
}

TEST_CASE("ids beyond the vocabulary are refused") {
  for (const char* name : {"bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id",
                           "unknown_token_id", "padding_token_id"}) {
    const std::string key = std::string("tokenizer.ggml.") + name;
    check_refused(read_changed([&](GgufWriter& k) { k.set_u32(key, 4); }),
                  {key.c_str(), "u32 4", "4 tokens"});
    check_refused(read_changed([&](GgufWriter& k) { k.set_i32(key, -2); }),
                  {key.c_str(), "i32 -2"});
    check_refused(read_changed([&](GgufWriter& k) { k.set_text(key, "a"); }),
                  {key.c_str(), "text"});
  }
}

TEST_CASE("merges without two halves are refused by number") {
  for (const char* merge : {"ab", "", " ", "a ", " a"}) {
    const std::vector<std::string> merges = {"a b", merge};
    check_refused(
        read_changed([&](GgufWriter& k) { k.set_texts("tokenizer.ggml.merges", merges); }),
        {"tokenizer.ggml.merges", "element 1"});
  }
  const std::vector<std::string> space_first = {"  b"};  // " " and "b"
  CHECK(
      read_changed([&](GgufWriter& k) { k.set_texts("tokenizer.ggml.merges", space_first); }).ok());
}

TEST_CASE("tokenizer keys of a wrong type are refused") {
  check_refused(read_changed([](GgufWriter& k) { k.set_u32("tokenizer.ggml.model", 1); }),
                {"tokenizer.ggml.model", "u32 1"});
  check_refused(read_changed([](GgufWriter& k) { k.remove_key("tokenizer.ggml.tokens"); }),
                {"tokenizer.ggml.tokens", "missing"});
  check_refused(read_changed([](GgufWriter& k) { k.set_texts("tokenizer.ggml.tokens", {}); }),
                {"tokenizer.ggml.tokens", "array of 0 text"});
  check_refused(read_changed([](GgufWriter& k) {
                  k.set_i32s("tokenizer.ggml.scores", std::vector<int32_t>(4));
                }),
                {"tokenizer.ggml.scores", "array of 4 i32"});
  check_refused(read_changed([](GgufWriter& k) { k.set_u32("tokenizer.ggml.add_bos_token", 1); }),
                {"tokenizer.ggml.add_bos_token", "u32 1", "bool"});
}

TEST_CASE("llama.cpp's vocabulary files give their tokens") {
  const auto gpt2 = shared_data("tokenizers/ggml-vocab-gpt-2.gguf");
  const auto phi3 = shared_data("tokenizers/ggml-vocab-phi-3.gguf");
  if (!gpt2 || !phi3) return;
  const auto bpe = open_tokenizer_data(*gpt2);
  REQUIRE_MESSAGE(bpe.ok(), bpe.message());
  CHECK(bpe->model == "gpt2");
  CHECK(bpe->pre == "gpt-2");
  CHECK(bpe->tokens.size() == 50257);
  CHECK(bpe->tokens[0] == "!");
  CHECK(bpe->merges.size() == 50000);
  CHECK(bpe->merges[0] == "\u0120 t");
  CHECK(bpe->eos_id == 50256);
  const auto spm = open_tokenizer_data(*phi3);
  REQUIRE_MESSAGE(spm.ok(), spm.message());
  CHECK(spm->model == "llama");
  CHECK(spm->scores.size() == 32064);
  CHECK(spm->types.size() == 32064);
  CHECK(spm->add_bos == true);
  CHECK(spm->bos_id == 1);
  CHECK(spm->eos_id == 32000);
  CHECK(spm->chat_template.size() > 100);
}
