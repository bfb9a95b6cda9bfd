// From logits to the next token, on the device: the token can be the next step's input before the
// host has seen it.
#pragma once

#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

// How one row is sampled: temperature, then min_p, top_k, top_p, then a draw.
struct SampleRow {
  float temperature;  // below 1e-5: greedy
  float min_p;        // tokens less likely than min_p times the likeliest are left out; 0: none
  float top_p;        // of what is left, the likeliest whose probabilities reach top_p; 1: all
  int32_t top_k;   // of what is left, the top_k likeliest; 0: all. Among equals the smaller id is
                   // likelier
  double uniform;  // [0, 1): the draw, made from (seed, position)
};

struct Sample {
  int32_t rows = 0;
  int32_t vocab = 0;
  // [rows, vocab], 16-byte aligned, penalties and bans applied; -infinity: never.
  const float* logits = nullptr;
  const SampleRow* how = nullptr;  // [rows]
  int32_t* tokens = nullptr;       // [rows]; -1: a logit is NaN or +infinity, or all are -infinity
};

// Exact: no candidate list of limited length. Probabilities are integers (2^40 for the likeliest
// token), so sums do not depend on the order of additions. The draw walks the kept tokens in order
// of id.
Result<void> run_sample(const Sample& op, Stream stream);

}  // namespace updraft::cuda
