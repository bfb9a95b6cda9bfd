// Checkpoints with e4m3 weights: their three kinds of scales, and what is refused of them.
#include "common/model/fp8_weights.h"

#include <doctest/doctest.h>

#include <cmath>

#include "common/model/model.h"
#include "tests/common/model/model_files.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

constexpr int64_t kHidden = 40;
constexpr int64_t kFf = 24;

std::string config_of(const std::string& quantization) {
  return R"({"model_type":"llama","num_hidden_layers":1,"hidden_size":40,"intermediate_size":24,
    "num_attention_heads":4,"num_key_value_heads":2,"head_dim":8,"vocab_size":10,
    "max_position_embeddings":64,"rms_norm_eps":1e-5)" +
         (quantization.empty() ? "" : R"(,"quantization_config":)" + quantization) + "}";
}

// Every matrix of the layer in e4m3, with the scales of `scale_shape` at `suffix`.
struct Checkpoint {
  std::vector<NamedTensor> tensors;

  NamedTensor& add(const std::string& name, std::vector<uint64_t> shape, DType type) {
    tensors.push_back(patterned(name, std::move(shape), tensors.size()));
    tensors.back().type = type;
    return tensors.back();
  }
  NamedTensor& at(const std::string& name) {
    for (NamedTensor& tensor : tensors) {
      if (tensor.name == name) return tensor;
    }
    FAIL("no tensor ", name);
    return tensors.front();
  }
  template <typename ScaleShape>
  Checkpoint(const std::string& suffix, DType scale_type, ScaleShape scale_shape) {
    add("model.embed_tokens.weight", {10, kHidden}, DType::kBF16);
    add("model.norm.weight", {kHidden}, DType::kF32);
    add("lm_head.weight", {10, kHidden}, DType::kBF16);
    const std::string p = "model.layers.0.";
    add(p + "input_layernorm.weight", {kHidden}, DType::kF32);
    add(p + "post_attention_layernorm.weight", {kHidden}, DType::kF32);
    const auto matrix = [&](const std::string& name, uint64_t rows, uint64_t cols) {
      add(p + name + ".weight", {rows, cols}, DType::kF8_E4M3);
      NamedTensor& scale = add(p + name + suffix, scale_shape(rows, cols), scale_type);
      for (float& v : scale.values) v = std::abs(v) / 8 + 0.25F;
    };
    matrix("self_attn.q_proj", 32, kHidden);
    matrix("self_attn.k_proj", 16, kHidden);
    matrix("self_attn.v_proj", 16, kHidden);
    matrix("self_attn.o_proj", kHidden, 32);
    matrix("mlp.gate_proj", kFf, kHidden);
    matrix("mlp.up_proj", kFf, kHidden);
    matrix("mlp.down_proj", kHidden, kFf);
  }
};

Result<std::shared_ptr<const Model>> open_bytes(const std::string& config,
                                                const std::string& bytes) {
  const TempDir dir;
  write_file(dir.file("config.json"), config);
  write_file(dir.file("model.safetensors"), bytes);
  return open_model(dir.path());
}
Result<std::shared_ptr<const Model>> open_checkpoint(const std::string& config,
                                                     const Checkpoint& checkpoint) {
  return open_bytes(config, safetensors(checkpoint.tensors));
}

const char* const kFine = R"({"quant_method":"fp8","weight_block_size":[16,8],"fmt":"e4m3",
  "activation_scheme":"dynamic","modules_to_not_convert":["lm_head"]})";
const char* const kRows = R"({"quant_method":"fbgemm_fp8","activation_scale_ub":1200.0})";
const char* const kTensor = R"({"quant_method":"fp8","activation_scheme":"static"})";

const auto kBlockShape = [](uint64_t rows, uint64_t cols) {
  return std::vector<uint64_t>{(rows + 15) / 16, (cols + 7) / 8};
};
const auto kRowShape = [](uint64_t rows, uint64_t) { return std::vector<uint64_t>{rows, 1}; };
const auto kOne = [](uint64_t, uint64_t) { return std::vector<uint64_t>{1}; };
const auto kScalar = [](uint64_t, uint64_t) { return std::vector<uint64_t>{}; };

