// A Model in memory: random small ones of any architecture, and the building block for models from
// golden files.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "common/model/model.h"
#include "kernels/quant/quant.h"

namespace updraft::testing {

class MemoryModel : public Model {
 public:
  explicit MemoryModel(const Hyperparameters& hyperparameters) {
    path_ = "memory";
    name_ = "memory";
    quantization_ = "F32";
    hyperparameters_ = hyperparameters;
    weights_.layers.resize(static_cast<size_t>(hyperparameters.layer_count));
  }
  Weights& weights() { return weights_; }
  using Model::weights;

  WeightView matrix(std::vector<float> values, int64_t rows, int64_t cols) {
    UPDRAFT_CHECK(static_cast<int64_t>(values.size()) == rows * cols);
    storage_.push_back(std::move(values));
    return {reinterpret_cast<const std::byte*>(storage_.back().data()), DType::kF32, rows, cols};
  }

 private:
  std::deque<std::vector<float>> storage_;
};

// The layers' matrices as an fp8 checkpoint has them: e4m3 with a scale per row. The memory is the
// caller's.
struct Fp8Rows {
  std::deque<std::vector<std::byte>> bytes;
  std::deque<std::vector<float>> scales;

  void convert(Weights& weights) {
    for (LayerWeights& layer : weights.layers) {
      for (WeightView* view :
           {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
        convert(*view);
      }
    }
  }
  void convert(WeightView& view) {
    std::vector<std::byte>& to = bytes.emplace_back(static_cast<size_t>(view.rows * view.cols));
    std::vector<float>& scale = scales.emplace_back();
    std::vector<float> row(static_cast<size_t>(view.cols));
    for (int64_t r = 0; r < view.rows; ++r) {
      dequantize_row(view, r, row);
      float largest = 0.0F;
      for (const float v : row) largest = std::max(largest, std::abs(v));
      scale.push_back(largest / 448.0F);
      for (float& v : row) v /= scale.back();
      quantize_row(DType::kF8_E4M3, row, to.data() + r * view.cols);
    }
    view.data = to.data();
    view.type = DType::kF8_E4M3;
    view.row_scales = scale.data();
  }
};

inline Hyperparameters small_hyperparameters(Architecture architecture = Architecture::kLlama) {
  Hyperparameters h;
  h.architecture = architecture;
  h.layer_count = 2;
  h.hidden_dim = 32;
  h.ff_dim = 64;
  h.head_count = 4;
  h.kv_head_count = 2;
  h.head_dim = 16;
  h.vocab_count = 96;
  h.context_tokens = 256;
  h.norm_eps = 1e-5F;
  h.rope_dims = 16;
  return h;
}

// Random weights, large enough that greedy decoding wanders instead of repeating one token.
inline std::shared_ptr<MemoryModel> random_model(const Hyperparameters& h, uint32_t seed) {
  auto model = std::make_shared<MemoryModel>(h);
  std::mt19937 random(seed);
  const auto values = [&](int64_t count, float scale, float mean) {
    std::normal_distribution<float> normal(mean, scale);
    std::vector<float> out(static_cast<size_t>(count));
    for (float& value : out) value = normal(random);
    return out;
  };
  const auto matrix = [&](int64_t rows, int64_t cols) {
    return model->matrix(values(rows * cols, 1.5F / std::sqrt(static_cast<float>(cols)), 0.0F),
                         rows, cols);
  };
  const auto norm = [&](int64_t dim) { return values(dim, 0.1F, 1.0F); };
  Weights& w = model->weights();
  const int64_t q_rows = int64_t{h.head_count} * h.head_dim;
  const int64_t kv_rows = int64_t{h.kv_head_count} * h.head_dim;
  w.embedding = model->matrix(values(int64_t{h.vocab_count} * h.hidden_dim, 1.0F, 0.0F),
                              h.vocab_count, h.hidden_dim);
  w.head = h.tied_embeddings ? w.embedding : matrix(h.vocab_count, h.hidden_dim);
  w.final_norm = norm(h.hidden_dim);
  for (LayerWeights& layer : w.layers) {
    layer.attn_norm = norm(h.hidden_dim);
    layer.q = matrix(q_rows, h.hidden_dim);
    layer.k = matrix(kv_rows, h.hidden_dim);
    layer.v = matrix(kv_rows, h.hidden_dim);
    layer.o = matrix(h.hidden_dim, q_rows);
    layer.ffn_norm = norm(h.hidden_dim);
    layer.gate = matrix(h.ff_dim, h.hidden_dim);
    layer.up = matrix(h.ff_dim, h.hidden_dim);
    layer.down = matrix(h.hidden_dim, h.ff_dim);
    if (h.architecture == Architecture::kQwen2 || h.architecture == Architecture::kGlm4) {
      layer.q_bias = values(q_rows, 0.5F, 0.0F);
      layer.k_bias = values(kv_rows, 0.5F, 0.0F);
      layer.v_bias = values(kv_rows, 0.5F, 0.0F);
    }
    if (h.architecture == Architecture::kQwen3) {
      layer.q_norm = norm(h.head_dim);
      layer.k_norm = norm(h.head_dim);
    }
    if (h.architecture == Architecture::kGlm4) {
      layer.post_attn_norm = norm(h.hidden_dim);
      layer.post_ffn_norm = norm(h.hidden_dim);
    }
  }
  return model;
}

}  // namespace updraft::testing
