// Products of a packed weight matrix with the activations of a few tokens: decode steps and short
// chunks, where reading the weights is what takes the time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/residual.h"
#include "kernels/cuda/types.h"
#include "kernels/cuda/weight_layout.h"

namespace updraft::cuda {

inline constexpr int32_t kSkinnyTokensMax = 64;
// Counters at the begin of a workspace, which matrices may share.
inline constexpr size_t kSkinnyCounterBytes = 16 << 10;

struct SkinnyGemm {
  PackedLayout layout;
  const std::byte* weight = nullptr;  // layout.bytes, as pack_tiles() left them
  // [tokens, x_stride], the first layout.cols of each row are used; bfloat16, or for I8 weights
  // bytes, with token_scales.
  const Bf16* x = nullptr;
  const int8_t* x_int8 = nullptr;
  const float* token_scales =
      nullptr;                  // [tokens] or null: every sum of a token is multiplied by it
  int64_t x_stride = 0;         // elements, a multiple of 8
  int32_t tokens = 0;           // 1..64
  const float* bias = nullptr;  // [rows] or null
  // [tokens, y_stride]; exactly one of the two outputs is given, or residual. A gated layout gives
  // rows / 2 outputs, silu(gate) * up of the two sums rounded to bfloat16, as bfloat16.
  Bf16* y_bf16 = nullptr;
  float* y_f32 = nullptr;
  int64_t y_stride = 0;
  bool accumulate = false;  // y_f32 += the product
  ResidualOutput residual;  // in place of y, with hidden given
  NormedInput normed;       // not beside token_scales
  // Blocks that share the columns: skinny_gemm_splits(). With more than one they need the
  // workspace.
  int32_t splits = 1;
  std::byte* workspace = nullptr;  // skinny_gemm_workspace_bytes(); the first kSkinnyCounterBytes
                                   // are zero before the first use and after each
};

// How many blocks share the columns of a matrix, so that one with few rows fills the device too. It
// depends on the matrix alone: the order of additions, and with it every bit of a token's result,
// is the same whatever runs beside it.
int32_t skinny_gemm_splits(const PackedLayout& layout, int32_t multiprocessor_count);
size_t skinny_gemm_workspace_bytes(const PackedLayout& layout, int32_t splits);

// y[token, r] = sum_c x[token, c] * w[r, c] (+ bias[r]), in fp32 on the tensor cores (I8: in int32,
// exactly), in the order of chunk_product.h. Errors: a shape outside the above.
Result<void> run_skinny_gemm(const SkinnyGemm& op, Stream stream);

}  // namespace updraft::cuda
