// open_model() on GGUF: every architecture from a small synthetic file, and each kind of nonsense
// in keys and tensors.
#include "common/model/gguf_model.h"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>

#include "common/model/model.h"
#include "kernels/quant/quant.h"
#include "tests/common/model/model_files.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

using Opened = Result<std::shared_ptr<const Model>>;
using Change = std::function<void(SmallGguf&)>;

Opened open_changed(
    const std::string& arch, const Change& change = [](SmallGguf&) {}) {
  const TempDir dir;
  SmallGguf file(arch);
  change(file);
  file.write(dir.file("small.gguf"));
  return open_model(dir.file("small.gguf"));  // the mapping outlives the removed folder
}

std::vector<float> values(const WeightView& view) {
  std::vector<float> out;
  for (int64_t row = 0; row < view.rows; ++row) {
    std::vector<float> one(static_cast<size_t>(view.cols));
    dequantize_row(view.type, view.data + row * row_bytes(view.type, view.cols), one);
    out.insert(out.end(), one.begin(), one.end());
  }
  return out;
}

std::vector<float> rows_of(const NamedTensor& tensor, size_t first, size_t count) {
  const size_t cols = tensor.shape.size() > 1 ? tensor.shape[1] : 1;
  const auto begin = tensor.values.begin() + static_cast<std::ptrdiff_t>(first * cols);
  return {begin, begin + static_cast<std::ptrdiff_t>(count * cols)};
}

void check_key(const char* key, const Change& change, std::initializer_list<const char*> parts) {
  const auto opened = open_changed("llama", change);
  REQUIRE_FALSE(opened.ok());
  INFO(opened.message());
  CHECK(contains(opened.message(), key));
  CHECK(contains(opened.message(), "small.gguf: "));
  check_refused(opened, parts);
}

}  // namespace

TEST_CASE("a llama file gives its hyperparameters and weights") {
  const auto opened =
      open_changed("llama", [](SmallGguf& f) { f.keys.set_text("general.name", "Small"); });
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  const Model& model = **opened;
  const Hyperparameters& h = model.hyperparameters();
  CHECK(h.architecture == Architecture::kLlama);
  CHECK(h.layer_count == 2);
  CHECK(h.hidden_dim == 16);
  CHECK(h.ff_dim == 12);
  CHECK(h.head_count == 4);
  CHECK(h.kv_head_count == 2);
  CHECK(h.head_dim == 4);
  CHECK(h.vocab_count == 10);
  CHECK(h.context_tokens == 64);
  CHECK(h.norm_eps == 1e-5F);
  CHECK(h.rope_style == RopeStyle::kInterleaved);
  CHECK(h.rope_dims == 4);
  CHECK(h.rope_base == 10000.0F);
  CHECK(h.rope_scaling.kind == RopeScaling::Kind::kNone);
  CHECK_FALSE(h.tied_embeddings);
  CHECK(model.name() == "Small");
  CHECK(model.quantization() == "F32");
  // 10*16*2 + 16 + 2 * (16 + 16 + 256 + 192 + 256 + 128 + 128 + 192 + 192)
  CHECK(model.parameter_count() == 336 + 2 * 1376);
  CHECK(model.tokenizer().model.empty());

  const SmallGguf file("llama");
  const LayerWeights& layer = model.weights().layers.at(1);
  CHECK(values(model.weights().embedding) == file.get("token_embd.weight").values);
  CHECK(values(model.weights().head) == file.get("output.weight").values);
  CHECK(model.weights().final_norm == file.get("output_norm.weight").values);
  CHECK(layer.attn_norm == file.get("blk.1.attn_norm.weight").values);
  CHECK(values(layer.q) == file.get("blk.1.attn_q.weight").values);
  CHECK(values(layer.k) == file.get("blk.1.attn_k.weight").values);
  CHECK(values(layer.v) == file.get("blk.1.attn_v.weight").values);
  CHECK(values(layer.o) == file.get("blk.1.attn_output.weight").values);
  CHECK(values(layer.gate) == file.get("blk.1.ffn_gate.weight").values);
  CHECK(values(layer.up) == file.get("blk.1.ffn_up.weight").values);
  CHECK(values(layer.down) == file.get("blk.1.ffn_down.weight").values);
  CHECK(layer.q_bias.empty());
  CHECK(layer.q_norm.empty());
  CHECK(layer.post_attn_norm.empty());
}

