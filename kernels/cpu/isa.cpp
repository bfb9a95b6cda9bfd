// Asks the processor what it has.
#include "kernels/cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "common/base/check.h"

namespace updraft {
namespace {

#if defined(__x86_64__)
// Leaf 7.1; not every compiler's builtin knows the name.
bool has_avx_vnni() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1U << 4)) != 0;
}
#endif

}  // namespace

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
  if (avx2 && has_avx_vnni()) isas.push_back(CpuIsa::kAvxVnni);
  if (avx2 && avx512) isas.push_back(CpuIsa::kAvx512Vnni);
#endif
  return isas;
}

const char* isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kGeneric:
      return "generic";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvxVnni:
      return "avx-vnni";
    case CpuIsa::kAvx512Vnni:
      return "avx512-vnni";
  }
  return "unknown";
}

const Kernels& kernels_of(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kGeneric:
      return generic_kernels();
    case CpuIsa::kAvx2:
      return avx2_kernels();
    case CpuIsa::kAvxVnni:
      return avxvnni_kernels();
    case CpuIsa::kAvx512Vnni:
      return avx512_kernels();
  }
  UPDRAFT_CHECK(false, "an instruction set of the enum");
}

}  // namespace updraft
