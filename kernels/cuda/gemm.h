// Products of packed weights with the activations of any number of tokens: one entry that takes the
// skinny product up to kSkinnyTokensMax tokens and, above, what the device's choice for the shape
// says (gemm_device.h).
//
// Which activations go with which weights:
//   bfloat16   every format but I8
//   int8       I8: int8 products, exact sums (W8A8)
//   e4m3       F8_E4M3; on a device without e4m3 tensor cores (and for up to kSkinnyTokensMax
//              tokens) they are widened to bfloat16 first, which loses nothing
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "common/base/result.h"
#include "kernels/cuda/gemm_device.h"
#include "kernels/cuda/residual.h"
#include "kernels/cuda/types.h"
#include "kernels/cuda/weight_layout.h"

namespace updraft::cuda {

// Memory that the products of one stream share: zeroed once before the first use, of at least
// gemm_scratch_bytes() of every product that uses it. 256-byte aligned.
struct GemmScratch {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

// One quantised row of activations per token: a value is element * scale[token].
struct Int8Input {
  const int8_t* x = nullptr;     // [tokens, x_stride]
  const float* scale = nullptr;  // [tokens]
};
struct Float8Input {
  const Float8* x = nullptr;     // [tokens, x_stride], e4m3
  const float* scale = nullptr;  // [tokens]
  // [tokens, x_stride] or null: the same values as bfloat16, for a product that wants them so. Up
  // to kSkinnyTokensMax tokens they do without x.
  const Bf16* widened = nullptr;
};

struct Gemm {
  GemmDevice* device = nullptr;
  PackedLayout layout;
  const std::byte* weight =
      nullptr;  // layout.bytes, as pack_tiles() or pack_gated_tiles() left them
  // Exactly one of the three inputs; the first layout.cols of each row are used.
  const Bf16* x = nullptr;
  Int8Input x_int8;
  Float8Input x_float8;
  int64_t x_stride = 0;  // elements; a multiple of 8, of 16 for bytes
  int32_t tokens = 0;
  const float* bias = nullptr;  // [layout.rows] or null
  // Exactly one of the two outputs, [tokens, y_stride]. A gated layout (rows = 2n) gives the first
  // n of each row, always bfloat16: silu(gate) * up of the two products rounded to bfloat16.
  Bf16* y_bf16 = nullptr;
  float* y_f32 = nullptr;
  int64_t y_stride = 0;
  // y_f32 only: y += the product, in place of y = the product. The residual stream.
  bool accumulate = false;
  ResidualOutput residual;  // in place of y, for up to kSkinnyTokensMax tokens
  NormedInput normed;       // of x; above so many tokens by its factors, where gemm_takes_factors()
  GemmScratch scratch;
};

// Whether the product of this matrix with so many tokens takes its input's factors (NormedInput).
bool gemm_takes_factors(const GemmDevice& device, const PackedLayout& layout, int32_t tokens);

// What one product of this matrix with up to `tokens_max` tokens needs.
size_t gemm_scratch_bytes(const GemmDevice& device, const PackedLayout& layout, int32_t tokens_max);

// What products of any layout may want of it with cuBLASLt: its workspace, a tile of weights, and
// the product of that tile. For planning before the layouts are known; 0 without the library.
uint64_t gemm_library_bytes_max(const GemmDevice& device, uint64_t tokens_max);

// y[token, r] = sum_c x[token, c] * w[r, c] (+ bias[r]), summed in fp32 (int8: in int32). No
// allocation, no synchronisation; may be captured in a graph. Errors name the shape that does not
// fit. A shape that cuBLASLt refuses is no error: the device remembers it and takes kTile
// (GemmDevice::refusal()).
//
// A token's bits are the same alone and in any batch up to kSkinnyTokensMax, and above as long as
// the shape takes kTile; kCublas and kWarpgroup round a quantised weight to bfloat16 first
// (relative 2^-9), and kCublas may add in another order for every number of tokens, kWarpgroup for
// every number of splits, which the choice names. With a bias, kCublas' bfloat16 output is rounded
// twice: before the bias and after it.
Result<void> run_gemm(const Gemm& op, Stream stream);

// Seconds that a piece of work takes on the device, warm.
using GemmTimer = std::function<Result<double>(const std::function<Result<void>()>& work)>;

// Start-up: times every way of this product, cuBLASLt's first `algorithms_max` algorithms and the
// warpgroup product's numbers of splits among them, and keeps the fastest as the device's choice
// for its shape and number of tokens. Nothing to do (and nothing timed) where there is one way only
// or for a skinny product. `op` as for run_gemm(), with memory that may be overwritten. What
// cuBLASLt refuses is passed over. Errors: of a product of ours, or of the timer.
Result<void> tune_gemm(const Gemm& op, int algorithms_max, const GemmTimer& seconds_of,
                       Stream stream);

}  // namespace updraft::cuda