// Of a matrix: the largest difference from byte times scale, relative.
double worst(const WeightView& view, Checkpoint& checkpoint, const std::string& name,
             const std::string& suffix, const std::function<size_t(int64_t, int64_t)>& scale_of) {
  const std::vector<std::byte> bytes = checkpoint.at(name + ".weight").encoded();
  const NamedTensor& scale = checkpoint.at(name + suffix);
  std::vector<float> scales(scale.values.size());
  dequantize_row(scale.type, scale.encoded().data(), scales);
  double out = 0;
  std::vector<float> row(static_cast<size_t>(view.cols));
  for (int64_t r = 0; r < view.rows; ++r) {
    dequantize_row(view, r, row);
    for (int64_t c = 0; c < view.cols; ++c) {
      const double expected =
          static_cast<double>(
              f8_to_float(static_cast<uint8_t>(bytes[static_cast<size_t>(r * view.cols + c)]))) *
          static_cast<double>(scales.at(scale_of(r, c)));
      const double off = std::abs(static_cast<double>(row[static_cast<size_t>(c)]) - expected);
      out = std::max(out, expected == 0 ? off : off / std::abs(expected));
    }
  }
  return out;
}

}  // namespace

TEST_CASE("scales of rows and of whole matrices stay beside their bytes") {
  struct Case {
    const char* config;
    const char* suffix;
    DType type;
    std::function<std::vector<uint64_t>(uint64_t, uint64_t)> shape;
    bool of_rows;
  };
  const std::string compressed =
      R"({"quant_method":"compressed-tensors","format":"float-quantized"})";
  for (const Case& c : {Case{kRows, ".weight_scale", DType::kF32, kRowShape, true},
                        Case{compressed.c_str(), ".weight_scale", DType::kBF16, kRowShape, true},
                        Case{kTensor, ".weight_scale", DType::kF32, kOne, false},
                        Case{kTensor, ".weight_scale_inv", DType::kF16, kScalar, false}}) {
    CAPTURE(c.config);
    Checkpoint checkpoint(c.suffix, c.type, c.shape);
    const auto model = open_checkpoint(config_of(c.config), checkpoint);
    REQUIRE_MESSAGE(model.ok(), model.message());
    CHECK((*model)->quantization() == "F8_E4M3");
    const LayerWeights& layer = (*model)->weights().layers[0];
    for (const auto& [view, name] :
         {std::pair(layer.q, "self_attn.q_proj"), std::pair(layer.o, "self_attn.o_proj"),
          std::pair(layer.up, "mlp.up_proj"), std::pair(layer.down, "mlp.down_proj")}) {
      CAPTURE(name);
      CHECK(view.type == DType::kF8_E4M3);
      CHECK(worst(view, checkpoint, std::string("model.layers.0.") + name, c.suffix,
                  [&](int64_t r, int64_t) { return c.of_rows ? static_cast<size_t>(r) : 0; }) <
            1e-7);
    }
    CHECK((*model)->weights().head.type == DType::kBF16);
  }
}

TEST_CASE("scales of blocks are multiplied in, up to a rounding to bfloat16") {
  Checkpoint checkpoint(".weight_scale_inv", DType::kF32, kBlockShape);
  const auto model = open_checkpoint(config_of(kFine), checkpoint);
  REQUIRE_MESSAGE(model.ok(), model.message());
  const LayerWeights& layer = (*model)->weights().layers[0];
  for (const auto& [view, name] :
       {std::pair(layer.q, "self_attn.q_proj"),
        std::pair(layer.gate, "mlp.gate_proj"),  // 24 rows: a block and a half
        std::pair(layer.down, "mlp.down_proj")}) {
    CAPTURE(name);
    CHECK(view.type == DType::kBF16);
    const auto blocks = static_cast<size_t>((view.cols + 7) / 8);
    CHECK(worst(view, checkpoint, std::string("model.layers.0.") + name, ".weight_scale_inv",
                [&](int64_t r, int64_t c) {
                  return static_cast<size_t>(r / 16) * blocks + static_cast<size_t>(c / 8);
                }) <= 1.0 / 256);
  }
}

