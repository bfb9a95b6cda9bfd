// The CUDA engine as a module: libupdraft_cuda.so, found at run time, so that one program runs with
// and without GPUs. Both sides are built from one tree; a module of another version is refused.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "kernels/backend.h"
#include "kernels/module/cuda_config.h"

namespace updraft {

// Raised with every change of Backend, CudaConfig or this struct.
inline constexpr uint32_t kCudaModuleVersion = 4;
inline constexpr const char* kCudaModuleEntry = "updraft_cuda_module";

// What the module's one function gives: extern "C" const CudaModule* updraft_cuda_module().
struct CudaModule {
  uint32_t version;
  const char* release;  // UPDRAFT_VERSION
  Result<std::unique_ptr<Backend>> (*open)(const CudaConfig& config);
  Result<std::vector<std::shared_ptr<Comm>>> (*open_comms)(std::span<const int32_t> devices);
};
using CudaModuleEntry = const CudaModule* (*)();

// Result::kind() where there is no module at all.
enum class CudaFailure : int { kOther = 0, kNoModule = 1 };

// Opens the module and the GPU in it. The module is the file that the environment's
// UPDRAFT_CUDA_MODULE names, else libupdraft_cuda.so beside the program, else in ../lib of it; it
// stays loaded. Errors, of one line: no module, one that does not load or has another version, no
// driver, no GPU, too little memory.
Result<std::unique_ptr<Backend>> open_cuda_module(const CudaConfig& config);
// An end of a group (CudaConfig::comm) for each of these GPUs, in their order. Errors: as above, no
// NCCL.
Result<std::vector<std::shared_ptr<Comm>>> open_cuda_comms(std::span<const int32_t> devices);

}  // namespace updraft
