// The device that updraft_gpu works on: a GPU, or in the tests' build the emulator, which has no
// ceilings. Each is a file (device_gpu.cpp, device_simt.cpp).
#pragma once

#include <memory>

#include "common/base/result.h"
#include "kernels/backend.h"
#include "kernels/module/cuda_config.h"
#include "tools/gpu/ceilings.h"

namespace updraft::gpu {

// Errors: as open_cuda_backend() has them.
Result<std::unique_ptr<Backend>> open_device(const CudaConfig& config);
Result<Ceilings> device_ceilings();

}  // namespace updraft::gpu
