// Whether the kernels for capability 9.0 are right on this GPU (kernels/cuda/warpgroup_check.h);
// then products of many tokens with matrices of GLM-4-9B's shapes: what each way of a product
// reaches of the rate of the tensor cores, and whether it gives what the tile product gives.
#pragma once

#include <functional>

#include "common/base/result.h"
#include "tools/gpu/ceilings.h"
#include "tools/gpu/report.h"

namespace updraft::gpu {

struct ProductBenchConfig {
  Ceilings ceilings;
  bool smoke = false;
};

// The first two lines are the verdicts; only a right kernel is timed. Errors: those of the device.
Result<void> run_product_bench(const ProductBenchConfig& config,
                               const std::function<void(const Line&)>& print);

}  // namespace updraft::gpu
