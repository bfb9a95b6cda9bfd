// Loading: how fast a model comes from its file onto the device, against what the disk and the link
// to the device give in the same run.
#pragma once

#include <functional>
#include <string>

#include "common/base/result.h"
#include "tools/gpu/model_bench.h"

namespace updraft::gpu {

struct LoadBenchConfig {
  Ceilings ceilings;   // zeros: the share of the link is left out
  std::string folder;  // the model is written below it and removed again
  bool smoke = false;  // the small shape: whether it runs at all
};

// Writes a bf16 safetensors model of about 6 GB and reads it, each time with the page cache emptied
// of it (where the file system lets go of it): plainly by many threads, which is the disk's rate,
// then onto the device; and once more onto the device out of the page cache. Errors: a folder that
// does not take the file, a model or a device that does not open.
Result<void> run_load_bench(const LoadBenchConfig& config, const OpenBackend& open,
                            const std::function<void(const Line&)>& print);

}  // namespace updraft::gpu
