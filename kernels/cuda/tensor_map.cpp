// What both builds check.
#include "kernels/cuda/tensor_map.h"

#include <string>

namespace updraft::cuda {

Result<void> check_boxed_matrix(const BoxedMatrix& matrix) {
  constexpr int64_t kStrideBytesMax = int64_t{1} << 40;
  if (reinterpret_cast<uintptr_t>(matrix.data) % 16 != 0 || matrix.rows < 1 || matrix.cols < 1 ||
      matrix.rows > UINT32_MAX || matrix.cols > UINT32_MAX || matrix.stride < matrix.cols ||
      matrix.stride % 8 != 0 || matrix.stride * 2 >= kStrideBytesMax || matrix.box_rows < 8 ||
      matrix.box_rows > 256 || matrix.box_rows % 8 != 0) {
    return fail("a tensor map of " + std::to_string(matrix.rows) + " x " +
                std::to_string(matrix.cols) + " with a stride of " + std::to_string(matrix.stride) +
                " and boxes of " + std::to_string(matrix.box_rows) +
                " rows (16-byte aligned, strides of 8, boxes of 8..256)");
  }
  return {};
}

}  // namespace updraft::cuda
