// What a model will take, decided before anything is allocated: weights, KV pool, activations,
// against what is allowed. Pure. The KV pool is the part that gives way: it shrinks down to one
// whole context before a plan fails.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/engine/engine.h"
#include "common/model/model.h"
#include "kernels/backend.h"

namespace updraft {

struct MemoryPlan {
  int32_t context_tokens = 0;  // of one sequence
  int32_t page_count = 0;
  uint64_t weight_bytes = 0;          // on the device
  uint64_t weight_outside_bytes = 0;  // in host memory, fetched in each step
  uint64_t kv_bytes = 0;
  uint64_t activation_bytes = 0;
  std::vector<uint64_t> weight_rooms;  // of each device; 0: all of its weights fit
  bool kv_shrunk = false;              // the pool holds less than every slot's whole context
  uint64_t needed_bytes() const { return weight_bytes + kv_bytes + activation_bytes; }
};

struct MemoryNeeds {
  std::string model_name;            // for the message
  int32_t model_context_tokens = 0;  // the trained one
  uint64_t weight_bytes = 0;
  uint64_t activation_bytes = 0;
  uint64_t page_bytes = 0;  // one KV page in all layers
};

// With config.offload, weights that find no room beside one whole context stay outside.
// Errors: impossible settings (context beyond the model's, kv_tokens below one context) and too
// little memory, the latter with all figures and what would fit.
Result<MemoryPlan> plan_memory(const MemoryNeeds& needs, const EngineConfig& config);

// For devices that share a model. Those with memory of their own are planned one by one, each with
// its copy of what nobody shares and an equal part of max_memory_bytes; the pool has the pages of
// the one that has room for fewest. Those that use the machine's memory are planned as one. Of
// `needs` names, context and activations count, the latter on each device. Errors: as above, with
// the device.
Result<MemoryPlan> plan_memory(const MemoryNeeds& needs, std::span<const DeviceNeeds> devices,
                               const EngineConfig& config);

// Bytes of all weight matrices, as `kept` has them, and vectors; a tied head counts once.
ModelBytes weight_bytes(const Weights& weights,
                        const std::function<uint64_t(const WeightView& view, bool of_layer)>& kept);

// "3.81 GiB", "96 MiB", "1.5 MiB", "12 KiB".
std::string format_bytes(uint64_t bytes);

}  // namespace updraft
