// Weights of six and eight bits.
#include "kernels/cuda/warpgroup_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_WARPGROUP_GEMM_OF(DType::kQ6_K)
UPDRAFT_WARPGROUP_GEMM_OF(DType::kQ8_0)

}  // namespace updraft::cuda
