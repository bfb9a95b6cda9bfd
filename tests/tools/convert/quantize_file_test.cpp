// Quantising files. Truths: the same trained model in both containers (so its conversion must equal
// the other one byte for byte), ggml's own blocks, and 200 greedy ids of the original.
#include "tools/convert/quantize_file.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "common/engine/engine.h"
#include "common/model/gguf.h"
#include "common/model/gguf_writer.h"
#include "common/model/json.h"
#include "common/model/model.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/quant/quant.h"
#include "tests/common/model/model_files.h"
#include "tests/support/shared_data.h"
#include "tools/bench/random_model.h"
#include "tools/bench/stream.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

QuantizeReport quantized(const std::string& input, const std::string& output, FileType type,
                         bool allow_requantize = false) {
  QuantizeConfig config;
  config.input = input;
  config.output = output;
  config.type = type;
  config.allow_requantize = allow_requantize;
  const auto report = quantize_file(config, {});
  REQUIRE_MESSAGE(report.ok(), report.message());
  return *report;
}

std::shared_ptr<const GgufFile> opened(const std::string& path) {
  auto file = GgufFile::open(path);
  REQUIRE_MESSAGE(file.ok(), file.message());
  return *file;
}

bool equal_bytes(ByteView a, ByteView b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

std::vector<int32_t> numbers_of(const std::string& path, const char* key) {
  const auto root = read_json_file(path, 1 << 20);
  REQUIRE_MESSAGE(root.ok(), root.message());
  std::vector<int32_t> out;
  for (const JsonValue& value : *root->find(key)->array())
    out.push_back(static_cast<int32_t>(*value.integer()));
  return out;
}

std::vector<int32_t> greedy_ids(const std::string& path, int32_t count) {
  auto model = open_model(path);
  REQUIRE_MESSAGE(model.ok(), model.message());
  auto backend = open_cpu_backend({});
  REQUIRE(backend.ok());
  EngineConfig config;
  config.slots = 1;
  auto engine = Engine::open(config, *model, std::move(*backend), {});
  REQUIRE_MESSAGE(engine.ok(), engine.message());
  const auto stream = BenchStream::start(**engine, 1, {1}, count);
  stream->wait_end();
  (*engine)->close();
  return stream->ids();
}

// One f32 matrix [2, 128] called like a weight.
std::string write_matrix(const TempDir& dir, const std::vector<float>& values) {
  GgufWriter writer;
  writer.set_text("general.architecture", "llama");
  writer.set_u32("llama.block_count", 1);
  writer.add_tensor("blk.0.attn_q.weight", DType::kF32, {128, 2});
  writer.add_tensor("blk.0.attn_norm.weight", DType::kF32, {128});
  writer.add_tensor("output.weight", DType::kF32, {128, 2});
  const std::string path = dir.file("matrix.gguf");
  REQUIRE(writer.begin(path).ok());
  REQUIRE(writer.write(std::as_bytes(std::span(values))).ok());
  REQUIRE(writer.write(std::as_bytes(std::span(values).first(128))).ok());
  REQUIRE(writer.write(std::as_bytes(std::span(values))).ok());
  REQUIRE(writer.finish().ok());
  return path;
}

}  // namespace

TEST_CASE("a folder becomes the GGUF file that the field's converter makes of it") {
  const auto folder = shared_data("weights/stories260K-hf");
  const auto other = shared_data("weights/stories260K-f32.gguf");
  const auto greedy = shared_data("weights/stories260K-greedy200.json");
  if (!folder || !other || !greedy) return;
  const TempDir dir;
  quantized(*folder, dir.file("m.gguf"), FileType::kF32);
  const auto made = opened(dir.file("m.gguf"));
  const auto expected = opened(*other);
  for (const GgufTensor& tensor : expected->tensors()) {
    CAPTURE(std::string(tensor.name));
    const GgufTensor* found = made->find_tensor(tensor.name);
    // The other file repeats the tied embedding as a head.
    if (found == nullptr && tensor.name == "output.weight") continue;
    REQUIRE(found != nullptr);
    CHECK(found->ne == tensor.ne);
    CHECK(equal_bytes(found->bytes, tensor.bytes));
  }
  for (const char* key :
       {"llama.block_count", "llama.embedding_length", "llama.feed_forward_length",
        "llama.attention.head_count", "llama.attention.head_count_kv", "llama.context_length"}) {
    CAPTURE(std::string(key));
    const GgufValue* value = made->find_key(key);
    const GgufValue* wanted = expected->find_key(key);
    REQUIRE((value != nullptr && wanted != nullptr));
    CHECK(value->integer() == wanted->integer());
  }
  CHECK(greedy_ids(dir.file("m.gguf"), 200) == numbers_of(*greedy, "greedy_ids"));
}

