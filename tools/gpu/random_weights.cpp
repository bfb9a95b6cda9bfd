#include "tools/gpu/random_weights.h"

#include <cmath>
#include <cstring>
#include <random>

#include "kernels/quant/quant.h"

namespace updraft::gpu {
namespace {

struct Named {
  const char* name;
  Architecture architecture;
  int32_t layers, hidden, ff, heads, kv_heads, head_dim, vocab, rope_dims;
  RopeStyle style;
};

constexpr Named kShapes[] = {
    {"glm-4-9b", Architecture::kGlm4, 40, 4096, 13696, 32, 2, 128, 151552, 64,
     RopeStyle::kInterleaved},
    {"llama-2-7b", Architecture::kLlama, 32, 4096, 11008, 32, 32, 128, 32000, 128,
     RopeStyle::kHalf},
    {"qwen2.5-7b", Architecture::kQwen2, 28, 3584, 18944, 28, 4, 128, 152064, 128,
     RopeStyle::kHalf},
    {"qwen3-8b", Architecture::kQwen3, 36, 4096, 12288, 32, 8, 128, 151936, 128, RopeStyle::kHalf},
    {"small", Architecture::kGlm4, 2, 256, 512, 4, 2, 64, 512, 32, RopeStyle::kInterleaved},
};

}  // namespace

Result<Hyperparameters> shape_of(const std::string& name) {
  std::string known;
  for (const Named& shape : kShapes) {
    known += (known.empty() ? "" : ", ") + std::string(shape.name);
    if (name != shape.name) continue;
    Hyperparameters h;
    h.architecture = shape.architecture;
    h.layer_count = shape.layers;
    h.hidden_dim = shape.hidden;
    h.ff_dim = shape.ff;
    h.head_count = shape.heads;
    h.kv_head_count = shape.kv_heads;
    h.head_dim = shape.head_dim;
    h.vocab_count = shape.vocab;
    h.rope_dims = shape.rope_dims;
    h.rope_style = shape.style;
    h.context_tokens = 32768 + 256;
    h.norm_eps = 1e-5F;
    return h;
  }
  return fail("shape '" + name + "' is not known (" + known + ")");
}

// Random rows are quantised once and repeated: the bytes differ within a matrix as much as a
// device could notice.
WeightView RandomWeights::matrix(DType type, int64_t rows, int64_t cols) {
  constexpr int64_t kDistinctRows = 64;
  std::mt19937 random(static_cast<uint32_t>(rows * 31 + cols));
  std::normal_distribution<float> normal(0.0F, 1.0F / std::sqrt(static_cast<float>(cols)));
  const auto bytes = static_cast<size_t>(row_bytes(type, cols));
  std::vector<std::byte> distinct(static_cast<size_t>(kDistinctRows) * bytes);
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < kDistinctRows; ++r) {
    for (float& value : row) value = normal(random);
    quantize_row(type, row, distinct.data() + static_cast<size_t>(r) * bytes);
  }
  std::vector<std::byte> all(static_cast<size_t>(rows) * bytes);
  for (int64_t r = 0; r < rows; ++r) {
    const auto from = static_cast<size_t>(random() % kDistinctRows);
    std::memcpy(all.data() + static_cast<size_t>(r) * bytes, distinct.data() + from * bytes, bytes);
  }
  storage_.push_back(std::move(all));
  return {storage_.back().data(), type, rows, cols};
}

Result<std::shared_ptr<const Model>> RandomWeights::make(const std::string& name,
                                                         const Hyperparameters& h, DType type) {
  const int64_t block = dtype_info(type).block_elems;
  for (const int64_t cols : {h.hidden_dim, h.ff_dim, h.head_count * h.head_dim}) {
    if (cols % block != 0) {
      return fail("random " + name + ": " + std::to_string(cols) +
                  " columns are no whole blocks of " + dtype_info(type).name);
    }
  }
  auto model = std::make_shared<RandomWeights>();
  model->path_ = model->name_ = "random " + name;
  model->quantization_ = dtype_info(type).name;
  model->hyperparameters_ = h;
  Weights& w = model->weights_;
  const int64_t q_rows = int64_t{h.head_count} * h.head_dim;
  const int64_t kv_rows = int64_t{h.kv_head_count} * h.head_dim;
  const std::vector<float> ones(static_cast<size_t>(h.hidden_dim), 1.0F);
  w.embedding = model->matrix(type, h.vocab_count, h.hidden_dim);
  w.head = model->matrix(type, h.vocab_count, h.hidden_dim);
  w.final_norm = ones;
  LayerWeights layer;
  layer.attn_norm = layer.ffn_norm = ones;
  layer.q = model->matrix(type, q_rows, h.hidden_dim);
  layer.k = model->matrix(type, kv_rows, h.hidden_dim);
  layer.v = model->matrix(type, kv_rows, h.hidden_dim);
  layer.o = model->matrix(type, h.hidden_dim, q_rows);
  layer.gate = model->matrix(type, h.ff_dim, h.hidden_dim);
  layer.up = model->matrix(type, h.ff_dim, h.hidden_dim);
  layer.down = model->matrix(type, h.hidden_dim, h.ff_dim);
  if (h.architecture == Architecture::kQwen2 || h.architecture == Architecture::kGlm4) {
    layer.q_bias.assign(static_cast<size_t>(q_rows), 0.1F);
    layer.k_bias.assign(static_cast<size_t>(kv_rows), 0.1F);
    layer.v_bias.assign(static_cast<size_t>(kv_rows), 0.1F);
  }
  if (h.architecture == Architecture::kQwen3)
    layer.q_norm = layer.k_norm = std::vector<float>(static_cast<size_t>(h.head_dim), 1.0F);
  if (h.architecture == Architecture::kGlm4) layer.post_attn_norm = layer.post_ffn_norm = ones;
  w.layers.assign(static_cast<size_t>(h.layer_count), layer);
  const int64_t per_layer = (q_rows * 2 + kv_rows * 2 + 3 * int64_t{h.ff_dim}) * h.hidden_dim;
  model->parameter_count_ =
      static_cast<uint64_t>(h.layer_count * per_layer + 2 * int64_t{h.vocab_count} * h.hidden_dim);
  for (const auto& bytes : model->storage_) model->file_bytes_ += bytes.size();
  return std::shared_ptr<const Model>(std::move(model));
}

}  // namespace updraft::gpu
