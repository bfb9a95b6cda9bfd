// The forward pass. Each residual addition is fused with the norm that follows it, so a block ends
// with its output in delta_ and the next residual_norm adds it.
#include "common/engine/forward.h"

#include <array>
#include <cmath>
#include <cstddef>
#include <string>

#include "common/base/check.h"
#include "common/engine/rope.h"

namespace updraft {
namespace {

// The inner dimension is cut into pieces of this many columns, whole blocks of every weight format,
// or less where that does not divide it: the formats that its matrices can have then have smaller
// blocks.
int32_t split_cols(int32_t ff_dim) {
  for (int32_t cols = 256; cols >= 16; cols /= 2) {
    if (ff_dim % cols == 0) return cols;
  }
  return ff_dim;
}

// kNoVec for an architecture that has no such vector.
Result<Vec> add_optional(Backend& backend, std::span<const float> values) {
  if (values.empty()) return kNoVec;
  return backend.add_vector(values);
}

uint64_t view_bytes(const WeightView& view) {
  return static_cast<uint64_t>(view.rows) * static_cast<uint64_t>(row_bytes(view.type, view.cols));
}

std::array<const WeightView*, 7> matrices_of(const LayerWeights& layer) {
  return {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down};
}

uint64_t layer_bytes(const LayerWeights& layer) {
  uint64_t sum = 0;
  for (const WeightView* view : matrices_of(layer)) sum += view_bytes(*view);
  return sum;
}

// Biases of q, k and v as one vector, zeros where one of them has none; empty when none has.
std::vector<float> joined_bias(const LayerWeights& weights) {
  if (weights.q_bias.empty() && weights.k_bias.empty() && weights.v_bias.empty()) return {};
  std::vector<float> out;
  const auto append = [&](const std::vector<float>& bias, const WeightView& matrix) {
    const auto rows = static_cast<size_t>(matrix.rows);
    UPDRAFT_CHECK(bias.empty() || bias.size() == rows, "the loader checks shapes");
    if (bias.empty()) {
      out.resize(out.size() + rows, 0.0F);
    } else {
      out.insert(out.end(), bias.begin(), bias.end());
    }
  };
  append(weights.q_bias, weights.q);
  append(weights.k_bias, weights.k);
  append(weights.v_bias, weights.v);
  return out;
}

}  // namespace

Result<Forward> Forward::create(const Model& model, Backend& backend, const ForwardLimits& limits,
                                const Progress& progress) {
  UPDRAFT_CHECK(limits.rows_max > 0 && limits.logit_rows_max > 0);
  Forward forward;
  forward.hyperparameters_ = model.hyperparameters();
  const Weights& weights = model.weights();

  uint64_t total_bytes = view_bytes(weights.embedding);
  for (const LayerWeights& layer : weights.layers) total_bytes += layer_bytes(layer);
  uint64_t done_bytes = 0;
  const auto report = [&](uint64_t bytes) {
    done_bytes += bytes;
    if (progress) progress("loading weights", done_bytes, total_bytes);
  };
  // The largest first: a matrix is in memory twice while it is copied, and so that is over before
  // the others are there.
  if (const auto loaded = forward.load_ends(model, backend); !loaded)
    return loaded.error(model.path());
  report(view_bytes(weights.embedding));
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    if (i + 1 < weights.layers.size()) {
      for (const WeightView* view : matrices_of(weights.layers[i + 1])) model.will_read(*view);
    }
    if (const auto loaded = forward.load_layer(weights.layers[i], backend); !loaded) {
      return loaded.error(model.path() + ": layer " + std::to_string(i));
    }
    for (const WeightView* view : matrices_of(weights.layers[i])) model.was_read(*view);
    report(layer_bytes(weights.layers[i]));
  }
  if (const auto taken = forward.take_buffers(backend, limits); !taken) return taken.error();
  return forward;
}