TEST_CASE("each architecture has its rotary layout and its own tensors") {
  const auto qwen2 = open_changed("qwen2");
  REQUIRE_MESSAGE(qwen2.ok(), qwen2.message());
  CHECK((*qwen2)->hyperparameters().architecture == Architecture::kQwen2);
  CHECK((*qwen2)->hyperparameters().rope_style == RopeStyle::kHalf);
  CHECK((*qwen2)->weights().layers[1].k_bias == SmallGguf("qwen2").get("blk.1.attn_k.bias").values);

  const auto qwen3 = open_changed("qwen3");
  REQUIRE_MESSAGE(qwen3.ok(), qwen3.message());
  CHECK((*qwen3)->hyperparameters().rope_style == RopeStyle::kHalf);
  CHECK((*qwen3)->weights().layers[0].q_norm ==
        SmallGguf("qwen3").get("blk.0.attn_q_norm.weight").values);
  CHECK((*qwen3)->weights().layers[0].q_bias.empty());
}

TEST_CASE("glm4 splits gate and up and has both sandwich norms") {
  const auto opened = open_changed("glm4");
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  const SmallGguf file("glm4");
  const Hyperparameters& h = (*opened)->hyperparameters();
  const LayerWeights& layer = (*opened)->weights().layers.at(1);
  CHECK(h.architecture == Architecture::kGlm4);
  CHECK(h.rope_style == RopeStyle::kInterleaved);
  CHECK(h.rope_dims == 2);
  CHECK(values(layer.gate) == rows_of(file.get("blk.1.ffn_up.weight"), 0, 12));
  CHECK(values(layer.up) == rows_of(file.get("blk.1.ffn_up.weight"), 12, 12));
  CHECK(layer.post_attn_norm == file.get("blk.1.post_attention_norm.weight").values);
  CHECK(layer.post_ffn_norm == file.get("blk.1.post_ffw_norm.weight").values);
}

TEST_CASE("glm4 with rotary sections is stored in halves") {
  const std::vector<int32_t> sections = {1, 1, 0, 0};
  const auto opened = open_changed("glm4", [&](SmallGguf& f) {
    f.keys.set_u32("glm4.rope.dimension_count", 4);
    f.keys.set_i32s("glm4.rope.dimension_sections", sections);
  });
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK((*opened)->hyperparameters().rope_style == RopeStyle::kHalf);
  CHECK((*opened)->hyperparameters().mrope_sections == std::array<int32_t, 4>{1, 1, 0, 0});

  const std::vector<int32_t> zeros = {0, 0, 0, 0};
  const auto text_only = open_changed(
      "glm4", [&](SmallGguf& f) { f.keys.set_i32s("glm4.rope.dimension_sections", zeros); });
  REQUIRE_MESSAGE(text_only.ok(), text_only.message());
  CHECK((*text_only)->hyperparameters().rope_style == RopeStyle::kInterleaved);
}

TEST_CASE("chatglm splits its fused query, key and value with their bias") {
  const auto opened = open_changed("chatglm");
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  const SmallGguf file("chatglm");
  const NamedTensor& fused = file.get("blk.0.attn_qkv.weight");
  const NamedTensor& bias = file.get("blk.0.attn_qkv.bias");
  const LayerWeights& layer = (*opened)->weights().layers.at(0);
  CHECK((*opened)->hyperparameters().rope_style == RopeStyle::kInterleaved);
  CHECK(values(layer.q) == rows_of(fused, 0, 16));
  CHECK(values(layer.k) == rows_of(fused, 16, 8));
  CHECK(values(layer.v) == rows_of(fused, 24, 8));
  CHECK(layer.q_bias == rows_of(bias, 0, 16));
  CHECK(layer.k_bias == rows_of(bias, 16, 8));
  CHECK(layer.v_bias == rows_of(bias, 24, 8));
  CHECK(layer.post_attn_norm.empty());
}

