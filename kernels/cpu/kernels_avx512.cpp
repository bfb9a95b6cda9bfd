// The kernels for AVX-512 with VNNI.
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/vec_avx512.h"

namespace updraft {

const Kernels& avx512_kernels() {
  static constexpr Kernels kKernels = make_kernels<VecAvx512>();
  return kKernels;
}

}  // namespace updraft