TEST_CASE("a quantised copy keeps every key and what the model says") {
  const auto input = shared_data("weights/stories260K-f32.gguf");
  const auto greedy = shared_data("weights/stories260K-greedy200.json");
  if (!input || !greedy) return;
  const TempDir dir;
  const auto before = opened(*input);
  const QuantizeReport report = quantized(*input, dir.file("q8.gguf"), FileType::kQ8_0);
  const auto after = opened(dir.file("q8.gguf"));
  CHECK(after->tensors().size() == before->tensors().size());
  for (const GgufKey& key : before->keys()) {
    CAPTURE(std::string(key.name));
    const GgufValue* copy = after->find_key(key.name);
    REQUIRE(copy != nullptr);
    if (key.name == "general.file_type" || key.name == "general.quantization_version" ||
        key.name == "general.alignment")
      continue;
    CHECK(equal_bytes(copy->encoded(), key.value.encoded()));
  }
  CHECK(after->find_key("general.file_type")->integer() == 7);
  CHECK(report.output_bytes * 3 < report.input_bytes);
  // 8 bits hold this model's first sentences exactly.
  const std::vector<int32_t> expected = numbers_of(*greedy, "greedy_ids");
  const std::vector<int32_t> ids = greedy_ids(dir.file("q8.gguf"), 60);
  CHECK(std::equal(ids.begin(), ids.end(), expected.begin()));
}

TEST_CASE("matrices get ggml's blocks, norms stay, the head gets more bits") {
  const auto golden = shared_data("golden/ggml_quant_blocks.json");
  if (!golden) return;
  const auto root = read_json_file(*golden, 1 << 20);
  REQUIRE(root.ok());
  std::vector<float> values;
  for (const JsonValue& row : *root->find("weight_f32_2x128")->array()) {
    for (const JsonValue& value : *row.array())
      values.push_back(static_cast<float>(*value.number()));
  }
  const TempDir dir;
  const std::string input = write_matrix(dir, values);
  const std::tuple<FileType, const char*, DType> cases[] = {
      {FileType::kQ8_0, "q8_0_bytes_i8", DType::kQ8_0},
      {FileType::kQ4_0, "q4_0_bytes_i8", DType::kQ4_0},
      {FileType::kQ4_1, "q4_1_bytes_i8", DType::kQ4_1},
      {FileType::kQ5_0, "q5_0_bytes_i8", DType::kQ5_0},
      {FileType::kQ5_1, "q5_1_bytes_i8", DType::kQ5_1}};
  for (const auto& [type, key, format] : cases) {
    CAPTURE(std::string(key));
    quantized(input, dir.file("out.gguf"), type);
    const auto file = opened(dir.file("out.gguf"));
    std::vector<std::byte> expected;
    for (const JsonValue& value : *root->find(key)->array())
      expected.push_back(static_cast<std::byte>(*value.integer()));
    CHECK(equal_bytes(file->find_tensor("blk.0.attn_q.weight")->bytes, expected));
    CHECK(file->find_tensor("blk.0.attn_norm.weight")->type == DType::kF32);
    CHECK(file->find_tensor("output.weight")->type == DType::kQ8_0);  // 128 columns: no Q6_K
  }
}

