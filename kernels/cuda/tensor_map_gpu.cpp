// The driver's map. The function is asked for by name: nothing links against libcuda.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <string>

#include "kernels/cuda/tensor_map.h"

namespace updraft::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult answer = cudaDriverEntryPointSymbolNotFound;
  // The version that introduced it, and with it this list of parameters.
  constexpr unsigned kVersion = 12000;
  const cudaError_t asked = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                             kVersion, cudaEnableDefault, &answer);
  if (asked != cudaSuccess || answer != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Encode>(found);
}

}  // namespace

Result<void> make_tensor_map(const BoxedMatrix& matrix, TensorMap* out) {
  if (Result<void> checked = check_boxed_matrix(matrix); !checked) return checked;
  static const Encode encode = find_encode();
  if (encode == nullptr) return fail("cuda: the driver has no cuTensorMapEncodeTiled");
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(matrix.cols),
                              static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(matrix.stride) * sizeof(Bf16)};
  const cuuint32_t box[2] = {kBoxCols, static_cast<cuuint32_t>(matrix.box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  CUtensorMap map;
  const CUresult encoded =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<Bf16*>(matrix.data), dims,
             stride, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (encoded != CUDA_SUCCESS) {
    return fail("cuda: cuTensorMapEncodeTiled of " + std::to_string(matrix.rows) + " x " +
                std::to_string(matrix.cols) + ": error " +
                std::to_string(static_cast<int>(encoded)));
  }
  static_assert(sizeof map == sizeof *out);
  std::memcpy(out, &map, sizeof map);
  return {};
}

}  // namespace updraft::cuda
