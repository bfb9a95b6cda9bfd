// Float weights.
#include "kernels/cuda/tile_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_TILE_GEMM_OF(DType::kBF16)
UPDRAFT_TILE_GEMM_OF(DType::kF16)
UPDRAFT_TILE_GEMM_OF(DType::kF8_E4M3)

}  // namespace updraft::cuda
