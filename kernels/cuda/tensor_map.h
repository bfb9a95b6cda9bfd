// Matrices in global memory as the copying engine of capability 9.0 wants them described: once on
// the host, then handed to a kernel by value (UPDRAFT_GRID_CONSTANT). The GPU build asks the driver
// for cuTensorMapEncodeTiled() (tensor_map_gpu.cpp), the emulator keeps the same facts
// (tensor_map_simt.cpp).
#pragma once

#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

inline constexpr int32_t kBoxCols = 64;  // 128 bytes, the widest that is swizzled

// Boxes of box_rows x kBoxCols; what of a box lies outside the matrix is zero.
struct BoxedMatrix {
  const Bf16* data = nullptr;  // [rows, stride], 16-byte aligned
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;    // elements, a multiple of 8
  int32_t box_rows = 0;  // 8..256, a multiple of 8
};

// Errors: a matrix or box outside the above; a driver without the function, or one that refuses.
Result<void> make_tensor_map(const BoxedMatrix& matrix, TensorMap* out);

// What is wrong with the description; for both builds.
Result<void> check_boxed_matrix(const BoxedMatrix& matrix);

}  // namespace updraft::cuda
