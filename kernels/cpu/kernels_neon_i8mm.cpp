// The kernels for NEON with 8-bit matrix multiplication.
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/matmul_pair_kernel.h"
#include "kernels/cpu/vec_neon_i8mm.h"

namespace updraft {

const Kernels& neon_i8mm_kernels() {
  static constexpr Kernels kKernels = with_pairs<VecNeonI8mm>(make_kernels<VecNeonI8mm>());
  return kKernels;
}

}  // namespace updraft
