// Which instruction sets this machine has, and their kernels: the one place that chooses.
#pragma once

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/kernels.h"

namespace updraft {

const Kernels& kernels_of(CpuIsa isa);

}  // namespace updraft
