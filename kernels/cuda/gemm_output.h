// What becomes of a finished sum: scales, bias, the gated unit, and where it goes. For kernels.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/norm_sums.h"
#include "kernels/cuda/residual.h"
#include "kernels/cuda/weight_layout.h"

namespace updraft::cuda {

inline constexpr float kLog2E = 1.4426950408889634F;

// silu(gate) * up, silu(x) = x / (1 + e^-x).
UPDRAFT_DEVICE float silu_times(float gate, float up) {
  return up * (gate / (1.0F + exp2_fast(-kLog2E * gate)));
}

struct GemmOutput {
  const float* row_scales;    // [rows] in the order of the packed rows, or null
  const float* token_scales;  // [tokens] or null
  const float* bias;          // [rows] in the order of the matrix, or null
  Bf16* y_bf16;               // [tokens, y_stride]; one of the two
  float* y_f32;
  int64_t y_stride;
  int32_t tokens;
  int32_t rows;
  bool gated;  // packed rows 32 * i + r and 32 * i + 16 + r are gate and up of output 16 * i + r
  bool accumulate;          // y_f32 += the sum
  ResidualOutput residual;  // hidden null: there is none
};

// multiply(): what is added behind it is not to become one operation with it in one product's
// kernel and two in another's, which would give a token other bits.
UPDRAFT_DEVICE float scaled(const GemmOutput& out, int token, int packed_row, float sum) {
  if (out.row_scales != nullptr) sum = multiply(sum, out.row_scales[packed_row]);
  if (out.token_scales != nullptr) sum = multiply(sum, out.token_scales[token]);
  return sum;
}

// Beyond the last token or row nothing is written.
UPDRAFT_DEVICE void write_output(const GemmOutput& out, int token, int row, float sum) {
  if (token >= out.tokens || row >= out.rows) return;
  sum = scaled(out, token, row, sum);
  if (out.bias != nullptr) sum += out.bias[row];
  const int64_t at = token * out.y_stride + row;
  if (out.y_f32 != nullptr) {
    out.y_f32[at] = out.accumulate ? out.y_f32[at] + sum : sum;
  } else {
    out.y_bf16[at] = to_bf16(sum);
  }
}

// The gate's packed row and its sum, and up's. Both are rounded to bfloat16 first, as when they are
// written and read again.
UPDRAFT_DEVICE void write_gated(const GemmOutput& out, int token, int gate_row, float gate,
                                float up) {
  if (token >= out.tokens || gate_row >= out.rows) return;
  const int row = gate_row / (2 * kTileRows) * kTileRows + gate_row % kTileRows;
  gate = scaled(out, token, gate_row, gate);
  up = scaled(out, token, gate_row + kTileRows, up);
  if (out.bias != nullptr) {
    gate += out.bias[row];
    up += out.bias[out.rows / 2 + row];
  }
  out.y_bf16[token * out.y_stride + row] =
      to_bf16(silu_times(to_float(to_bf16(gate)), to_float(to_bf16(up))));
}

// What write_output() would round to bfloat16. Lane i % 16 has the sum of row i of a band of 16;
// whole warps come together.
UPDRAFT_DEVICE void write_residual(const GemmOutput& out, int token, int row, float sum) {
  const ResidualOutput& to = out.residual;
  const bool inside = token < out.tokens && row < out.rows;
  float square = 0.0F;
  if (inside) {
    sum = scaled(out, token, row, sum);
    if (out.bias != nullptr) sum += out.bias[row];
    const int64_t at = static_cast<int64_t>(token) * out.rows + row;
    const float hidden = to.hidden[at] + to_float(to_bf16(sum));
    to.hidden[at] = hidden;
    to.x[at] = to_bf16(multiply(hidden, to.norm[row]));
    square = multiply(hidden, hidden);
  }
  square = band_sum(square);
  if (inside && row % kNormBand == 0) {
    to.band_sums[static_cast<int64_t>(token) * (out.rows / kNormBand) + row / kNormBand] = square;
  }
}

}  // namespace updraft::cuda