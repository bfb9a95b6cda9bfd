// Whether the GPU's answers are right: against transformers' logits (folders made by
// tools/numerics/compare_transformers.py), against the CPU backend, and against itself where two
// ways of computing the same thing must agree to the bit.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "tools/gpu/model_bench.h"

namespace updraft::gpu {

// For each folder below `root` with a model and its expected.bin: the exact CPU backend within 1e-4
// of transformers and the device within 2e-2 of the largest logit (16-bit and int8 KV); the same
// likeliest token wherever the margin exceeds twice the error; a prompt in chunks = in one step; a
// sequence that goes on behind a prefix computed earlier = computed at once; eight sequences in one
// batch = each alone. Devices with other activations, by their names ("int8", "fp8"), within what
// their grids lose. One line each, one for a model that does not open. Errors: no such folder.
Result<void> run_parity(const std::string& root, const OpenBackend& open,
                        const std::vector<std::pair<std::string, OpenBackend>>& activations,
                        const std::function<void(const Line&)>& print);

}  // namespace updraft::gpu
