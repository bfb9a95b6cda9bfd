// Four-bit weights.
#include "kernels/cuda/skinny_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_SKINNY_OF(DType::kQ4_0)
UPDRAFT_SKINNY_OF(DType::kQ4_K)

}  // namespace updraft::cuda
