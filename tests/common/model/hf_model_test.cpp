// open_model() on Hugging Face folders: small synthetic models of each naming scheme, shards, and
// broken folders.
#include <doctest/doctest.h>

#include <filesystem>

#include "common/model/model.h"
#include "kernels/quant/quant.h"
#include "tests/common/model/model_files.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

// 2 layers, hidden 16, 4 heads, 2 kv heads, head 4, ff 12, vocabulary 10.
std::string config_of(const std::string& model_type, const std::string& more = "") {
  return R"({"model_type":")" + model_type +
         R"(","num_hidden_layers":2,"hidden_size":16,"intermediate_size":12,
    "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":10,"max_position_embeddings":64,"rms_norm_eps":1e-5)" +
         more + "}";
}

std::vector<NamedTensor> tensors_of(const std::string& model_type,
                                    const std::string& prefix = "model.",
                                    const std::string& head = "lm_head.weight") {
  std::vector<NamedTensor> out;
  const auto add = [&](const std::string& name, std::vector<uint64_t> shape) {
    out.push_back(patterned(name, std::move(shape), out.size()));
  };
  const bool is_glm = model_type.starts_with("glm");
  add(prefix + "embed_tokens.weight", {10, 16});
  add(prefix + "norm.weight", {16});
  if (!head.empty()) add(head, {10, 16});
  for (int i = 0; i < 2; ++i) {
    const std::string p = prefix + "layers." + std::to_string(i) + ".";
    add(p + "input_layernorm.weight", {16});
    add(p + "post_attention_layernorm.weight", {16});
    add(p + "self_attn.q_proj.weight", {16, 16});
    add(p + "self_attn.k_proj.weight", {8, 16});
    add(p + "self_attn.v_proj.weight", {8, 16});
    add(p + "self_attn.o_proj.weight", {16, 16});
    add(p + "mlp.down_proj.weight", {16, 12});
    if (is_glm) {
      add(p + "mlp.gate_up_proj.weight", {24, 16});
    } else {
      add(p + "mlp.gate_proj.weight", {12, 16});
      add(p + "mlp.up_proj.weight", {12, 16});
    }
    if (model_type.starts_with("glm4")) {
      add(p + "post_self_attn_layernorm.weight", {16});
      add(p + "post_mlp_layernorm.weight", {16});
    }
    if (is_glm || model_type == "qwen2") {
      add(p + "self_attn.q_proj.bias", {16});
      add(p + "self_attn.k_proj.bias", {8});
      add(p + "self_attn.v_proj.bias", {8});
    }
    if (model_type == "qwen3") {
      add(p + "self_attn.q_norm.weight", {4});
      add(p + "self_attn.k_norm.weight", {4});
    }
  }
  return out;
}

const NamedTensor& get(const std::vector<NamedTensor>& tensors, const std::string& name) {
  for (const NamedTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  FAIL("no tensor ", name);
  return tensors.front();
}

std::vector<float> values(const WeightView& view) {
  std::vector<float> out(static_cast<size_t>(view.rows * view.cols));
  dequantize_row(view.type, view.data, out);
  return out;
}

std::vector<float> rows_of(const NamedTensor& tensor, size_t first, size_t count) {
  const size_t cols = tensor.shape.size() > 1 ? tensor.shape[1] : 1;
  const auto begin = tensor.values.begin() + static_cast<std::ptrdiff_t>(first * cols);
  return {begin, begin + static_cast<std::ptrdiff_t>(count * cols)};
}

void write_folder(const TempDir& dir, const std::string& config,
                  const std::vector<NamedTensor>& tensors) {
  write_file(dir.file("config.json"), config);
  write_file(dir.file("model.safetensors"), safetensors(tensors));
}

Result<std::shared_ptr<const Model>> open_folder(const std::string& config,
                                                 const std::vector<NamedTensor>& tensors) {
  const TempDir dir;
  write_folder(dir, config, tensors);
  return open_model(dir.path());
}

}  // namespace

