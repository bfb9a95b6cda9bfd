// Rows of a packed matrix as a plain row-major matrix, for libraries that know no packed weights.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/types.h"
#include "kernels/cuda/weight_layout.h"

namespace updraft::cuda {

struct UnpackWeights {
  PackedLayout layout;
  const std::byte* weight = nullptr;
  int64_t row_first = 0;     // a multiple of 16; rows count as they are packed (gated: alternating)
  int64_t row_count = 0;     // a multiple of 16
  std::byte* out = nullptr;  // [row_count, layout.cols]
};

// As bfloat16, a quantised weight rounded to the nearest; F8_E4M3 without the row's scale, exactly.
// Errors: I8, a shape outside the above.
Result<void> run_unpack_bf16(const UnpackWeights& op, Stream stream);
// The bytes of F8_E4M3 and I8. Errors: another format.
Result<void> run_unpack_bytes(const UnpackWeights& op, Stream stream);

}  // namespace updraft::cuda
