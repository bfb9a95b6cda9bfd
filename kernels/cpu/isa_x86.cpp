// x86-64: asks the processor what it has.
#include <cpuid.h>

#include "kernels/cpu/isa.h"

namespace updraft {
namespace {

// Leaf 7.1; not every compiler's builtin knows the name.
bool has_avx_vnni() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1U << 4)) != 0;
}

}  // namespace

std::vector<IsaKernels> machine_isas() {
  std::vector<IsaKernels> isas;
  // The builtin also asks whether the operating system saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx2) isas.push_back({CpuIsa::kAvx2, avx2_kernels, avx2_peak_loops});
  if (avx2 && has_avx_vnni())
    isas.push_back({CpuIsa::kAvxVnni, avxvnni_kernels, avxvnni_peak_loops});
  if (avx2 && avx512) isas.push_back({CpuIsa::kAvx512Vnni, avx512_kernels, avx512_peak_loops});
  if (avx2 && avx512 && __builtin_cpu_supports("avx512bf16")) {
    isas.push_back({CpuIsa::kAvx512Bf16, avx512bf16_kernels, avx512_peak_loops});
  }
  return isas;
}

void pause_core() { __builtin_ia32_pause(); }

}  // namespace updraft