TEST_CASE("each tensor keeps its own format, vectors become f32") {
  const auto opened = open_changed("llama", [](SmallGguf& f) {
    for (const NamedTensor& tensor : SmallGguf("llama").tensors) {
      if (tensor.shape.size() == 2) f.set_type(tensor.name, DType::kF16);
    }
    f.set_type("blk.0.attn_q.weight", DType::kBF16);
    f.set_type("blk.0.attn_norm.weight", DType::kF16);
    f.set_type("blk.0.ffn_norm.weight", DType::kBF16);
  });
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  const SmallGguf file("llama");
  const LayerWeights& layer = (*opened)->weights().layers.at(0);
  CHECK((*opened)->quantization() == "F16");
  CHECK(layer.q.type == DType::kBF16);
  CHECK(layer.k.type == DType::kF16);
  CHECK(values(layer.q) == file.get("blk.0.attn_q.weight").values);  // exact in both formats
  CHECK(values(layer.k) == file.get("blk.0.attn_k.weight").values);
  CHECK(layer.attn_norm == file.get("blk.0.attn_norm.weight").values);
  CHECK(layer.ffn_norm == file.get("blk.0.ffn_norm.weight").values);
}

TEST_CASE("fused tensors of a quantised format are split between rows") {
  const TempDir dir;
  SmallGguf file("chatglm", 32);
  file.set_type("blk.1.attn_qkv.weight", DType::kQ8_0);
  file.set_type("blk.1.ffn_up.weight", DType::kQ4_0);
  file.write(dir.file("small.gguf"));
  const auto opened = open_model(dir.file("small.gguf"));
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  const LayerWeights& layer = (*opened)->weights().layers.at(1);
  const auto bytes_of = [](const WeightView& view) {
    return std::vector<std::byte>(view.data,
                                  view.data + view.rows * row_bytes(view.type, view.cols));
  };
  const auto joined = [&](std::initializer_list<WeightView> views) {
    std::vector<std::byte> out;
    for (const WeightView& view : views) {
      const auto bytes = bytes_of(view);
      out.insert(out.end(), bytes.begin(), bytes.end());
    }
    return out;
  };
  CHECK(layer.q.rows == 32);
  CHECK(layer.k.rows == 16);
  CHECK(layer.v.rows == 16);
  CHECK(layer.v.type == DType::kQ8_0);
  CHECK(joined({layer.q, layer.k, layer.v}) == file.get("blk.1.attn_qkv.weight").encoded());
  CHECK(layer.gate.rows == 12);
  CHECK(joined({layer.gate, layer.up}) == file.get("blk.1.ffn_up.weight").encoded());
}

TEST_CASE("a file without a head uses the embedding") {
  const auto opened = open_changed("llama", [](SmallGguf& f) { f.remove("output.weight"); });
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK((*opened)->hyperparameters().tied_embeddings);
  CHECK((*opened)->weights().head.data == (*opened)->weights().embedding.data);
  CHECK((*opened)->parameter_count() == 176 + 2 * 1376);
}

TEST_CASE("per-layer counts are accepted when all layers agree") {
  const std::vector<uint32_t> equal = {12, 12};
  const auto opened = open_changed(
      "llama", [&](SmallGguf& f) { f.keys.set_u32s("llama.feed_forward_length", equal); });
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK((*opened)->hyperparameters().ff_dim == 12);
  const std::vector<uint32_t> different = {12, 16};
  check_key("llama.feed_forward_length",
            [&](SmallGguf& f) { f.keys.set_u32s("llama.feed_forward_length", different); },
            {"12", "16", "differs between layers"});
}

TEST_CASE("head dimensions may differ from hidden over heads") {
  const auto opened = open_changed("qwen3", [](SmallGguf& f) {
    f.keys.set_u32("qwen3.attention.key_length", 8);
    f.keys.set_u32("qwen3.attention.value_length", 8);
    for (const char* layer : {"blk.0.", "blk.1."}) {
      const std::string p = layer;
      for (const char* name :
           {"attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm"}) {
        f.remove(p + name + ".weight");
      }
      f.add(p + "attn_q.weight", {32, 16});
      f.add(p + "attn_k.weight", {16, 16});
      f.add(p + "attn_v.weight", {16, 16});
      f.add(p + "attn_output.weight", {16, 32});
      f.add(p + "attn_q_norm.weight", {8});
      f.add(p + "attn_k_norm.weight", {8});
    }
  });
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK((*opened)->hyperparameters().head_dim == 8);
  CHECK((*opened)->hyperparameters().rope_dims == 8);
}