TEST_CASE("folders of each architecture give their weights") {
  for (const std::string type : {"llama", "qwen2", "qwen3", "glm4", "glm"}) {
    INFO(type);
    const auto tensors = tensors_of(type);
    const auto opened = open_folder(config_of(type), tensors);
    REQUIRE_MESSAGE(opened.ok(), opened.message());
    const Weights& w = (*opened)->weights();
    const LayerWeights& layer = w.layers.at(1);
    const std::string p = "model.layers.1.";
    CHECK(values(w.embedding) == get(tensors, "model.embed_tokens.weight").values);
    CHECK(values(w.head) == get(tensors, "lm_head.weight").values);
    CHECK(w.final_norm == get(tensors, "model.norm.weight").values);
    CHECK(layer.attn_norm == get(tensors, p + "input_layernorm.weight").values);
    CHECK(layer.ffn_norm == get(tensors, p + "post_attention_layernorm.weight").values);
    CHECK(values(layer.q) == get(tensors, p + "self_attn.q_proj.weight").values);
    CHECK(values(layer.k) == get(tensors, p + "self_attn.k_proj.weight").values);
    CHECK(values(layer.v) == get(tensors, p + "self_attn.v_proj.weight").values);
    CHECK(values(layer.o) == get(tensors, p + "self_attn.o_proj.weight").values);
    CHECK(values(layer.down) == get(tensors, p + "mlp.down_proj.weight").values);
    const bool is_glm = type.starts_with("glm");
    CHECK(values(layer.gate) == (is_glm
                                     ? rows_of(get(tensors, p + "mlp.gate_up_proj.weight"), 0, 12)
                                     : get(tensors, p + "mlp.gate_proj.weight").values));
    CHECK(values(layer.up) == (is_glm ? rows_of(get(tensors, p + "mlp.gate_up_proj.weight"), 12, 12)
                                      : get(tensors, p + "mlp.up_proj.weight").values));
    CHECK(layer.v_bias.size() == (is_glm || type == "qwen2" ? 8 : 0));
    CHECK(layer.k_norm.size() == (type == "qwen3" ? 4 : 0));
    CHECK(layer.post_attn_norm.size() == (type == "glm4" ? 16 : 0));
    if (type == "glm4")
      CHECK(layer.post_ffn_norm == get(tensors, p + "post_mlp_layernorm.weight").values);
    CHECK((*opened)->hyperparameters().rope_style ==
          (is_glm ? RopeStyle::kInterleaved : RopeStyle::kHalf));
    CHECK((*opened)->hyperparameters().rope_dims == (is_glm ? 2 : 4));
    CHECK((*opened)->tokenizer().model.empty());
  }
}

TEST_CASE("half-precision tensors keep their format, vectors become f32") {
  auto tensors = tensors_of("llama");
  for (NamedTensor& tensor : tensors) tensor.type = DType::kBF16;
  tensors[0].type = DType::kF16;
  const auto opened = open_folder(config_of("llama"), tensors);
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK((*opened)->quantization() == "BF16");
  CHECK((*opened)->weights().embedding.type == DType::kF16);
  CHECK((*opened)->weights().head.type == DType::kBF16);
  CHECK(values((*opened)->weights().embedding) == tensors[0].values);  // exact in both formats
  CHECK((*opened)->weights().final_norm == get(tensors, "model.norm.weight").values);
}

TEST_CASE("the text part of a GLM-4.1V folder is found and its vision part is left alone") {
  const std::string config =
      R"({"model_type":"glm4v","text_config":)" +
      config_of("glm4v_text", R"(,"rope_scaling":{"type":"default","mrope_section":[1]})") + "}";
  auto tensors = tensors_of("glm4", "model.language_model.");
  tensors.push_back(patterned("model.visual.blocks.0.norm1.weight", {8}, 1));
  const auto opened = open_folder(config, tensors);
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK((*opened)->hyperparameters().mrope_sections[0] == 1);
  CHECK(values((*opened)->weights().embedding) ==
        get(tensors, "model.language_model.embed_tokens.weight").values);
  CHECK((*opened)->parameter_count() ==
        open_folder(config_of("glm4"), tensors_of("glm4")).value()->parameter_count());
}