Result<void> Forward::load_layer(const LayerWeights& weights, Backend& backend) {
  Layer layer;
  Result<void> failed;
  const Hyperparameters& h = hyperparameters_;
  const int32_t heads_per_kv = h.head_count / h.kv_head_count;
  const int32_t ff_pieces = h.ff_dim / split_cols(h.ff_dim);
  const auto matrix = [&](Mat& out, std::span<const WeightView> parts, const Split& split) {
    if (!failed) return;
    const auto added = backend.add_split_matrix(parts, split);
    if (added) {
      out = *added;
    } else {
      failed = added.error();
    }
  };
  const auto vector = [&](Vec& out, std::span<const float> values) {
    if (!failed) return;
    const auto added = add_optional(backend, values);
    if (added) {
      out = *added;
    } else {
      failed = added.error();
    }
  };
  const auto bias = [&](Vec& out, Mat of, std::span<const float> values) {
    if (!failed || values.empty()) return;
    const auto added = backend.add_bias(of, values);
    if (added) {
      out = *added;
    } else {
      failed = added.error();
    }
  };
  const WeightView qkv[] = {weights.q, weights.k, weights.v};
  const WeightView gate_up[] = {weights.gate, weights.up};
  vector(layer.attn_norm, weights.attn_norm);
  matrix(layer.qkv, qkv, {Split::By::kRows, h.head_count, heads_per_kv});
  bias(layer.qkv_bias, layer.qkv, joined_bias(weights));
  vector(layer.q_norm, weights.q_norm);
  vector(layer.k_norm, weights.k_norm);
  matrix(layer.o, {&weights.o, 1}, {Split::By::kCols, h.head_count, heads_per_kv});
  bias(layer.o_bias, layer.o, weights.o_bias);
  vector(layer.post_attn_norm, weights.post_attn_norm);
  vector(layer.ffn_norm, weights.ffn_norm);
  matrix(layer.gate_up, gate_up, {Split::By::kRows, ff_pieces, 1});
  matrix(layer.down, {&weights.down, 1}, {Split::By::kCols, ff_pieces, 1});
  vector(layer.post_ffn_norm, weights.post_ffn_norm);
  layers_.push_back(layer);
  return failed;
}

Result<void> Forward::load_ends(const Model& model, Backend& backend) {
  const Weights& weights = model.weights();
  const auto embedding = backend.add_matrix({&weights.embedding, 1});
  if (!embedding) return embedding.error("embedding");
  model.was_read(weights.embedding);
  embedding_ = *embedding;
  head_ = embedding_;
  if (weights.head.data != weights.embedding.data) {
    const auto head = backend.add_matrix({&weights.head, 1});
    if (!head) return head.error("head");
    model.was_read(weights.head);
    head_ = *head;
  }
  const auto final_norm = backend.add_vector(weights.final_norm);
  if (!final_norm) return final_norm.error("final norm");
  final_norm_ = *final_norm;

  const RopeFrequencies frequencies = rope_frequencies(hyperparameters_, weights.rope_divisors);
  const auto inverse = backend.add_vector(frequencies.inverse);
  if (!inverse) return inverse.error("rotary frequencies");
  rope_.style = hyperparameters_.rope_style;
  rope_.rope_dims = hyperparameters_.rope_dims;
  rope_.inverse_frequency = *inverse;
  rope_.magnitude = frequencies.magnitude;
  // A fourth section has no position of its own in any model that is known here.
  const auto& sections = hyperparameters_.mrope_sections;
  if (sections[3] == 0) rope_.sections = {sections[0], sections[1], sections[2]};
  return {};
}