TEST_CASE("rotary scaling is read") {
  const auto linear = open_changed("llama", [](SmallGguf& f) {
    f.keys.set_text("llama.rope.scaling.type", "linear");
    f.keys.set_f32("llama.rope.scaling.factor", 4.0F);
    f.keys.set_f32("llama.rope.freq_base", 5e5F);
  });
  REQUIRE_MESSAGE(linear.ok(), linear.message());
  CHECK((*linear)->hyperparameters().rope_scaling.kind == RopeScaling::Kind::kLinear);
  CHECK((*linear)->hyperparameters().rope_scaling.factor == 4.0F);
  CHECK((*linear)->hyperparameters().rope_base == 5e5F);

  const auto yarn = open_changed("llama", [](SmallGguf& f) {
    f.keys.set_text("llama.rope.scaling.type", "yarn");
    f.keys.set_f32("llama.rope.scaling.factor", 4.0F);
    f.keys.set_u32("llama.rope.scaling.original_context_length", 32);
    f.keys.set_f32("llama.rope.scaling.yarn_beta_fast", 16.0F);
    f.keys.set_f32("llama.rope.scaling.attn_factor", 2.0F);
  });
  REQUIRE_MESSAGE(yarn.ok(), yarn.message());
  const RopeScaling& scaling = (*yarn)->hyperparameters().rope_scaling;
  CHECK(scaling.kind == RopeScaling::Kind::kYarn);
  CHECK(scaling.original_context_tokens == 32);
  CHECK(scaling.beta_fast == 16.0F);
  CHECK(scaling.attention_factor == doctest::Approx(2.0 * (0.1 * std::log(4.0) + 1.0)));
  CHECK((*yarn)->hyperparameters().context_tokens == 128);  // 4 * 32, above the 64 of the file

  const auto llama3 = open_changed("llama", [](SmallGguf& f) { f.add("rope_freqs.weight", {2}); });
  REQUIRE_MESSAGE(llama3.ok(), llama3.message());
  CHECK((*llama3)->weights().rope_divisors.size() == 2);
  CHECK((*llama3)->parameter_count() == 336 + 2 * 1376);

  check_key("llama.rope.scaling.type",
            [](SmallGguf& f) { f.keys.set_text("llama.rope.scaling.type", "longrope"); },
            {"longrope", "linear"});
  check_key("llama.rope.scaling.factor",
            [](SmallGguf& f) { f.keys.set_text("llama.rope.scaling.type", "linear"); },
            {"missing"});
  check_key("llama.rope.scaling.factor",
            [](SmallGguf& f) {
              f.keys.set_text("llama.rope.scaling.type", "linear");
              f.keys.set_f32("llama.rope.scaling.factor", 0.5F);
            },
            {"0.5"});
  check_key("rope_freqs.weight",
            [](SmallGguf& f) {
              f.add("rope_freqs.weight", {2});
              f.keys.set_text("llama.rope.scaling.type", "linear");
              f.keys.set_f32("llama.rope.scaling.factor", 2.0F);
            },
            {"contradicts"});
}

TEST_CASE("an architecture that is not supported is named together with those that are") {
  check_refused(open_changed("phi3"), {"\"phi3\"", "llama", "chatglm"});
  check_refused(
      open_changed("llama", [](SmallGguf& f) { f.keys.set_u32("general.architecture", 3); }),
      {"general.architecture", "u32 3"});
  check_refused(
      open_changed("llama", [](SmallGguf& f) { f.keys.remove_key("general.architecture"); }),
      {"general.architecture", "missing"});
}

