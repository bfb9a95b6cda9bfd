// The device that updraft_gpu works on: a GPU, or in the tests' build the emulator, which has no
// ceilings. Each is a file (device_gpu.cpp, device_emulated.cpp).
#pragma once

#include <memory>

#include "common/base/result.h"
#include "kernels/backend.h"
#include "tools/gpu/ceilings.h"

namespace updraft::gpu {

// warpgroups: whether the kernels for capability 9.0 may be asked whether they are right. One that
// faults takes the process's device with it.
Result<std::unique_ptr<Backend>> open_device(bool warpgroups);
Result<Ceilings> device_ceilings();

}  // namespace updraft::gpu
