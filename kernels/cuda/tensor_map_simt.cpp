// The emulator's map: the facts themselves.
#include <cstring>

#include "kernels/cuda/tensor_map.h"
#include "kernels/simt/hopper_ops.h"

namespace updraft::cuda {

Result<void> make_tensor_map(const BoxedMatrix& matrix, TensorMap* out) {
  if (Result<void> checked = check_boxed_matrix(matrix); !checked) return checked;
  simt::TensorMap facts;
  facts.data = reinterpret_cast<const std::byte*>(matrix.data);
  facts.cols = static_cast<uint64_t>(matrix.cols);
  facts.rows = static_cast<uint64_t>(matrix.rows);
  facts.row_bytes = static_cast<uint64_t>(matrix.stride) * sizeof(Bf16);
  facts.box_cols = kBoxCols;
  facts.box_rows = static_cast<uint32_t>(matrix.box_rows);
  static_assert(sizeof facts <= sizeof *out);
  *out = {};
  std::memcpy(out, &facts, sizeof facts);
  return {};
}

}  // namespace updraft::cuda