TEST_CASE("missing and absurd counts are refused by key and value") {
  for (const char* suffix : {"block_count", "embedding_length", "feed_forward_length",
                             "context_length", "attention.head_count", "attention.head_count_kv",
                             "rope.dimension_count", "attention.key_length"}) {
    const std::string key = std::string("llama.") + suffix;
    check_key(key.c_str(), [&](SmallGguf& f) { f.keys.set_u32(key, 0); },
              {"u32 0", "an integer from 1"});
    check_key(key.c_str(), [&](SmallGguf& f) { f.keys.set_u32(key, UINT32_MAX); },
              {"u32 4294967295"});
    check_key(key.c_str(), [&](SmallGguf& f) { f.keys.set_i32(key, -1); }, {"i32 -1"});
    check_key(key.c_str(), [&](SmallGguf& f) { f.keys.set_u64(key, ~0ULL); },
              {"u64 18446744073709551615"});
    check_key(key.c_str(), [&](SmallGguf& f) { f.keys.set_text(key, "4"); }, {"text \"4\""});
    check_key(key.c_str(), [&](SmallGguf& f) { f.keys.set_f32(key, 4.0F); }, {"f32 4"});
    check_key(key.c_str(), [&](SmallGguf& f) { f.keys.set_u32s(key, {}); }, {"array of 0 u32"});
  }
  for (const char* suffix : {"block_count", "embedding_length", "feed_forward_length",
                             "context_length", "attention.head_count"}) {
    const std::string key = std::string("llama.") + suffix;
    check_key(key.c_str(), [&](SmallGguf& f) { f.keys.remove_key(key); }, {"missing"});
  }
}

TEST_CASE("epsilon and rotary base must be positive numbers") {
  const std::string eps = "llama.attention.layer_norm_rms_epsilon";
  check_key(eps.c_str(), [&](SmallGguf& f) { f.keys.remove_key(eps); }, {"missing"});
  for (const float wrong : {0.0F, -1e-5F, INFINITY, NAN}) {
    check_key(eps.c_str(), [&](SmallGguf& f) { f.keys.set_f32(eps, wrong); }, {"f32"});
    check_key("llama.rope.freq_base",
              [&](SmallGguf& f) { f.keys.set_f32("llama.rope.freq_base", wrong); }, {"f32"});
  }
  check_key(eps.c_str(), [&](SmallGguf& f) { f.keys.set_u32(eps, 1); }, {"u32 1"});
}

TEST_CASE("counts that contradict each other are refused") {
  check_key("llama.attention.head_count_kv",
            [](SmallGguf& f) { f.keys.set_u32("llama.attention.head_count_kv", 3); },
            {"3", "does not divide", "llama.attention.head_count 4"});
  check_key("llama.attention.head_count_kv",
            [](SmallGguf& f) { f.keys.set_u32("llama.attention.head_count_kv", 8); },
            {"8", "does not divide"});
  check_key("llama.attention.head_count",
            [](SmallGguf& f) { f.keys.set_u32("llama.attention.head_count", 3); },
            {"3", "does not divide", "llama.embedding_length 16"});
  check_key("llama.rope.dimension_count",
            [](SmallGguf& f) { f.keys.set_u32("llama.rope.dimension_count", 3); }, {"3", "odd"});
  check_key("llama.rope.dimension_count",
            [](SmallGguf& f) { f.keys.set_u32("llama.rope.dimension_count", 6); },
            {"6", "larger than"});
  check_key("llama.attention.value_length",
            [](SmallGguf& f) { f.keys.set_u32("llama.attention.value_length", 8); },
            {"8", "differs"});
  const std::vector<int32_t> sections = {1, 1, 1, 0};
  check_refused(
      open_changed(
          "glm4", [&](SmallGguf& f) { f.keys.set_i32s("glm4.rope.dimension_sections", sections); }),
      {"glm4.rope.dimension_sections", "3 pairs", "needs 1"});
  check_key("llama.rope.dimension_sections",
            [&](SmallGguf& f) { f.keys.set_i32s("llama.rope.dimension_sections", sections); },
            {"glm4"});
}

