// Products of many tokens with matrices of GLM-4-9B's shapes: whether the warpgroup product
// (kernels/cuda/warpgroup_gemm.h) is right on this GPU, and what each way of a product reaches of
// the rate of the tensor cores.
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

// The first line is the verdict; only a right kernel is timed. Errors: those of the device.
Result<void> run_product_bench(const ProductBenchConfig& config,
                               const std::function<void(const Line&)>& print);

}  // namespace updraft::gpu
