// The kernels in plain C++, for machines without the instruction sets that have a file of their
// own.
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/vec_generic.h"

namespace updraft {

const Kernels& generic_kernels() {
  static constexpr Kernels kKernels = make_kernels<VecGeneric>();
  return kKernels;
}

}  // namespace updraft
