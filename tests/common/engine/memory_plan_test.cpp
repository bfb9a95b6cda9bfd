// The memory plan: what fits is taken, what does not is refused with every figure and a way out.
#include "common/engine/memory_plan.h"

#include <doctest/doctest.h>

using namespace updraft;

namespace {

constexpr uint64_t kMiB = 1 << 20;

MemoryNeeds needs() {
  MemoryNeeds out;
  out.model_name = "llama-x";
  out.model_context_tokens = 4096;
  out.weight_bytes = 300 * kMiB;
  out.activation_bytes = 20 * kMiB;
  out.page_bytes = kMiB;  // of 32 tokens: a context is 128 MiB
  return out;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("with enough memory every slot gets its whole context") {
  EngineConfig config;
  config.slots = 4;
  config.max_memory_bytes = 2000 * kMiB;
  const auto plan = plan_memory(needs(), config);
  REQUIRE(plan.ok());
  CHECK(plan->context_tokens == 4096);
  CHECK(plan->page_count == 4 * 128);
  CHECK(plan->needed_bytes() == (300 + 20 + 512) * kMiB);
  CHECK_FALSE(plan->kv_shrunk);
}

TEST_CASE("the pool shrinks to what is allowed, but never below one context") {
  EngineConfig config;
  config.slots = 4;
  config.max_memory_bytes = 500 * kMiB;
  auto plan = plan_memory(needs(), config);
  REQUIRE(plan.ok());
  CHECK(plan->page_count == 180);
  CHECK(plan->kv_shrunk);
  config.max_memory_bytes = 448 * kMiB;
  plan = plan_memory(needs(), config);
  REQUIRE(plan.ok());
  CHECK(plan->page_count == 128);
  config.max_memory_bytes = 448 * kMiB - 1;
  CHECK_FALSE(plan_memory(needs(), config).ok());
}

TEST_CASE("with offload, weights beside one whole context stay outside as far as they must") {
  EngineConfig config;
  config.max_memory_bytes = 300 * kMiB;
  CHECK_FALSE(plan_memory(needs(), config).ok());
  config.offload = true;
  const auto plan = plan_memory(needs(), config);
  REQUIRE(plan.ok());
  CHECK(plan->page_count == 128);
  CHECK(plan->weight_bytes == (300 - 20 - 128) * kMiB);
  CHECK(plan->weight_outside_bytes == (300 - (300 - 20 - 128)) * kMiB);
  CHECK(plan->needed_bytes() == 300 * kMiB);
  config.max_memory_bytes = 148 * kMiB;  // not even the context
  CHECK_FALSE(plan_memory(needs(), config).ok());
  config.max_memory_bytes = 2000 * kMiB;
  CHECK(plan_memory(needs(), config)->weight_outside_bytes == 0);
}

TEST_CASE("without a limit of its own it takes half of what is free beyond the weights") {
  EngineConfig config;
  config.slots = 8;
  config.available_memory_bytes = 1320 * kMiB;
  const auto plan = plan_memory(needs(), config);
  REQUIRE(plan.ok());
  CHECK(plan->page_count == 500);
}

TEST_CASE("too little memory names what is needed, what is allowed, and the plan that would fit") {
  EngineConfig config;
  config.max_memory_bytes = 400 * kMiB;
  auto plan = plan_memory(needs(), config);
  REQUIRE_FALSE(plan.ok());
  CHECK(contains(plan.message(), "448 MiB"));
  CHECK(contains(plan.message(), "weights 300 MiB"));
  CHECK(contains(plan.message(), "KV for 4096 tokens 128 MiB"));
  CHECK(contains(plan.message(), "activations 20 MiB"));
  CHECK(contains(plan.message(), "400 MiB are allowed by max_memory"));
  CHECK(contains(plan.message(), "context_tokens = 2560 with slots = 1 would fit"));
  // And it does.
  config.context_tokens = 2560;
  config.slots = 1;
  CHECK(plan_memory(needs(), config).ok());

  config = {};
  config.available_memory_bytes = 310 * kMiB;
  plan = plan_memory(needs(), config);
  REQUIRE_FALSE(plan.ok());
  CHECK(contains(plan.message(), "310 MiB are available"));
  CHECK(contains(plan.message(), "smaller quantisation"));
}

TEST_CASE("a pool given by hand bounds the context, and must hold the context that was asked for") {
  EngineConfig config;
  config.kv_tokens = 1000;
  auto plan = plan_memory(needs(), config);
  REQUIRE(plan.ok());
  CHECK(plan->context_tokens == 1000);
  CHECK(plan->page_count == 32);
  config.context_tokens = 2000;
  plan = plan_memory(needs(), config);
  REQUIRE_FALSE(plan.ok());
  CHECK(contains(plan.message(), "kv_tokens = 1000"));
  CHECK(contains(plan.message(), "context_tokens = 2000"));
  config.context_tokens = 5000;
  CHECK(contains(plan_memory(needs(), config).message(), "4096"));
  config.context_tokens = 0;
  config.kv_tokens = INT64_MAX;
  CHECK_FALSE(plan_memory(needs(), config).ok());
}

TEST_CASE("a tied head counts once and bytes read well") {
  const float values[8] = {};
  Weights weights;
  weights.embedding = {reinterpret_cast<const std::byte*>(values), DType::kF32, 2, 4};
  weights.head = weights.embedding;
  weights.final_norm.resize(4);
  const ModelBytes bytes = weight_bytes(weights, [](const WeightView& view, bool of_layer) {
    CHECK_FALSE(of_layer);
    return static_cast<uint64_t>(view.rows * view.cols) * sizeof(float);
  });
  CHECK(bytes.whole == 48);
  CHECK(bytes.layers == 0);
  CHECK(format_bytes(uint64_t{3} << 30) == "3.00 GiB");
  CHECK(format_bytes(96 * kMiB) == "96 MiB");
  CHECK(format_bytes(3 * kMiB / 2) == "1.5 MiB");
  CHECK(format_bytes(12 << 10) == "12 KiB");
}

TEST_CASE(
    "devices with memory of their own are planned one by one, the pool as the smallest has room") {
  // 60 MiB of the 300 are on both; the second device has a third of the rest and of the heads.
  std::vector<DeviceNeeds> devices(2);
  devices[0] = {"big", 700 * kMiB, (60 + 160) * kMiB, 2 * kMiB / 3, 0};
  devices[1] = {"small", 260 * kMiB, (60 + 80) * kMiB, kMiB / 3, 10 * kMiB};
  EngineConfig config;
  config.slots = 8;
  auto plan = plan_memory(needs(), devices, config);
  REQUIRE(plan.ok());
  // Half of what the small one has left: 260 - 140 - 30 = 90 MiB.
  CHECK(plan->page_count == static_cast<int32_t>(45 * kMiB / (kMiB / 3)));
  CHECK(plan->weight_bytes == 360 * kMiB);  // what is on both counts twice
  CHECK(plan->activation_bytes == (20 + 20 + 10) * kMiB);
  CHECK(plan->kv_bytes == static_cast<uint64_t>(plan->page_count) * (kMiB / 3 + 2 * kMiB / 3));
  CHECK(plan->kv_shrunk);
  CHECK(plan->weight_rooms == std::vector<uint64_t>{0, 0});
  // As one device they would seem to have room.
  devices[1].free_bytes = 205 * kMiB;
  plan = plan_memory(needs(), devices, config);
  REQUIRE_FALSE(plan.ok());
  CHECK(contains(plan.message(), "device 1 of 2 (small): llama-x does not fit"));
  config.offload = true;
  plan = plan_memory(needs(), devices, config);
  REQUIRE(plan.ok());
  CHECK(plan->weight_rooms[0] == 0);
  CHECK(plan->weight_rooms[1] == 205 * kMiB - 30 * kMiB - 128 * (kMiB / 3));
  CHECK(plan->weight_outside_bytes == 140 * kMiB - plan->weight_rooms[1]);
  // A limit is divided.
  config = {};
  config.slots = 1;
  config.max_memory_bytes = 400 * kMiB;
  plan = plan_memory(needs(), devices, config);
  REQUIRE_FALSE(plan.ok());
  CHECK(contains(plan.message(), "device 0 of 2 (big)"));
  CHECK(contains(plan.message(), "200 MiB are allowed by max_memory"));
}

TEST_CASE("devices that use the machine's memory are planned as one, copies counted") {
  std::vector<DeviceNeeds> devices(2);
  devices[0] = {"socket 0", 0, (60 + 120) * kMiB, kMiB / 2, 0};
  devices[1] = devices[0];
  EngineConfig config;
  config.slots = 1;
  config.available_memory_bytes = (360 + 40 + 128) * kMiB;
  CHECK(plan_memory(needs(), devices, config).ok());
  config.available_memory_bytes -= 1;
  CHECK_FALSE(plan_memory(needs(), devices, config).ok());
}
