// The kernels for NEON as every 64-bit ARM core has it.
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/vec_neon.h"

namespace updraft {

const Kernels& neon_kernels() {
  static constexpr Kernels kKernels = make_kernels<VecNeon>();
  return kKernels;
}

}  // namespace updraft
