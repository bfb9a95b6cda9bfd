// Products of a packed weight matrix with the activations of many tokens on the tensor cores of
// capability 9.0: wgmma, fed by the copying engine. So far this has run under the emulator only: on
// a GPU it is used where check_warpgroup_gemm() (warpgroup_check.h) found it right, for shapes that
// tune_gemm() found it fastest for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/skinny_gemm.h"

namespace updraft::cuda {

// True of the formats that it takes: all but I8.
bool warpgroup_gemm_takes(DType type);

// The most blocks that share the columns of a tile of outputs.
inline constexpr int32_t kWarpgroupSplitsMax = 8;

struct WarpgroupGemm {
  SkinnyGemm product;        // with any number of tokens; its splits and workspace are not used
  Bf16* arranged = nullptr;  // scratch: [tokens, layout.cols], 16-byte aligned, not the input
  int32_t multiprocessor_count = 132;
  // Tokens of a block, 128 or 256; 0: what takes the least time on so many multiprocessors. The
  // sums are the same.
  int32_t block_tokens = 0;
  // Blocks that share the columns, 1 .. kWarpgroupSplitsMax, with 64 columns each at least; with
  // more than one they need the two below. The sums are others for each number.
  int32_t splits = 1;
  // kSkinnyCounterBytes, zero before the first use and after each.
  uint32_t* counters = nullptr;
  std::byte* partial = nullptr;  // warpgroup_gemm_partial_bytes(), 16-byte aligned
};

// Up to how many blocks are worth sharing the columns of this product, so that few tiles of outputs
// fill the device too: a power of two, of which half would leave multiprocessors without a block of
// 128 tokens, and that leaves each block a few hundred columns. 1: they are not. Never less for
// fewer tokens. Which power of two is the fastest, tune_gemm() measures.
int32_t warpgroup_gemm_splits_max(const PackedLayout& layout, int32_t tokens,
                                  int32_t multiprocessor_count);
size_t warpgroup_gemm_partial_bytes(const PackedLayout& layout, int32_t tokens, int32_t splits);

// y[token, r] = sum_c x[token, c] * w[r, c] (+ bias[r]), in fp32, from the first column to the last
// in steps of 16 (with splits: each block's columns so, then the blocks' sums in the order of their
// columns), with each quantised weight rounded to bfloat16 first (relative 2^-9), as
// run_unpack_bf16() does. Tensor cores cut off each of these cols / 16 sums instead of rounding it:
// what comes out is up to about cols / 16 * 2^-25 too small, relative. A token's bits are the same
// in every batch that comes this way. Two kernels: the activations' columns are arranged, then
// multiplied. Errors: a shape or format outside the above. On a device of another capability the
// second kernel does not run.
Result<void> run_warpgroup_gemm(const WarpgroupGemm& op, Stream stream);

}  // namespace updraft::cuda
