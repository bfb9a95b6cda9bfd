// The devices that a model runs on: one, or several that share it (kernels/parallel).
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/module/cuda_config.h"

namespace updraft {

// Through the CUDA module. Several GPUs are one tensor-parallel group, and share max_memory_bytes.
// Errors: as open_cuda_module() has them, GPUs that find no way to add up together.
Result<std::unique_ptr<Backend>> open_gpus(const CudaConfig& config, std::span<const int32_t> gpus);

// Where what was measured of a GPU is kept: $XDG_CACHE_HOME/updraft, else $HOME/.cache/updraft,
// else empty: nowhere.
std::string default_tune_folder();

// The cores of `config` (or of this process) as `count` devices with neighbouring cores each, one
// for each socket for instance, so that each reads its share of the weights from memory of its own.
// Threads and memory are divided among them. Errors: fewer cores than devices.
Result<std::unique_ptr<Backend>> open_cpus(const CpuConfig& config, int32_t count);

}  // namespace updraft
