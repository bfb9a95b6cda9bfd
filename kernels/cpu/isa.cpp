// The names of the instruction sets, and the choice among those that the machine has.
#include "kernels/cpu/isa.h"

#include "common/base/check.h"

namespace updraft {
namespace {

std::vector<IsaKernels> all_isas() {
  std::vector<IsaKernels> isas = {{CpuIsa::kGeneric, generic_kernels}};
  const std::vector<IsaKernels> more = machine_isas();
  isas.insert(isas.end(), more.begin(), more.end());
  return isas;
}

}  // namespace

std::vector<CpuIsa> available_isas() {
  std::vector<CpuIsa> isas;
  for (const IsaKernels& entry : all_isas()) isas.push_back(entry.isa);
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
    case CpuIsa::kAvx512Bf16:
      return "avx512-bf16";
    case CpuIsa::kNeon:
      return "neon";
    case CpuIsa::kNeonDotprod:
      return "neon-dotprod";
    case CpuIsa::kNeonI8mm:
      return "neon-i8mm";
  }
  return "unknown";
}

const Kernels& kernels_of(CpuIsa isa) {
  for (const IsaKernels& entry : all_isas()) {
    if (entry.isa == isa) return entry.kernels();
  }
  UPDRAFT_CHECK(false, "an instruction set of this machine");
}

}  // namespace updraft
