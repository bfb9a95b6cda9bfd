// The one forward pass, for llama 2/3, qwen2/2.5, qwen3, glm4 and chatglm: which operations run in
// which order, on which weights. What differs between the architectures is data (a bias is there or
// not), so there is one path and no switch. Owned by the engine thread; the arithmetic is the
// backend's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/base/progress.h"
#include "common/base/result.h"
#include "common/model/model.h"
#include "kernels/backend.h"

namespace updraft {

struct ForwardLimits {
  int32_t rows_max = 0;        // rows of one step
  int32_t logit_rows_max = 0;  // rows with logits of one step
};

class Forward {
 public:
  // Hands the weights to the backend and takes the activation buffers. The model's views are not
  // needed afterwards. The KV pool is the caller's to make (layers, kv heads and head_dim as
  // kv_shape() says).
  static Result<Forward> create(const Model& model, Backend& backend, const ForwardLimits& limits,
                                const Progress& progress);

  // Names all operations of the step; what it gives is read from the backend: logits, tokens where
  // the batch has samplings, nothing without logit rows (then only the KV memory is written).
  void start(Backend& backend, const Batch& batch) const;
  // start(), and its logits: [logit_rows, vocab] f32 in host memory, writable, valid until the next
  // step. Empty without logit rows.
  std::span<float> run(Backend& backend, const Batch& batch) const;

  // The final norm's output of the last run that had logit rows, for tests: [rows, hidden_dim].
  Act final_hidden() const { return normed_; }
  int32_t hidden_dim() const { return hyperparameters_.hidden_dim; }

  // Bytes of the activation buffers, the engine's copy of given rows and the logits at these limits
  // (f32).
  static uint64_t activation_bytes(const Hyperparameters& hyperparameters,
                                   const ForwardLimits& limits);
  // Layer, head and dimension counts of the pool; page size, count and type are the caller's.
  static KvShape kv_shape(const Hyperparameters& hyperparameters);

 private:
  struct Layer {
    Vec attn_norm = kNoVec;  // [hidden]
    Mat qkv{-1};             // [(heads + 2 kv_heads) * head_dim, hidden]
    Vec qkv_bias = kNoVec;
    Vec q_norm = kNoVec;  // [head_dim], qwen3
    Vec k_norm = kNoVec;
    Mat o{-1};  // [hidden, heads * head_dim]
    Vec o_bias = kNoVec;
    Vec post_attn_norm = kNoVec;  // [hidden], glm4
    Vec ffn_norm = kNoVec;        // [hidden]
    Mat gate_up{-1};              // [2 * ff, hidden]
    Mat down{-1};                 // [hidden, ff]
    Vec post_ffn_norm = kNoVec;   // [hidden], glm4
  };

  Forward() = default;
  Result<void> load_layer(const LayerWeights& weights, Backend& backend);
  Result<void> load_ends(const Model& model, Backend& backend);
  Result<void> take_buffers(Backend& backend, const ForwardLimits& limits);
  void attention_block(Backend& backend, const Layer& layer, int32_t index) const;
  void ffn_block(Backend& backend, const Layer& layer) const;

  Hyperparameters hyperparameters_;
  std::vector<Layer> layers_;
  Mat embedding_{-1};        // [vocab, hidden]
  Mat head_{-1};             // [vocab, hidden]; the same matrix when tied
  Vec final_norm_ = kNoVec;  // [hidden]
  Rope rope_;

  Act hidden_ = kNoAct;    // [rows, hidden] the residual stream
  Act normed_ = kNoAct;    // [rows, hidden]
  Act qkv_ = kNoAct;       // [rows, (heads + 2 kv_heads) * head_dim]
  Act attended_ = kNoAct;  // [rows, heads * head_dim]
  Act delta_ = kNoAct;     // [rows, hidden] a block's output before it joins the residual stream
  Act ffn_ = kNoAct;       // [rows, ff]
};

}  // namespace updraft
