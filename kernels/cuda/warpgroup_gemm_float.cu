// Float weights.
#include "kernels/cuda/warpgroup_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_WARPGROUP_GEMM_OF(DType::kBF16)
UPDRAFT_WARPGROUP_GEMM_OF(DType::kF16)
UPDRAFT_WARPGROUP_GEMM_OF(DType::kF8_E4M3)

}  // namespace updraft::cuda
