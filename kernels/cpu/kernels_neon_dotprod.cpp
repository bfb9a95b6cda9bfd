// The kernels for NEON with the dot product extension.
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/vec_neon_dotprod.h"

namespace updraft {

const Kernels& neon_dotprod_kernels() {
  static constexpr Kernels kKernels = make_kernels<VecNeonDotprod>();
  return kKernels;
}

}  // namespace updraft
