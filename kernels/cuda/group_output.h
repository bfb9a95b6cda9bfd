// What becomes of the sums of a warpgroup's product (gemm_output.h has the rules): a lane has two
// rows, whose scales and biases it reads once, and many tokens. For kernels.
//
// Sum i of a lane is of row g + 8 * (i / 2 % 2), token 8 * (i / 4) + 2 * t + i % 2, with g = lane /
// 4 and t = lane % 4.
#pragma once

#include "kernels/cuda/gemm_output.h"

namespace updraft::cuda {

UPDRAFT_DEVICE constexpr int sum_token(int i) {
  return i / 4 * 8 + i % 2;
}  // from the lane's first one on
UPDRAFT_DEVICE constexpr int sum_half(int i) { return i / 2 % 2; }

// A row's part of scaled() and of the bias.
struct OutputRow {
  float scale;
  float bias;
};
UPDRAFT_DEVICE OutputRow output_row(const GemmOutput& out, int packed_row, int row) {
  OutputRow of{1.0F, 0.0F};
  if (packed_row >= out.rows) return of;
  if (out.row_scales != nullptr) of.scale = out.row_scales[packed_row];
  if (out.bias != nullptr) of.bias = out.bias[row];
  return of;
}
UPDRAFT_DEVICE float finished(const OutputRow& row, float token_scale, float sum) {
  return multiply(multiply(sum, row.scale), token_scale) + row.bias;
}

// Where a lane's outputs begin, and what of them is within the matrix.
struct LaneOutput {
  int64_t at;       // element of its first token and row
  int tokens_left;  // from its first token on
  int rows_left;    // of outputs, from its first row on
};
UPDRAFT_DEVICE LaneOutput lane_output(const GemmOutput& out, int row, int rows, int token_first,
                                      int lane) {
  const int token = token_first + 2 * (lane % 4);
  return {token * out.y_stride + row, out.tokens - token, rows - row};
}
UPDRAFT_DEVICE bool is_within(const LaneOutput& lane, int i) {
  return sum_token(i) < lane.tokens_left && 8 * sum_half(i) < lane.rows_left;
}
UPDRAFT_DEVICE int64_t place_of_sum(const GemmOutput& out, const LaneOutput& lane, int i) {
  return lane.at + sum_token(i) * out.y_stride + 8 * sum_half(i);
}
UPDRAFT_DEVICE float token_scale(const GemmOutput& out, int token) {
  return out.token_scales != nullptr ? out.token_scales[token] : 1.0F;
}

// row_first: of the warp's 16 packed rows.
template <int kTokens>
UPDRAFT_DEVICE void write_sums(const GemmOutput& out, int row_first, int token_first, int lane,
                               const float (&sums)[kTokens / 2]) {
  constexpr int kTogether = 8;  // reads before the first write, so that they overlap
  const int row = row_first + lane / 4;
  const LaneOutput own = lane_output(out, row, out.rows, token_first, lane);
  const OutputRow rows[2] = {output_row(out, row, row), output_row(out, row + 8, row + 8)};
  UPDRAFT_UNROLL
  for (int first = 0; first < kTokens / 2; first += kTogether) {
    float values[kTogether] = {};
    UPDRAFT_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      const int i = first + j;
      if (!is_within(own, i)) continue;
      const int token = out.tokens - own.tokens_left + sum_token(i);
      values[j] = finished(rows[sum_half(i)], token_scale(out, token), sums[i]);
    }
    if (out.accumulate) {
      UPDRAFT_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        if (is_within(own, first + j)) values[j] += out.y_f32[place_of_sum(out, own, first + j)];
      }
    }
    UPDRAFT_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      if (!is_within(own, first + j)) continue;
      const int64_t at = place_of_sum(out, own, first + j);
      if (out.y_f32 != nullptr) {
        out.y_f32[at] = values[j];
      } else {
        out.y_bf16[at] = to_bf16(values[j]);
      }
    }
  }
}

// Gates are an even warp's, ups the next one's, which meet in `ups` [warps / 2][kTokens / 2][32]:
// shared memory that `threads` threads, all that come here, have left by now or will have behind
// the first barrier.
template <int kTokens>
UPDRAFT_DEVICE void write_gated_sums(const GemmOutput& out, float* ups, uint32_t threads, int warp,
                                     int row_first, int token_first, int lane,
                                     const float (&sums)[kTokens / 2]) {
  constexpr uint32_t kBarrier = 1;
  float* own_ups = ups + warp / 2 * (kTokens / 2 * 32) + lane;
  sync_named(kBarrier, threads);
  if (warp % 2 == 1) {
    UPDRAFT_UNROLL
    for (int i = 0; i < kTokens / 2; ++i) own_ups[i * 32] = sums[i];
  }
  sync_named(kBarrier, threads);
  if (warp % 2 == 1) return;
  const int gate_row = row_first + lane / 4;
  const int row = gate_row / (2 * kTileRows) * kTileRows + gate_row % kTileRows;
  const int outputs = out.rows / 2;
  const LaneOutput own = lane_output(out, row, outputs, token_first, lane);
  OutputRow gates[2];
  OutputRow up_rows[2];
  UPDRAFT_UNROLL
  for (int half = 0; half < 2; ++half) {
    gates[half] = output_row(out, gate_row + 8 * half, row + 8 * half);
    up_rows[half] = output_row(out, gate_row + kTileRows + 8 * half, outputs + row + 8 * half);
  }
  UPDRAFT_UNROLL
  for (int i = 0; i < kTokens / 2; ++i) {
    if (!is_within(own, i)) continue;
    const float by = token_scale(out, out.tokens - own.tokens_left + sum_token(i));
    const float gate = to_float(to_bf16(finished(gates[sum_half(i)], by, sums[i])));
    const float up = to_float(to_bf16(finished(up_rows[sum_half(i)], by, own_ups[i * 32])));
    out.y_bf16[place_of_sum(out, own, i)] = to_bf16(silu_times(gate, up));
  }
}

}  // namespace updraft::cuda
