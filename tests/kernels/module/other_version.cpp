// A module of another version, for the loader's tests.
#include "kernels/module/cuda_module.h"

extern "C" __attribute__((visibility("default"))) const updraft::CudaModule* updraft_cuda_module() {
  static const updraft::CudaModule module{updraft::kCudaModuleVersion + 1, "9.9.9", nullptr,
                                          nullptr};
  return &module;
}