TEST_CASE("an old chatglm folder is split from its fused tensors") {
  const std::string config =
      R"({"model_type":"chatglm","num_layers":1,"hidden_size":16,"ffn_hidden_size":12,
    "num_attention_heads":4,"kv_channels":4,"multi_query_attention":true,"multi_query_group_num":2,
    "padded_vocab_size":10,"seq_length":64,"layernorm_epsilon":1e-5,"add_qkv_bias":true})";
  const std::string p = "transformer.encoder.layers.0.";
  const std::vector<NamedTensor> tensors = {
      patterned("transformer.embedding.word_embeddings.weight", {10, 16}, 1),
      patterned("transformer.encoder.final_layernorm.weight", {16}, 2),
      patterned("transformer.output_layer.weight", {10, 16}, 3),
      patterned("transformer.rotary_pos_emb.inv_freq", {1}, 4),
      patterned(p + "input_layernorm.weight", {16}, 5),
      patterned(p + "self_attention.query_key_value.weight", {32, 16}, 6),
      patterned(p + "self_attention.query_key_value.bias", {32}, 7),
      patterned(p + "self_attention.dense.weight", {16, 16}, 8),
      patterned(p + "post_attention_layernorm.weight", {16}, 9),
      patterned(p + "mlp.dense_h_to_4h.weight", {24, 16}, 10),
      patterned(p + "mlp.dense_4h_to_h.weight", {16, 12}, 11)};
  const auto opened = open_folder(config, tensors);
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  const LayerWeights& layer = (*opened)->weights().layers.at(0);
  CHECK((*opened)->hyperparameters().architecture == Architecture::kChatglm);
  CHECK(values(layer.q) == rows_of(tensors[5], 0, 16));
  CHECK(values(layer.k) == rows_of(tensors[5], 16, 8));
  CHECK(values(layer.v) == rows_of(tensors[5], 24, 8));
  CHECK(layer.k_bias == rows_of(tensors[6], 16, 8));
  CHECK(values(layer.gate) == rows_of(tensors[9], 0, 12));
  CHECK(values(layer.up) == rows_of(tensors[9], 12, 12));
}

TEST_CASE("whether the head is the embedding follows the configuration") {
  const auto without_head = tensors_of("llama", "model.", "");
  const auto with_head = tensors_of("llama");
  const auto tied = open_folder(config_of("llama", R"(,"tie_word_embeddings":true)"), with_head);
  REQUIRE_MESSAGE(tied.ok(), tied.message());
  CHECK((*tied)->weights().head.data == (*tied)->weights().embedding.data);
  CHECK((*tied)->hyperparameters().tied_embeddings);
  const auto silent = open_folder(config_of("llama"), without_head);
  REQUIRE_MESSAGE(silent.ok(), silent.message());
  CHECK((*silent)->hyperparameters().tied_embeddings);
  check_refused(open_folder(config_of("llama", R"(,"tie_word_embeddings":false)"), without_head),
                {"\"lm_head.weight\" is missing"});
}

TEST_CASE("end ids of both configurations are collected") {
  const TempDir dir;
  write_folder(dir, config_of("llama", R"(,"eos_token_id":[3,4],"bos_token_id":1)"),
               tensors_of("llama"));
  write_file(dir.file("generation_config.json"), R"({"eos_token_id":[4,5],"temperature":0.6})");
  const auto opened = open_model(dir.path() + "/");
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK((*opened)->tokenizer().eos_id == 3);
  CHECK((*opened)->tokenizer().extra_eos_ids == std::vector<int32_t>{4, 5});
  CHECK((*opened)->tokenizer().bos_id == 1);
  CHECK((*opened)->name() == std::filesystem::path(dir.path()).filename().string());
  write_file(dir.file("generation_config.json"), R"({"eos_token_id":10})");
  check_refused(open_model(dir.path()), {"generation_config.json", "10"});
}

