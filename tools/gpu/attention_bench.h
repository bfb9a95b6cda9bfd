// Attention kernels of GLM-4-9B's shape (32 heads over 2 K and V heads of 128) against the
// bandwidth of the memory (decode) and the rate of the tensor cores (prefill).
#pragma once

#include <functional>

#include "common/base/result.h"
#include "tools/gpu/ceilings.h"
#include "tools/gpu/report.h"

namespace updraft::gpu {

struct AttentionBenchConfig {
  Ceilings ceilings;
  bool smoke = false;
  bool warpgroups = true;  // on capability 9.0 its own kernel of prefill too
};

// Errors: those of the device.
Result<void> run_attention_bench(const AttentionBenchConfig& config,
                                 const std::function<void(const Line&)>& print);

}  // namespace updraft::gpu
