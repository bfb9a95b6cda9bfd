// The kernels for AVX-512 with VNNI and BF16: those for AVX-512, with attention and pages of bf16
// as pairs.
#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/row_kernel.h"
#include "kernels/cpu/vec_avx512_bf16.h"

namespace updraft {

const Kernels& avx512bf16_kernels() {
  static const Kernels kKernels = [] {
    Kernels k = avx512_kernels();
    k.store_kv = store_kv_row<VecAvx512Bf16>;
    k.attend_segment = attend_segment<VecAvx512Bf16>;
    return k;
  }();
  return kKernels;
}

}  // namespace updraft
