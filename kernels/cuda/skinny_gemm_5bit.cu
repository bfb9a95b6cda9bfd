// Five-bit weights.
#include "kernels/cuda/skinny_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_SKINNY_OF(DType::kQ5_0)
UPDRAFT_SKINNY_OF(DType::kQ5_1)
UPDRAFT_SKINNY_OF(DType::kQ5_K)

}  // namespace updraft::cuda
