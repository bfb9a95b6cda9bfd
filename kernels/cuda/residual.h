// How the residual stream passes from product to product without a kernel between them, in two
// halves: what the product does that changes the stream, and what the one does that reads it. Which
// sums, and in what order: norm_sums.h.
#pragma once

#include "kernels/cuda/types.h"

namespace updraft::cuda {

// In place of a product's output y. `rows` are the product's, a multiple of 16.
struct ResidualOutput {
  float* hidden = nullptr;      // [tokens, rows] += the product rounded to bfloat16
  const float* norm = nullptr;  // [rows]
  Bf16* x = nullptr;            // [tokens, rows] = hidden * norm
  float* band_sums = nullptr;   // [tokens, rows / 16] of the squares of hidden
};

// What a product's x has still to be multiplied by, a factor for each token: 1 / sqrt(mean square +
// eps). Either of the two; none: x is the input. cols is a multiple of 16.
struct NormedInput {
  const float* band_sums = nullptr;  // [tokens, cols / 16], and eps
  const float* factors = nullptr;    // [tokens]
  float eps = 0.0F;
};

}  // namespace updraft::cuda
