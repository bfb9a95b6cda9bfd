// The kernels for AVX2 with FMA and F16C.
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/vec_avx2.h"

namespace updraft {

const Kernels& avx2_kernels() {
  static constexpr Kernels kKernels = make_kernels<VecAvx2>();
  return kKernels;
}

}  // namespace updraft
