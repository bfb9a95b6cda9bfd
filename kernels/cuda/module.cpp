// The module's one function.
#include "kernels/cuda/comm_nccl.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/module/cuda_module.h"

extern "C" __attribute__((visibility("default"))) const updraft::CudaModule* updraft_cuda_module() {
  static const updraft::CudaModule module{updraft::kCudaModuleVersion, UPDRAFT_VERSION,
                                          updraft::cuda::open_cuda_backend,
                                          updraft::cuda::open_nccl_comms};
  return &module;
}
