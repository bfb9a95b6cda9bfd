// Five-bit weights.
#include "kernels/cuda/tile_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_TILE_GEMM_OF(DType::kQ5_0)
UPDRAFT_TILE_GEMM_OF(DType::kQ5_1)
UPDRAFT_TILE_GEMM_OF(DType::kQ5_K)

}  // namespace updraft::cuda
