// Weights of six and eight bits, and int8 products.
#include "kernels/cuda/skinny_gemm_kernel.h"

namespace updraft::cuda {

UPDRAFT_SKINNY_OF(DType::kQ6_K)
UPDRAFT_SKINNY_OF(DType::kQ8_0)
UPDRAFT_SKINNY_OF(DType::kI8)

}  // namespace updraft::cuda