TEST_CASE("static scales of activations are left aside, other leftovers are refused") {
  Checkpoint checkpoint(".weight_scale", DType::kF32, kOne);
  checkpoint.add("model.layers.0.mlp.up_proj.input_scale", {1}, DType::kF32);
  CHECK(open_checkpoint(config_of(kTensor), checkpoint).ok());
  checkpoint.add("model.layers.0.self_attn.k_proj.k_scale", {1}, DType::kF32);
  check_refused(open_checkpoint(config_of(kTensor), checkpoint), {"k_proj.k_scale"});
}

TEST_CASE("a byte that is NaN is refused by its tensor and place") {
  const Checkpoint checkpoint(".weight_scale", DType::kF32, kRowShape);
  const std::string whole = safetensors(checkpoint.tensors);
  // The last matrix's bytes and its scales (40 floats) end the file.
  const size_t first = whole.size() - kHidden * 4 - kHidden * kFf;
  for (const auto& [row, col, byte] :
       {std::tuple(0, 0, "7f"), std::tuple(17, 5, "ff"), std::tuple(39, 23, "7f")}) {
    std::string bytes = whole;
    bytes[first + static_cast<size_t>(row * kFf + col)] = byte[0] == '7' ? '\x7F' : '\xFF';
    const std::string place = "row " + std::to_string(row) + ", column " + std::to_string(col);
    check_refused(
        open_bytes(config_of(kRows), bytes),
        {"model.layers.0.mlp.down_proj.weight", place.c_str(), (std::string("0x") + byte).c_str()});
  }
}

TEST_CASE("scales that are none, and forms that are not known, are refused by name") {
  const std::string name = "model.layers.0.mlp.up_proj.weight_scale";
  for (const float bad : {NAN, INFINITY, -0.5F}) {
    Checkpoint checkpoint(".weight_scale", DType::kF32, kRowShape);
    checkpoint.at(name).values[7] = bad;
    check_refused(open_checkpoint(config_of(kRows), checkpoint), {name.c_str(), "index 7"});
  }
  Checkpoint shape(".weight_scale", DType::kF32, kRowShape);
  shape.at(name).shape = {3, 8};
  check_refused(open_checkpoint(config_of(kRows), shape),
                {name.c_str(), "[3, 8]", "[24, 1]", "[1, 1]"});
  Checkpoint type(".weight_scale", DType::kF32, kRowShape);
  type.at(name).type = DType::kF8_E4M3;
  check_refused(open_checkpoint(config_of(kRows), type), {"up_proj.weight_scale"});
  Checkpoint none(".weight_scales", DType::kF32, kRowShape);
  check_refused(open_checkpoint(config_of(kRows), none),
                {".weight\" has format F8_E4M3", "neither"});
  Checkpoint both(".weight_scale", DType::kF32, kRowShape);
  both.add(name + "_inv", {24, 1}, DType::kF32);
  check_refused(open_checkpoint(config_of(kRows), both), {"both"});
  const Checkpoint good(".weight_scale", DType::kF32, kRowShape);
  check_refused(open_checkpoint(config_of(""), good), {"F8_E4M3", "quantization_config"});
  check_refused(open_checkpoint(config_of(R"({"quant_method":"fp8","fmt":"e5m2"})"), good),
                {"e5m2"});
  check_refused(
      open_checkpoint(config_of(R"({"quant_method":"fp8","weight_block_size":[128,0]})"), good),
      {"weight_block_size", "0"});
  check_refused(
      open_checkpoint(config_of(R"({"quant_method":"fp8","weight_block_size":[128]})"), good),
      {"weight_block_size", "1 sides"});
  check_refused(
      open_checkpoint(
          config_of(R"({"quant_method":"compressed-tensors","format":"pack-quantized"})"), good),
      {"compressed-tensors", "pack-quantized"});
  Checkpoint vector(".weight_scale", DType::kF32, kRowShape);
  vector.at("model.norm.weight").type = DType::kF8_E4M3;
  check_refused(open_checkpoint(config_of(kRows), vector), {"model.norm.weight", "[40]"});
}
