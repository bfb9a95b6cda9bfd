// The memory plan's arithmetic and its one long error message.
#include "common/engine/memory_plan.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>

#include "common/base/check.h"
#include "kernels/quant/dtype.h"

namespace updraft {
namespace {

// Nobody asked for a size: the pool takes at most this share of what is left after weights and
// activations, because a gateway has other programs too.
constexpr double kUnaskedShare = 0.5;
constexpr uint64_t kPageCountMax = INT32_MAX / 2;

uint64_t pages_for(uint64_t tokens, int32_t page_tokens) {
  return (tokens + static_cast<uint64_t>(page_tokens) - 1) / static_cast<uint64_t>(page_tokens);
}

// 0: no limit is known.
uint64_t allowed_bytes(const EngineConfig& config) {
  if (config.max_memory_bytes == 0) return config.available_memory_bytes;
  if (config.available_memory_bytes == 0) return config.max_memory_bytes;
  return std::min(config.max_memory_bytes, config.available_memory_bytes);
}

Error too_little(const MemoryNeeds& needs, const EngineConfig& config, const MemoryPlan& smallest) {
  const uint64_t allowed = allowed_bytes(config);
  const bool by_setting = config.max_memory_bytes != 0 && allowed == config.max_memory_bytes;
  std::string message =
      needs.model_name + " does not fit: it needs " + format_bytes(smallest.needed_bytes()) +
      " (weights " + format_bytes(smallest.weight_bytes) + ", KV for " +
      std::to_string(smallest.context_tokens) + " tokens " + format_bytes(smallest.kv_bytes) +
      ", activations " + format_bytes(smallest.activation_bytes) + ") but " +
      format_bytes(allowed) + (by_setting ? " are allowed by max_memory" : " are available") + "; ";
  const uint64_t fixed = smallest.weight_bytes + smallest.activation_bytes;
  const uint64_t pages = fixed < allowed ? (allowed - fixed) / needs.page_bytes : 0;
  const uint64_t tokens = pages * static_cast<uint64_t>(config.page_tokens);
  if (tokens >= 256) {
    message += "context_tokens = " + std::to_string(tokens) + " with slots = 1 would fit";
  } else {
    message += "no useful context would fit: use a smaller quantisation or model";
  }
  return fail(std::move(message));
}

Result<MemoryPlan> with_given_pool(const MemoryNeeds& needs, const EngineConfig& config,
                                   MemoryPlan plan) {
  const auto kv_tokens = static_cast<uint64_t>(config.kv_tokens);
  if (config.context_tokens > 0 && kv_tokens < static_cast<uint64_t>(config.context_tokens)) {
    return fail("kv_tokens = " + std::to_string(config.kv_tokens) +
                " is less than context_tokens = " + std::to_string(config.context_tokens) +
                ": no sequence could use its context");
  }
  plan.context_tokens = static_cast<int32_t>(
      std::min<uint64_t>(static_cast<uint64_t>(plan.context_tokens), kv_tokens));
  const uint64_t pages = pages_for(kv_tokens, config.page_tokens);
  if (pages > kPageCountMax) {
    return fail("kv_tokens = " + std::to_string(config.kv_tokens) + " are more pages than " +
                std::to_string(kPageCountMax));
  }
  plan.page_count = static_cast<int32_t>(pages);
  plan.kv_bytes = pages * needs.page_bytes;
  const uint64_t allowed = allowed_bytes(config);
  if (allowed != 0 && plan.needed_bytes() > allowed) return too_little(needs, config, plan);
  return plan;
}

Result<MemoryPlan> with_own_pool(const MemoryNeeds& needs, const EngineConfig& config,
                                 MemoryPlan plan) {
  const uint64_t per_context =
      pages_for(static_cast<uint64_t>(plan.context_tokens), config.page_tokens);
  uint64_t pages = per_context * static_cast<uint64_t>(config.slots);
  if (const uint64_t allowed = allowed_bytes(config); allowed != 0) {
    const uint64_t fixed = plan.weight_bytes + plan.activation_bytes;
    plan.kv_bytes = per_context * needs.page_bytes;
    if (plan.needed_bytes() > allowed) return too_little(needs, config, plan);
    const uint64_t left = allowed - fixed;
    // With max_memory the operator drew the line; without, half of what is free is left alone.
    const uint64_t budget = config.max_memory_bytes != 0
                                ? left
                                : static_cast<uint64_t>(static_cast<double>(left) * kUnaskedShare);
    const uint64_t affordable = std::max(budget / needs.page_bytes, per_context);
    plan.kv_shrunk = affordable < pages;
    pages = std::min(pages, affordable);
  }
  plan.page_count = static_cast<int32_t>(std::min(pages, kPageCountMax));
  plan.kv_bytes = static_cast<uint64_t>(plan.page_count) * needs.page_bytes;
  return plan;
}

}  // namespace

Result<MemoryPlan> plan_memory(const MemoryNeeds& needs, const EngineConfig& config) {
  UPDRAFT_CHECK(needs.page_bytes > 0 && needs.model_context_tokens > 0);
  UPDRAFT_CHECK(config.slots > 0 && config.page_tokens > 0);
  if (config.context_tokens > needs.model_context_tokens) {
    return fail("context_tokens = " + std::to_string(config.context_tokens) + " exceeds the " +
                std::to_string(needs.model_context_tokens) + " that " + needs.model_name +
                " was trained for");
  }
  if (config.context_tokens < 0 || config.kv_tokens < 0 || config.context_tokens == 1) {
    return fail("context_tokens = " + std::to_string(config.context_tokens) + " and kv_tokens = " +
                std::to_string(config.kv_tokens) + " must be 0 or positive, a context at least 2");
  }
  MemoryPlan plan;
  plan.context_tokens =
      config.context_tokens > 0 ? config.context_tokens : needs.model_context_tokens;
  plan.weight_bytes = needs.weight_bytes;
  plan.activation_bytes = needs.activation_bytes;
  if (const uint64_t allowed = allowed_bytes(config); config.offload && allowed != 0) {
    const uint64_t tokens = config.kv_tokens > 0 ? static_cast<uint64_t>(config.kv_tokens)
                                                 : static_cast<uint64_t>(plan.context_tokens);
    const uint64_t others =
        plan.activation_bytes + pages_for(tokens, config.page_tokens) * needs.page_bytes;
    const uint64_t room = allowed > others ? allowed - others : 0;
    if (room < plan.weight_bytes && room > 0) {
      plan.weight_outside_bytes = plan.weight_bytes - room;
      plan.weight_bytes = room;
    }
  }
  return config.kv_tokens > 0 ? with_given_pool(needs, config, plan)
                              : with_own_pool(needs, config, plan);
}

Result<MemoryPlan> plan_memory(const MemoryNeeds& needs, std::span<const DeviceNeeds> devices,
                               const EngineConfig& config) {
  UPDRAFT_CHECK(!devices.empty());
  const auto count = static_cast<uint64_t>(devices.size());
  const bool own_memory = std::all_of(devices.begin(), devices.end(),
                                      [](const DeviceNeeds& d) { return d.free_bytes > 0; });
  if (devices.size() == 1 || !own_memory) {
    MemoryNeeds all = needs;
    all.activation_bytes = needs.activation_bytes * count;
    all.weight_bytes = 0;
    all.page_bytes = 0;
    for (const DeviceNeeds& device : devices) {
      all.weight_bytes += device.weight_bytes;
      all.page_bytes += device.page_bytes;
      all.activation_bytes += device.scratch_bytes;
    }
    auto plan = plan_memory(all, config);
    if (!plan) return plan;
    plan->weight_rooms.assign(devices.size(), 0);
    if (plan->weight_outside_bytes > 0) {
      UPDRAFT_CHECK(devices.size() == 1, "memory outside is the machine's");
      plan->weight_rooms[0] = plan->weight_bytes;
    }
    return plan;
  }
  MemoryPlan sum;
  uint64_t page_bytes = 0;
  for (size_t i = 0; i < devices.size(); ++i) {
    const DeviceNeeds& device = devices[i];
    MemoryNeeds own = needs;
    own.weight_bytes = device.weight_bytes;
    own.page_bytes = device.page_bytes;
    own.activation_bytes = needs.activation_bytes + device.scratch_bytes;
    EngineConfig settings = config;
    settings.max_memory_bytes = config.max_memory_bytes / count;
    settings.available_memory_bytes = device.free_bytes;
    const auto plan = plan_memory(own, settings);
    if (!plan) {
      return plan.error("device " + std::to_string(i) + " of " + std::to_string(count) + " (" +
                        device.name + ")");
    }
    sum.context_tokens = plan->context_tokens;
    sum.page_count = i == 0 ? plan->page_count : std::min(sum.page_count, plan->page_count);
    sum.weight_bytes += plan->weight_bytes;
    sum.weight_outside_bytes += plan->weight_outside_bytes;
    sum.activation_bytes += plan->activation_bytes;
    sum.weight_rooms.push_back(plan->weight_outside_bytes > 0 ? plan->weight_bytes : 0);
    sum.kv_shrunk = sum.kv_shrunk || plan->kv_shrunk;
    page_bytes += device.page_bytes;
  }
  sum.kv_bytes = static_cast<uint64_t>(sum.page_count) * page_bytes;
  return sum;
}

ModelBytes weight_bytes(
    const Weights& weights,
    const std::function<uint64_t(const WeightView& view, bool of_layer)>& kept) {
  ModelBytes out;
  out.whole = kept(weights.embedding, false) + weights.final_norm.size() * sizeof(float);
  if (!weights.head.empty() && weights.head.data != weights.embedding.data)
    out.whole += kept(weights.head, false);
  for (const LayerWeights& layer : weights.layers) {
    for (const WeightView* view :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      if (!view->empty()) out.layers += kept(*view, true);
    }
    for (const std::vector<float>* vector :
         {&layer.attn_norm, &layer.q_bias, &layer.k_bias, &layer.v_bias, &layer.q_norm,
          &layer.k_norm, &layer.o_bias, &layer.post_attn_norm, &layer.ffn_norm,
          &layer.post_ffn_norm}) {
      out.whole += vector->size() * sizeof(float);
    }
  }
  return out;
}

std::string format_bytes(uint64_t bytes) {
  std::array<char, 32> text{};
  const auto value = static_cast<double>(bytes);
  if (bytes >= uint64_t{1} << 30) {
    std::snprintf(text.data(), text.size(), "%.2f GiB", value / (1 << 30));
  } else if (bytes >= uint64_t{10} << 20) {
    std::snprintf(text.data(), text.size(), "%.0f MiB", value / (1 << 20));
  } else if (bytes >= uint64_t{1} << 20) {
    std::snprintf(text.data(), text.size(), "%.1f MiB", value / (1 << 20));
  } else {
    std::snprintf(text.data(), text.size(), "%.0f KiB", value / (1 << 10));
  }
  return text.data();
}

}  // namespace updraft
