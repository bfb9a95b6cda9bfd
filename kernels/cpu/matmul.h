// The matrix product above the kernels: which thread multiplies which tiles with which rows.
// Written once for all formats and instruction sets.
#pragma once

#include <cstdint>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/weights.h"

namespace updraft {

// Scratch of one thread for a gated product.
inline constexpr int64_t kGatedScratchFloats = 64 << 10;

struct MatmulCall {
  const Matrix* weight = nullptr;
  const float* bias = nullptr;  // [weight rows] or null
  const float* in = nullptr;    // [rows, cols]
  int64_t in_stride = 0;
  int64_t rows = 0;
  ActBlock* blocks = nullptr;  // scratch [rows, cols / 32], when the weight has quantised parts
  float* out = nullptr;        // [rows, weight rows]
  int64_t out_stride = 0;
  // The weight is two parts of n rows, gate and up: out [rows, n] = silu(in * gate) * (in * up).
  bool gated = false;
  float* scratch = nullptr;  // [threads, kGatedScratchFloats] when gated
};

void run_matmul(const MatmulCall& call, const Kernels& kernels, ThreadPool& pool);

}  // namespace updraft
