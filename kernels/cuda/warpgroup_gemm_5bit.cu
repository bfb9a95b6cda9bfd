// Five-bit weights.
#include "kernels/cuda/warpgroup_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_WARPGROUP_GEMM_OF(DType::kQ5_0)
UPDRAFT_WARPGROUP_GEMM_OF(DType::kQ5_1)
UPDRAFT_WARPGROUP_GEMM_OF(DType::kQ5_K)

}  // namespace updraft::cuda
