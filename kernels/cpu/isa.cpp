// Asks the processor what it has.
#include "kernels/cpu/isa.h"

#include "common/base/check.h"

namespace updraft {

std::vector<CpuIsa> available_isas() {
  std::vector<CpuIsa> isas = {CpuIsa::kGeneric};
#if defined(__x86_64__)
  // The builtin also asks whether the operating system saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx2) isas.push_back(CpuIsa::kAvx2);
  if (avx2 && avx512) isas.push_back(CpuIsa::kAvx512Vnni);
  if (avx2 && avx512 && __builtin_cpu_supports("avx512bf16")) isas.push_back(CpuIsa::kAvx512Bf16);
#endif
  return isas;
}

const char* isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kGeneric:
      return "generic";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512Vnni:
      return "avx512-vnni";
    case CpuIsa::kAvx512Bf16:
      return "avx512-bf16";
  }
  return "unknown";
}

const Kernels& kernels_of(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kGeneric:
      return generic_kernels();
    case CpuIsa::kAvx2:
      return avx2_kernels();
    case CpuIsa::kAvx512Vnni:
      return avx512_kernels();
    case CpuIsa::kAvx512Bf16:
      return avx512bf16_kernels();
  }
  UPDRAFT_CHECK(false, "an instruction set of the enum");
}

}  // namespace updraft