Result<void> Forward::take_buffers(Backend& backend, const ForwardLimits& limits) {
  const Hyperparameters& h = hyperparameters_;
  const int64_t q_cols = int64_t{h.head_count} * h.head_dim;
  const int64_t kv_cols = int64_t{h.kv_head_count} * h.head_dim;
  const auto take = [&](Act& out, int64_t cols) -> Result<void> {
    const auto taken = backend.add_activation(limits.rows_max, cols);
    if (!taken) return taken.error("activations");
    out = *taken;
    return {};
  };
  // What the first `part_count` parts of a matrix make.
  const auto take_split = [&](Act& out, int64_t cols, Mat matrix,
                              int32_t part_count) -> Result<void> {
    const auto taken = backend.add_split_activation(limits.rows_max, cols, matrix, part_count);
    if (!taken) return taken.error("activations");
    out = *taken;
    return {};
  };
  const auto residual = backend.add_residual(limits.rows_max, h.hidden_dim);
  if (!residual) return residual.error("activations");
  hidden_ = *residual;
  for (Act* act : {&normed_, &delta_}) {
    if (const auto taken = take(*act, h.hidden_dim); !taken) return taken;
  }
  const Layer& layer = layers_.front();
  if (const auto taken = take_split(qkv_, q_cols + 2 * kv_cols, layer.qkv, 3); !taken) return taken;
  if (const auto taken = take_split(attended_, q_cols, layer.qkv, 1); !taken) return taken;
  if (const auto taken = take_split(ffn_, h.ff_dim, layer.gate_up, 1); !taken) return taken;
  return backend.reserve_logits(limits.logit_rows_max, h.vocab_count);
}

std::span<float> Forward::run(Backend& backend, const Batch& batch) const {
  start(backend, batch);
  return backend.read_logits();
}

void Forward::start(Backend& backend, const Batch& batch) const {
  const float eps = hyperparameters_.norm_eps;
  const bool wants_logits = !batch.logit_rows.empty();
  backend.begin(batch);
  backend.embed(embedding_, hidden_);
  Act delta = kNoAct;  // the block before the first has no output
  Vec delta_norm = kNoVec;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    backend.residual_norm({hidden_, delta, delta_norm, layer.attn_norm, eps, normed_});
    backend.matmul(layer.qkv, layer.qkv_bias, normed_, qkv_);
    backend.prepare_qkv({qkv_, static_cast<int32_t>(i), hyperparameters_.head_count, layer.q_norm,
                         layer.k_norm, eps, rope_});
    // A chunk in the middle of a prompt leaves nothing but K and V behind, and the last of them are
    // written now.
    if (!wants_logits && i + 1 == layers_.size()) break;
    attention_block(backend, layer, static_cast<int32_t>(i));
    backend.residual_norm({hidden_, delta_, layer.post_attn_norm, layer.ffn_norm, eps, normed_});
    ffn_block(backend, layer);
    delta = delta_;
    delta_norm = layer.post_ffn_norm;
  }
  if (wants_logits) {
    backend.residual_norm({hidden_, delta, delta_norm, final_norm_, eps, normed_});
    backend.logits(head_, normed_);
  }
  backend.end();
}

void Forward::attention_block(Backend& backend, const Layer& layer, int32_t index) const {
  const float scale = 1.0F / std::sqrt(static_cast<float>(hyperparameters_.head_dim));
  backend.attention({qkv_, index, hyperparameters_.head_count, scale, attended_});
  backend.matmul(layer.o, layer.o_bias, attended_, delta_);
  backend.all_reduce(delta_);
}

void Forward::ffn_block(Backend& backend, const Layer& layer) const {
  backend.gated_matmul(layer.gate_up, normed_, ffn_);
  backend.matmul(layer.down, kNoVec, ffn_, delta_);
  backend.all_reduce(delta_);
}

uint64_t Forward::activation_bytes(const Hyperparameters& h, const ForwardLimits& limits) {
  const uint64_t q_cols = uint64_t(h.head_count) * uint64_t(h.head_dim);
  const uint64_t kv_cols = uint64_t(h.kv_head_count) * uint64_t(h.head_dim);
  const uint64_t cols = 4 * uint64_t(h.hidden_dim) + 2 * q_cols + 2 * kv_cols + uint64_t(h.ff_dim);
  return sizeof(float) * (uint64_t(limits.rows_max) * cols +
                          uint64_t(limits.logit_rows_max) * uint64_t(h.vocab_count));
}

KvShape Forward::kv_shape(const Hyperparameters& h) {
  KvShape shape;
  shape.layer_count = h.layer_count;
  shape.kv_head_count = h.kv_head_count;
  shape.head_dim = h.head_dim;
  shape.head_count = h.head_count;
  return shape;
}

}  // namespace updraft