TEST_CASE("features that would change the result are refused, never ignored") {
  check_key("llama.expert_count", [](SmallGguf& f) { f.keys.set_u32("llama.expert_count", 8); },
            {"u32 8"});
  check_key("llama.attention.causal",
            [](SmallGguf& f) { f.keys.set_bool("llama.attention.causal", false); }, {"bool false"});
  check_key("llama.final_logit_softcapping",
            [](SmallGguf& f) { f.keys.set_f32("llama.final_logit_softcapping", 30.0F); },
            {"f32 30"});
  check_key("llama.attention.sliding_window",
            [](SmallGguf& f) { f.keys.set_u32("llama.attention.sliding_window", 63); },
            {"u32 63", "64"});
  CHECK(open_changed("llama", [](SmallGguf& f) {
          f.keys.set_u32("llama.attention.sliding_window", 64);
        }).ok());
  CHECK(open_changed("llama", [](SmallGguf& f) { f.keys.set_u32("llama.expert_count", 0); }).ok());
  check_key("blk.1.ffn_up.lora_a", [](SmallGguf& f) { f.add("blk.1.ffn_up.lora_a", {4}); },
            {"not part"});
  check_key("blk.0.ffn_gate.bias", [](SmallGguf& f) { f.add("blk.0.ffn_gate.bias", {12}); },
            {"not part"});
}

TEST_CASE("every missing tensor is named") {
  for (const std::string arch : {"llama", "qwen2", "qwen3", "glm4", "chatglm"}) {
    for (const NamedTensor& tensor : SmallGguf(arch).tensors) {
      if (tensor.name == "output.weight") continue;  // then the embedding is used
      if (arch != "qwen2" && tensor.name.ends_with("qkv.bias"))
        continue;  // biases are optional but for qwen2
      const auto opened = open_changed(arch, [&](SmallGguf& f) { f.remove(tensor.name); });
      INFO(arch);
      INFO(tensor.name);
      REQUIRE_FALSE(opened.ok());
      CHECK(contains(opened.message(), "is missing"));
      const bool fused =
          arch == "chatglm" && contains(tensor.name, "attn_qkv");  // then q is looked for
      if (!fused) CHECK(contains(opened.message(), tensor.name));
    }
  }
}

TEST_CASE("every tensor of a wrong shape is named with the expected and the found shape") {
  for (const std::string arch : {"llama", "qwen2", "qwen3", "glm4", "chatglm"}) {
    for (const NamedTensor& tensor : SmallGguf(arch).tensors) {
      auto wrong_shape = tensor.shape;
      wrong_shape.back() += 2;
      const auto opened = open_changed(arch, [&](SmallGguf& f) {
        f.remove(tensor.name);
        f.add(tensor.name, wrong_shape);
      });
      INFO(arch);
      INFO(tensor.name);
      REQUIRE_FALSE(opened.ok());
      INFO(opened.message());
      const std::string last = std::to_string(wrong_shape.back()) + "]";
      CHECK(contains(opened.message(), "\"" + tensor.name + "\" has shape ["));
      CHECK(contains(opened.message(), last + ", expected ["));
    }
  }
}

TEST_CASE("more layers than tensors is a missing tensor, found without memory for the layers") {
  check_key("blk.2.attn_norm.weight",
            [](SmallGguf& f) { f.keys.set_u32("llama.block_count", 4096); }, {"missing"});
}

TEST_CASE("more tokens than rows of the embedding is refused") {
  const std::vector<std::string> tokens(11, "t");
  check_key("tokenizer.ggml.tokens",
            [&](SmallGguf& f) {
              f.keys.set_text("tokenizer.ggml.model", "llama");
              f.keys.set_texts("tokenizer.ggml.tokens", tokens);
            },
            {"11 tokens", "10 rows"});
}

TEST_CASE("files differ in their digest exactly when keys or tensor tables differ") {
  const auto one = open_changed("llama");
  const auto same = open_changed("llama");
  const auto other =
      open_changed("llama", [](SmallGguf& f) { f.keys.set_text("general.name", "x"); });
  REQUIRE((one.ok() && same.ok() && other.ok()));
  CHECK((*one)->digest().size() == 32);
  CHECK((*one)->digest() == (*same)->digest());
  CHECK((*one)->digest() != (*other)->digest());
}

