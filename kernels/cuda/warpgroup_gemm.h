// Products of a packed weight matrix with the activations of many tokens on the tensor cores of
// capability 9.0: wgmma, fed by the copying engine. So far this has run under the emulator only: on
// a GPU it is used where check_warpgroup_gemm() (warpgroup_check.h) found it right, for shapes that
// tune_gemm() found it fastest for.
#pragma once

#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/skinny_gemm.h"

namespace updraft::cuda {

// True of the formats that it takes: all but I8.
bool warpgroup_gemm_takes(DType type);

struct WarpgroupGemm {
  SkinnyGemm product;        // with any number of tokens; splits and workspace are not used
  Bf16* arranged = nullptr;  // scratch: [tokens, layout.cols], 16-byte aligned, not the input
  int32_t multiprocessor_count = 132;
  // Tokens of a block, 128 or 256; 0: what takes the least time on so many multiprocessors. The
  // sums are the same.
  int32_t block_tokens = 0;
};

// y[token, r] = sum_c x[token, c] * w[r, c] (+ bias[r]), in fp32, from the first column to the last
// in steps of 16, with each quantised weight rounded to bfloat16 first (relative 2^-9), as
// run_unpack_bf16() does. Tensor cores cut off each of these cols / 16 sums instead of rounding it:
// what comes out is up to about cols / 16 * 2^-25 too small, relative. A token's bits are the same
// in every batch that comes this way. Two kernels: the activations' columns are arranged, then
// multiplied. Errors: a shape or format outside the above. On a device of another capability the
// second kernel does not run.
Result<void> run_warpgroup_gemm(const WarpgroupGemm& op, Stream stream);

}  // namespace updraft::cuda
