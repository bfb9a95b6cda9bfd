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

// As configuration, command line and logs write them.
constexpr std::pair<const char*, CpuIsa> kNames[] = {
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
  for (const auto& [name, value] : kNames) {
    if (value == isa) return name;
  }
  return "unknown";
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const auto& [name, isa] : kNames) names.emplace_back(name);
  return names;
}

Result<CpuIsa> parse_isa(std::string_view wanted) {
  std::string known;
  for (const auto& [name, isa] : kNames) {
    if (name == wanted) return isa;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  return fail("isa = \"" + std::string(wanted) + "\" is not one of " + known);
}

const Kernels& kernels_of(CpuIsa isa) { return entry_of(isa).kernels(); }
const PeakLoops& peak_loops_of(CpuIsa isa) { return entry_of(isa).peak_loops(); }

}  // namespace updraft
