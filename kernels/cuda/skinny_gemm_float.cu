// Float weights.
#include "kernels/cuda/skinny_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_SKINNY_OF(DType::kBF16)
UPDRAFT_SKINNY_OF(DType::kF16)
UPDRAFT_SKINNY_OF(DType::kF8_E4M3)

}  // namespace updraft::cuda