TEST_CASE("several slabs and threads give the blocks of one row after the other") {
  const TempDir dir;
  RandomModelConfig shape;
  Hyperparameters& h = shape.hyperparameters;
  h.architecture = Architecture::kQwen3;
  h.layer_count = 1;
  h.hidden_dim = 1024;
  h.ff_dim = 768;
  h.head_count = h.kv_head_count = 4;
  h.head_dim = h.rope_dims = 64;
  h.vocab_count = 70'001;  // two slabs of Q6_K, and a last item that is not full
  h.context_tokens = 64;
  h.norm_eps = 1e-6F;
  h.tied_embeddings = true;
  shape.file_type = FileType::kF16;
  REQUIRE(write_random_model(shape, dir.file("in.gguf"), {}).ok());
  quantized(dir.file("in.gguf"), dir.file("out.gguf"), FileType::kQ4_0);
  const auto in = opened(dir.file("in.gguf"));
  const auto out = opened(dir.file("out.gguf"));
  for (const GgufTensor& tensor : out->tensors()) {
    const GgufTensor& source = *in->find_tensor(tensor.name);
    CAPTURE(std::string(tensor.name));
    if (tensor.dimension_count < 2) {
      CHECK(equal_bytes(tensor.bytes, source.bytes));
      continue;
    }
    std::vector<float> row(tensor.ne[0]);
    std::vector<std::byte> expected(
        static_cast<size_t>(row_bytes(tensor.type, static_cast<int64_t>(row.size()))));
    size_t wrong = 0;
    // K formats are slow to fit: every 97th row, and the last ones.
    for (uint64_t r = 0; r < tensor.ne[1]; r += r + 5 < tensor.ne[1] ? 97 : 1) {
      r = std::min(r, tensor.ne[1] - 1);
      dequantize_row(source.type, source.bytes.data() + r * row.size() * 2, row);
      quantize_row(tensor.type, row, expected.data());
      wrong +=
          equal_bytes(tensor.bytes.subspan(r * expected.size(), expected.size()), expected) ? 0 : 1;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("quantised input is refused by name, unless it is asked for") {
  const TempDir dir;
  const std::string input = write_matrix(dir, std::vector<float>(256, 0.5F));
  quantized(input, dir.file("q8.gguf"), FileType::kQ8_0);
  QuantizeConfig config;
  config.input = dir.file("q8.gguf");
  config.output = dir.file("q4.gguf");
  config.type = FileType::kQ4_0;
  check_refused(quantize_file(config, {}),
                {"q8.gguf", "blk.0.attn_q.weight", "Q8_0", "--allow-requantize"});
  CHECK_FALSE(std::filesystem::exists(config.output));
  quantized(config.input, config.output, config.type, true);
  CHECK(opened(config.output)->find_tensor("blk.0.attn_q.weight")->type == DType::kQ4_0);
  // The same format again loses nothing.
  quantized(config.input, dir.file("again.gguf"), FileType::kQ8_0);
}

TEST_CASE("what cannot be read or written is an error that leaves no file behind") {
  const TempDir dir;
  const std::string input = write_matrix(dir, std::vector<float>(256, 0.5F));
  QuantizeConfig config;
  config.type = FileType::kQ8_0;
  config.input = dir.file("none.gguf");
  config.output = dir.file("out.gguf");
  check_refused(quantize_file(config, {}), {"none.gguf", "no such file"});
  config.input = input;
  config.output = input;
  check_refused(quantize_file(config, {}), {"is the input"});
  config.output = dir.file("missing/out.gguf");
  check_refused(quantize_file(config, {}), {"missing/out.gguf"});
  write_file(dir.file("bad.gguf"), "GGUF");
  config.input = dir.file("bad.gguf");
  config.output = dir.file("out.gguf");
  check_refused(quantize_file(config, {}), {"bad.gguf"});
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(dir.path()))
    ++files;
  CHECK(files == 2);  // the two inputs
}

TEST_CASE("a folder's tokenizer, template, biases and llama3 scaling survive as GGUF keys") {
  const TempDir dir;
  const std::string folder = dir.file("hf");
  std::filesystem::create_directory(folder);
  // A llama with grouped heads, a rotation over all of a head, and a vocabulary of bytes.
  constexpr int kHidden = 64, kHead = 16, kVocab = 320;
  std::vector<NamedTensor> tensors;
  const auto add = [&](const std::string& name, std::vector<uint64_t> shape) {
    tensors.push_back(patterned(name, std::move(shape), tensors.size()));
  };
  add("model.embed_tokens.weight", {kVocab, kHidden});
  add("lm_head.weight", {kVocab, kHidden});
  add("model.norm.weight", {kHidden});
  const std::string l = "model.layers.0.";
  add(l + "input_layernorm.weight", {kHidden});
  add(l + "post_attention_layernorm.weight", {kHidden});
  for (const auto& [name, rows] : {std::pair("q", 64), std::pair("k", 32), std::pair("v", 32)}) {
    add(l + "self_attn." + name + "_proj.weight", {static_cast<uint64_t>(rows), kHidden});
    add(l + "self_attn." + name + "_proj.bias", {static_cast<uint64_t>(rows)});
  }
  add(l + "self_attn.o_proj.weight", {kHidden, 64});
  add(l + "mlp.gate_proj.weight", {96, kHidden});
  add(l + "mlp.up_proj.weight", {96, kHidden});
  add(l + "mlp.down_proj.weight", {kHidden, 96});
  write_file(folder + "/model.safetensors", safetensors(tensors));
  write_file(folder + "/config.json",
             R"({"model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "attention_bias": true, "tie_word_embeddings": false, "eos_token_id": [318, 319],
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}})");
  const TokenizerData data = synthetic_tokenizer(Architecture::kLlama, 512);
  std::string vocabulary;
  const auto quoted_token = [](const std::string& token) {
    return token == "\"" || token == "\\" ? "\"\\" + token + "\"" : "\"" + token + "\"";
  };
  for (int id = 0; id < 318; ++id)
    vocabulary += (id > 0 ? ", " : "") + quoted_token(data.tokens[static_cast<size_t>(id)]) + ": " +
                  std::to_string(id);
  write_file(folder + "/tokenizer.json",
             R"({"added_tokens": [{"id": 318, "content": "<|eot_id|>", "special": true},
    {"id": 319, "content": "<|end|>", "special": true}],
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex":
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    "behavior": "Isolated", "invert": false}, {"type": "ByteLevel", "add_prefix_space": false,
    "trim_offsets": true, "use_regex": false}]},
    "model": {"type": "BPE", "ignore_merges": true, "vocab": {)" +
                 vocabulary + R"(}, "merges": ["a a", "a b"]}})");
  write_file(folder + "/tokenizer_config.json", R"({"chat_template": "{{ messages }}"})");

  quantized(folder, dir.file("m.gguf"), FileType::kF32);
  const auto made = open_model(dir.file("m.gguf"));
  REQUIRE_MESSAGE(made.ok(), made.message());
  const auto original = open_model(folder);
  REQUIRE_MESSAGE(original.ok(), original.message());
  const TokenizerData& before = (*original)->tokenizer();
  const TokenizerData& after = (*made)->tokenizer();
  CHECK(after.model == "gpt2");
  CHECK(after.pre == before.pre);
  CHECK(after.tokens == before.tokens);
  CHECK(after.types == before.types);
  CHECK(after.merges == before.merges);
  CHECK(after.chat_template == "{{ messages }}");
  CHECK(after.eos_id == 318);
  CHECK(after.eot_id == 319);

  // Row 2i + j of a head is row j * head/2 + i of the folder's.
  const LayerWeights& to = (*made)->weights().layers.front();
  const LayerWeights& from = (*original)->weights().layers.front();
  for (int head = 0; head < 2; ++head) {
    for (int i = 0; i < kHead / 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        const int a = head * kHead + 2 * i + j;
        const int b = head * kHead + j * kHead / 2 + i;
        CHECK(std::memcmp(to.k.data + a * kHidden * 4, from.k.data + b * kHidden * 4,
                          kHidden * 4) == 0);
        CHECK(to.k_bias[static_cast<size_t>(a)] == from.k_bias[static_cast<size_t>(b)]);
      }
    }
  }
  CHECK(to.v_bias == from.v_bias);
  // rope_freqs: 1 for short waves, the factor for the longest (2 pi 500000^(7/8) tokens).
  const std::vector<float>& divisors = (*made)->weights().rope_divisors;
  REQUIRE(divisors.size() == kHead / 2);
  CHECK(divisors.front() == 1.0F);
  CHECK(divisors.back() == 8.0F);
}