TEST_CASE("paths that are no model are refused by name") {
  const TempDir dir;
  check_refused(open_model(dir.file("absent.gguf")), {"absent.gguf", "no such file"});
  write_file(dir.file("note.txt"), "hello");
  check_refused(open_model(dir.file("note.txt")), {"note.txt", "neither a GGUF file"});
  check_refused(open_model(dir.path()), {"config.json"});
  SmallGguf("llama").write(dir.file("model.bin"));  // told by its magic
  CHECK(open_model(dir.file("model.bin")).ok());
}

TEST_CASE("a vocabulary alone is no model but has hyperparameters and a tokenizer") {
  const auto path = shared_data("tokenizers/ggml-vocab-qwen2.gguf");
  if (!path) return;
  check_refused(open_model(*path), {"qwen2.block_count", "missing"});
  const auto file = GgufFile::open(*path);
  REQUIRE(file.ok());
  CHECK(read_tokenizer(**file)->tokens.size() == 151646);

  const TempDir dir;
  SmallGguf small("llama");
  small.tensors.clear();
  small.keys.set_u32("llama.vocab_size", 77);
  small.write(dir.file("vocab.gguf"));
  const auto keys = GgufFile::open(dir.file("vocab.gguf"));
  REQUIRE(keys.ok());
  CHECK(read_hyperparameters(**keys)->vocab_count == 77);
  check_refused(open_model(dir.file("vocab.gguf")), {"no tensors"});
}

namespace {

// The small llama in two parts: keys and the first tensors, then the rest.
void write_parts(const TempDir& dir, const std::function<void(GgufWriter&, int)>& change) {
  const SmallGguf whole("llama");
  const size_t half = whole.tensors.size() / 2;
  for (int part = 0; part < 2; ++part) {
    SmallGguf file("llama");
    file.tensors.assign(whole.tensors.begin() + (part == 0 ? 0 : static_cast<std::ptrdiff_t>(half)),
                        part == 0 ? whole.tensors.begin() + static_cast<std::ptrdiff_t>(half)
                                  : whole.tensors.end());
    file.keys.set_u32("split.count", 2);
    file.keys.set_u32("split.no", static_cast<uint32_t>(part));
    file.keys.set_i32("split.tensors.count", static_cast<int32_t>(whole.tensors.size()));
    change(file.keys, part);
    file.write(dir.file("m-0000" + std::to_string(part + 1) + "-of-00002.gguf"));
  }
}

}  // namespace

TEST_CASE("a model split into files opens from any of its parts") {
  const TempDir dir;
  write_parts(dir, [](GgufWriter&, int) {});
  for (const char* name : {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}) {
    const auto opened = open_model(dir.file(name));
    REQUIRE_MESSAGE(opened.ok(), opened.message());
    CHECK(values((*opened)->weights().layers[1].down) ==
          SmallGguf("llama").get("blk.1.ffn_down.weight").values);
    CHECK((*opened)->file_bytes() == read_file(dir.file("m-00001-of-00002.gguf")).size() +
                                         read_file(dir.file("m-00002-of-00002.gguf")).size());
  }
}

TEST_CASE("parts that are missing, renamed or contradict each other are refused") {
  const TempDir dir;
  const std::string first = dir.file("m-00001-of-00002.gguf");
  const std::string second = dir.file("m-00002-of-00002.gguf");
  write_parts(dir, [](GgufWriter&, int) {});
  write_file(dir.file("renamed.gguf"), read_file(first));
  check_refused(open_model(dir.file("renamed.gguf")), {"renamed.gguf", "-00001-of-00002.gguf"});
  const std::string second_bytes = read_file(second);
  write_file(second, read_file(first));
  check_refused(open_model(first), {"m-00002-of-00002.gguf", "split.no 0", "expected 1"});
  REQUIRE(std::remove(second.c_str()) == 0);
  check_refused(open_model(first), {"part 2 of 2", "m-00002-of-00002.gguf"});
  write_parts(dir, [](GgufWriter& keys, int) { keys.set_i32("split.tensors.count", 5); });
  check_refused(open_model(first), {"split.tensors.count", "5"});
  write_parts(dir, [](GgufWriter& keys, int) { keys.set_u32("split.no", 2); });
  check_refused(open_model(first), {"split.no 2"});
}
