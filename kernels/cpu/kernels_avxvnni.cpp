// The kernels for AVX2 with AVX-VNNI.
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/vec_avxvnni.h"

namespace updraft {

const Kernels& avxvnni_kernels() {
  static constexpr Kernels kKernels = make_kernels<VecAvxVnni>();
  return kKernels;
}

}  // namespace updraft
