// Weights of six and eight bits, and int8 products.
#include "kernels/cuda/tile_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_TILE_GEMM_OF(DType::kQ6_K)
UPDRAFT_TILE_GEMM_OF(DType::kQ8_0)
UPDRAFT_TILE_GEMM_OF(DType::kI8)

}  // namespace updraft::cuda
