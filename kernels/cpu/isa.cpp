// The names of the instruction sets, and the choice among those that the machine has.
#include "kernels/cpu/isa.h"

#include <string>
#include <string_view>
#include <utility>

#include "common/base/check.h"

namespace updraft {
namespace {

std::vector<IsaKernels> all_isas() {
  std::vector<IsaKernels> isas = {{CpuIsa::kGeneric, generic_kernels, generic_peak_loops}};
  const std::vector<IsaKernels> more = machine_isas();
  isas.insert(isas.end(), more.begin(), more.end());
  return isas;
}

IsaKernels entry_of(CpuIsa isa) {
  for (const IsaKernels& entry : all_isas()) {
    if (entry.isa == isa) return entry;
  }
  UPDRAFT_CHECK(false, "an instruction set of this machine");
}

// As configuration and command line write them.
constexpr std::pair<std::string_view, CpuIsa> kSpellings[] = {
    {"generic", CpuIsa::kGeneric},          {"avx2", CpuIsa::kAvx2},
    {"avxvnni", CpuIsa::kAvxVnni},          {"avx512", CpuIsa::kAvx512Vnni},
    {"avx512bf16", CpuIsa::kAvx512Bf16},    {"neon", CpuIsa::kNeon},
    {"neon-dotprod", CpuIsa::kNeonDotprod}, {"neon-i8mm", CpuIsa::kNeonI8mm},
};

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

Result<CpuIsa> parse_isa(std::string_view name) {
  std::string known;
  for (const auto& [spelling, isa] : kSpellings) {
    if (spelling == name) return isa;
    known += (known.empty() ? "" : ", ") + std::string(spelling);
  }
  return fail("isa = \"" + std::string(name) + "\" is not one of " + known);
}

const Kernels& kernels_of(CpuIsa isa) { return entry_of(isa).kernels(); }
const PeakLoops& peak_loops_of(CpuIsa isa) { return entry_of(isa).peak_loops(); }

}  // namespace updraft
