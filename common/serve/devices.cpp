// See the header.
#include "common/serve/devices.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>

#include "common/base/check.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/module/cuda_module.h"
#include "kernels/parallel/comm.h"
#include "kernels/parallel/tensor_parallel.h"

namespace updraft {

Result<std::unique_ptr<Backend>> open_gpus(const CudaConfig& config,
                                           std::span<const int32_t> gpus) {
  UPDRAFT_CHECK(!gpus.empty());
  CudaConfig one = config;
  if (gpus.size() == 1) {
    one.device = gpus[0];
    return open_cuda_module(one);
  }
  const auto comms = open_cuda_comms(gpus);
  if (!comms) return comms.error();
  if (config.note)
    config.note(std::to_string(gpus.size()) + " GPUs add up by " + (*comms)[0]->description());
  std::vector<std::unique_ptr<Backend>> ranks;
  one.max_memory_bytes = config.max_memory_bytes / gpus.size();
  for (size_t i = 0; i < gpus.size(); ++i) {
    one.device = gpus[i];
    one.comm = (*comms)[i];
    auto opened = open_cuda_module(one);
    if (!opened) return opened.error("GPU " + std::to_string(gpus[i]));
    ranks.push_back(std::move(*opened));
  }
  return open_tensor_parallel(std::move(ranks));
}

std::string default_tune_folder() {
  // Relative paths are to be ignored, says the XDG base directory specification.
  const auto folder = [](const char* variable, const char* below) -> std::string {
    const char* value = std::getenv(variable);
    if (value == nullptr || *value != '/') return {};
    return std::string(value) + below;
  };
  const std::string named = folder("XDG_CACHE_HOME", "/updraft");
  return named.empty() ? folder("HOME", "/.cache/updraft") : named;
}

Result<std::unique_ptr<Backend>> open_cpus(const CpuConfig& config, int32_t count) {
  UPDRAFT_CHECK(count > 0);
  if (count == 1) return open_cpu_backend(config);
  const std::vector<int> cores = config.cores.empty() ? process_cores() : config.cores;
  const auto core_count = static_cast<int32_t>(cores.size());
  const int32_t threads = config.thread_count > 0 ? config.thread_count : core_count;
  if (std::min(threads, core_count) < count) {
    return fail("cpu: " + std::to_string(core_count) + " cores and " + std::to_string(threads) +
                " threads are too few for " + std::to_string(count) + " devices");
  }
  const auto comms = make_host_comms(count);
  std::vector<std::unique_ptr<Backend>> ranks;
  for (int32_t rank = 0; rank < count; ++rank) {
    // Neighbours; the first ones get what does not divide evenly.
    const auto part = [&](int32_t total, int32_t index) {
      return total / count * index + std::min(index, total % count);
    };
    CpuConfig own = config;
    own.cores.assign(cores.begin() + part(core_count, rank),
                     cores.begin() + part(core_count, rank + 1));
    own.thread_count = part(threads, rank + 1) - part(threads, rank);
    own.max_memory_bytes = config.max_memory_bytes / static_cast<uint64_t>(count);
    own.comm = comms[static_cast<size_t>(rank)];
    auto opened = open_cpu_backend(own);
    if (!opened) return opened.error("device " + std::to_string(rank));
    ranks.push_back(std::move(*opened));
  }
  return open_tensor_parallel(std::move(ranks));
}

}  // namespace updraft
