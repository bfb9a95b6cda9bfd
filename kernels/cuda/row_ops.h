// Operations on the rows of activations: embedding, norms, the gated unit. Each is a pass over
// memory.
#pragma once

#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/types.h"
#include "kernels/cuda/weight_layout.h"

namespace updraft::cuda {

// hidden[row, c] = table[token_ids[row], c] from a packed table; a negative id is a padded row and
// gives zeros.
struct Embed {
  PackedLayout layout;
  const std::byte* table = nullptr;
  const int32_t* token_ids = nullptr;  // [rows], below layout.rows
  int32_t rows = 0;
  float* hidden = nullptr;  // [rows, layout.cols]
};
Result<void> run_embed(const Embed& op, Stream stream);

// The residual stream is f32, what products read and write is bfloat16.
struct ResidualNorm {
  int32_t rows = 0;
  int32_t dim = 0;  // a multiple of 8, at most 32,768
  float* hidden =
      nullptr;  // [rows, dim] in and out: hidden += delta (normed first when delta_norm is given)
  const Bf16* delta = nullptr;        // [rows, dim] or null: nothing is added
  const float* delta_norm = nullptr;  // [dim]: hidden += rms_norm(delta) * delta_norm
  const float* norm = nullptr;        // [dim]: out = rms_norm(hidden) * norm
  float eps = 0.0F;
  Bf16* out = nullptr;  // [rows, dim], or null
  // At most one, [rows, dim]: round(out / scale) with scale = largest |out| of the row / 127 (int8)
  // or / 448 (e4m3; widened: its values as bfloat16). Of a row that is not finite the scale is not
  // finite either.
  int8_t* out_int8 = nullptr;
  Float8* out_float8 = nullptr;
  Bf16* out_widened = nullptr;
  float* out_scale = nullptr;  // [rows], with one of them
  // [rows] or null: then out = hidden * norm, and these are what it has still to be multiplied by
  // (norm_sums.h); dim is a multiple of 16, and nothing is quantised.
  float* factors = nullptr;
};
Result<void> run_residual_norm(const ResidualNorm& op, Stream stream);

// out[row, i] = silu(gate) * up with gate = in[row, i], up = in[row, n + i], silu(x) = x / (1 +
// e^-x).
struct GatedUnit {
  int32_t rows = 0;
  int32_t n = 0;             // a multiple of 8
  const Bf16* in = nullptr;  // [rows, 2 * n]
  Bf16* out = nullptr;       // [rows, n]
};
Result<void> run_gated_unit(const GatedUnit& op, Stream stream);

}  // namespace updraft::cuda
