// The GPU engine's speed on models of real shapes with random weights, against the ceilings of the
// same run: decode steps, prefill, and whole requests through the engine.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "kernels/backend.h"
#include "tools/gpu/ceilings.h"
#include "tools/gpu/report.h"

namespace updraft::gpu {

// A device with all its memory free.
using OpenBackend = std::function<Result<std::unique_ptr<Backend>>()>;

struct ModelBenchConfig {
  Ceilings ceilings;  // zeros: shares are left out
  int repetitions = 5;
  bool smoke = false;  // the small shape, a few tokens: whether it runs at all
  // Devices that multiply 16-bit weights in another format, by its name: "int8", "fp8".
  std::vector<std::pair<std::string, OpenBackend>> activations;
};

// One line per measurement as it is done. What fails is a line that says so; the next goes on.
void run_model_bench(const ModelBenchConfig& config, const OpenBackend& open,
                     const std::function<void(const Line&)>& print);

// What llama.cpp's llama-bench and llama-batched-bench measure, on a model file, so that the two
// can be held against each other: a prompt of 512 and of 2,048 tokens, 128 tokens of one sequence,
// 64 sequences behind 128 tokens each. Errors: a file that does not open, those of the device.
Result<void> run_file_bench(const std::string& path, const OpenBackend& open,
                            const std::function<void(const Line&)>& print);

}  // namespace updraft::gpu
