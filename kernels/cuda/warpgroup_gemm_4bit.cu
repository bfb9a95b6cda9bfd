// Four-bit weights.
#include "kernels/cuda/warpgroup_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_WARPGROUP_GEMM_OF(DType::kQ4_0)
UPDRAFT_WARPGROUP_GEMM_OF(DType::kQ4_K)

}  // namespace updraft::cuda
