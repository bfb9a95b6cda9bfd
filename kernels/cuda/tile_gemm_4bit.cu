// Four-bit weights.
#include "kernels/cuda/tile_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_TILE_GEMM_OF(DType::kQ4_0)
UPDRAFT_TILE_GEMM_OF(DType::kQ4_K)

}  // namespace updraft::cuda
