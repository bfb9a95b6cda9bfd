// 64-bit ARM: user space may not read the feature registers, so the kernel's auxiliary vector says
// what is there. The bits are Linux's (arch/arm64/include/uapi/asm/hwcap.h), written out because
// older C libraries lack some of the names.
#include <sys/auxv.h>

#include "kernels/cpu/isa.h"

namespace updraft {
namespace {

constexpr unsigned long kHwcapAdvancedSimd = 1UL << 1;
constexpr unsigned long kHwcapDotprod = 1UL << 20;
constexpr unsigned long kHwcap2I8mm = 1UL << 13;

}  // namespace

std::vector<IsaKernels> machine_isas() {
  const unsigned long hwcap = getauxval(AT_HWCAP);
  const unsigned long hwcap2 = getauxval(AT_HWCAP2);
  const bool neon = (hwcap & kHwcapAdvancedSimd) != 0;
  const bool dotprod = neon && (hwcap & kHwcapDotprod) != 0;
  const bool i8mm = dotprod && (hwcap2 & kHwcap2I8mm) != 0;
  std::vector<IsaKernels> isas;
  if (neon) isas.push_back({CpuIsa::kNeon, neon_kernels, neon_peak_loops});
  if (dotprod)
    isas.push_back({CpuIsa::kNeonDotprod, neon_dotprod_kernels, neon_dotprod_peak_loops});
  if (i8mm) isas.push_back({CpuIsa::kNeonI8mm, neon_i8mm_kernels, neon_i8mm_peak_loops});
  return isas;
}

// `yield` does nothing on cores without hyperthreads; emptying the pipeline takes the few
// nanoseconds that a pause is meant to take.
void pause_core() { asm volatile("isb"); }

}  // namespace updraft
