// Which instruction sets this machine has, and their kernels: the one place that chooses. What
// differs by processor family is in isa_x86.cpp and isa_arm.cpp, of which the build takes one.
#pragma once

#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/peak.h"

namespace updraft {

struct IsaKernels {
  CpuIsa isa;
  const Kernels& (*kernels)();
  const PeakLoops& (*peak_loops)();
};

// Beyond the generic one: what the processor and the operating system support, best last.
std::vector<IsaKernels> machine_isas();

// Tells the core that it is spinning on a word that another core will write.
void pause_core();

// Of one of available_isas().
const Kernels& kernels_of(CpuIsa isa);
const PeakLoops& peak_loops_of(CpuIsa isa);

}  // namespace updraft