TEST_CASE("a model in several shards opens through its index, from the folder or any shard") {
  const TempDir dir;
  const auto tensors = tensors_of("qwen3");
  const auto half = tensors.begin() + static_cast<std::ptrdiff_t>(tensors.size() / 2);
  write_file(dir.file("config.json"), config_of("qwen3"));
  write_file(dir.file("one.safetensors"),
             safetensors(std::vector<NamedTensor>(tensors.begin(), half)));
  write_file(dir.file("two.safetensors"),
             safetensors(std::vector<NamedTensor>(half, tensors.end())));
  std::string map;
  for (auto it = tensors.begin(); it != tensors.end(); ++it) {
    map += (map.empty() ? "\"" : ",\"") + it->name +
           (it < half ? R"(":"one.safetensors")" : R"(":"two.safetensors")");
  }
  write_file(dir.file("model.safetensors.index.json"), R"({"weight_map":{)" + map + "}}");
  for (const std::string& path :
       {dir.path(), dir.file("one.safetensors"), dir.file("two.safetensors")}) {
    const auto opened = open_model(path);
    REQUIRE_MESSAGE(opened.ok(), opened.message());
    CHECK(values((*opened)->weights().layers[1].q) ==
          get(tensors, "model.layers.1.self_attn.q_proj.weight").values);
    CHECK(values((*opened)->weights().embedding) ==
          get(tensors, "model.embed_tokens.weight").values);
  }
  write_file(dir.file("model.safetensors.index.json"),
             R"({"weight_map":{"ghost":"one.safetensors",)" + map + "}}");
  check_refused(open_model(dir.path()), {"one.safetensors", "\"ghost\"", "missing"});
  write_file(dir.file("model.safetensors.index.json"),
             R"({"weight_map":{"ghost":"three.safetensors",)" + map + "}}");
  check_refused(open_model(dir.path()), {"three.safetensors", "No such file"});
}

TEST_CASE("a single file opens with the configuration beside it") {
  const TempDir dir;
  write_folder(dir, config_of("llama"), tensors_of("llama"));
  std::filesystem::rename(dir.file("model.safetensors"), dir.file("my-model.safetensors"));
  const auto opened = open_model(dir.file("my-model.safetensors"));
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK((*opened)->name() == "my-model");
  check_refused(open_model(dir.path()), {"neither model.safetensors nor"});
  std::filesystem::remove(dir.file("config.json"));
  check_refused(open_model(dir.file("my-model.safetensors")), {"config.json", "No such file"});
}

TEST_CASE("tensors that are missing, of a wrong shape or format, or unknown are refused by name") {
  for (const std::string type : {"llama", "qwen2", "qwen3", "glm4"}) {
    const auto all = tensors_of(type);
    for (size_t i = 0; i < all.size(); ++i) {
      INFO(all[i].name);
      const std::string name = "\"" + all[i].name + "\"";
      if (all[i].name != "lm_head.weight" && !(type == "glm4" && all[i].name.ends_with(".bias"))) {
        auto missing = all;
        missing.erase(missing.begin() + static_cast<std::ptrdiff_t>(i));
        check_refused(open_folder(config_of(type), missing), {name.c_str(), "is missing"});
      }
      auto wrong = all;
      auto shape = all[i].shape;
      shape.back() += 1;
      wrong[i] = patterned(all[i].name, shape, i);
      check_refused(open_folder(config_of(type), wrong),
                    {name.c_str(), "has shape [", "expected ["});
    }
  }
  auto more = tensors_of("llama");
  more.push_back(patterned("model.layers.0.mlp.up_proj.bias", {12}, 0));
  check_refused(open_folder(config_of("llama"), more),
                {"model.layers.0.mlp.up_proj.bias", "not part"});
  check_refused(open_folder(config_of("llama", R"(,"attention_bias":true)"), tensors_of("llama")),
                {"biases"});

  const TempDir dir;
  write_folder(dir, config_of("llama"), tensors_of("llama"));
  std::string bytes = read_file(dir.file("model.safetensors"));
  bytes.replace(bytes.find("\"F32\""), 5, "\"I32\"");
  write_file(dir.file("model.safetensors"), bytes);
  check_refused(open_model(dir.path()), {"model.embed_tokens.weight", "I32"});
}

TEST_CASE("an embedding table of another size than the configuration says is refused") {
  const std::string config = config_of("llama", R"(,"head_dim":4)");
  std::string changed = config;
  changed.replace(changed.find("\"vocab_size\":10"), 15, "\"vocab_size\":11");
  check_refused(open_folder(changed, tensors_of("llama")),
                {"model.embed_tokens.weight", "10 rows", "11"});
}
