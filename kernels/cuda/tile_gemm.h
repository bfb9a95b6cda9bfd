// Products of a packed weight matrix with the activations of many tokens: prefill. Bit for bit the
// sums of the skinny product with the same splits, for any number of tokens.
#pragma once

#include "common/base/result.h"
#include "kernels/cuda/skinny_gemm.h"

namespace updraft::cuda {

// The same operation with any number of tokens, in blocks of 128. `splits` is only the order of the
// additions here (skinny_gemm_splits()); no workspace, but on devices whose blocks have less shared
// memory than an A100's: there several splits take the skinny kernel, 64 tokens at a time. Strides
// are multiples of 8 elements, of 16 for bytes. Errors: a shape outside that.
Result<void> run_tile_gemm(const SkinnyGemm& op, Stream stream);

}  // namespace updraft::cuda
