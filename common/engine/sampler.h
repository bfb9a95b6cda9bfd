// The sampler: one row of logits to one token. Owned by the engine thread, one Sampler per
// sequence; pure but for its counts of the tokens seen so far. The same (logits, seed, position,
// tokens so far) always give the same token.
//
// Order of operations, which is vLLM's: log-probabilities from the raw logits (before any of the
// below); banned ids; logit_bias; repetition, frequency and presence penalties (also when greedy);
// temperature; min_p; top_k; top_p; draw. The draw walks what is left in the order of ids.
//
// A device that samples (Backend::samples()) does the same from temperature on with the same draw,
// so it gives the same token; the two may differ where a cut or the draw falls between two tokens
// within their rounding (float probabilities here, 40-bit integers in kernels/cuda/sample.h).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/engine/engine.h"
#include "common/message/request.h"
#include "kernels/backend.h"

namespace updraft {

// Temperatures below this are greedy: dividing by them gives a one-hot distribution anyway, but may
// overflow.
inline constexpr float kGreedyTemperature = 1e-5F;

// Log-probability of `id` and the `top_count` likeliest tokens (ties: smaller id first) under
// softmax(logits), natural log. NaN or +infinity among the logits gives a logprob that is NaN.
SampledToken logprobs_of(std::span<const float> logits, int32_t id, int32_t top_count);

class Sampler {
 public:
  // prompt: its tokens count for the repetition penalty (not for frequency and presence); ids below
  // 0 are none.
  // logit_bias ids lie within the vocabulary (the caller checked), banned_ids beyond it are
  // ignored.
  Sampler(const Sampling& sampling, std::span<const int32_t> prompt,
          std::span<const int32_t> banned_ids, uint64_t seed);

  // The token at `position` of the sequence (prompt tokens counted). Overwrites `logits` [vocab].
  // Errors: a logit is NaN or +infinity (a damaged file, an overflow), or every token is ruled out.
  Result<SampledToken> sample(std::span<float> logits, int64_t position);

  // Whether a device can do it that never gives `banned_ids`: it knows no penalties, no bias and no
  // log-probabilities.
  bool device_can(std::span<const int32_t> banned_ids) const;
  // What such a device needs to know for the token at `position`.
  RowSampling row_sampling(int64_t position) const;

  // A token became part of the answer: sampled here, or taken over from elsewhere.
  void accept(int32_t id);

 private:
  void apply_bans_and_bias(std::span<float> logits) const;
  void apply_penalties(std::span<float> logits) const;
  int32_t draw(std::span<const float> logits, float max_logit, double uniform);

  Sampling sampling_;
  std::vector<int32_t> banned_ids_;
  uint64_t seed_;
  std::vector<int32_t> prompt_ids_;  // distinct, ascending; only with a repetition penalty
  std::unordered_map<int32_t, int32_t> generated_counts_;  // only with a penalty
  std::vector<std::pair<float, int32_t>> candidates_;      // scratch: (probability, id)
};

}  // namespace updraft
