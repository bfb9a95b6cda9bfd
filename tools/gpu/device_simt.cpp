#include "kernels/cuda/cuda_backend.h"
#include "tools/gpu/device.h"

namespace updraft::gpu {

Result<std::unique_ptr<Backend>> open_device(const CudaConfig& config) {
  return cuda::open_cuda_backend(config);
}

Result<Ceilings> device_ceilings() {
  return fail("the emulator has no ceilings: only --smoke runs on it");
}

}  // namespace updraft::gpu
