// Drives an EngineCore step by step on the test's own thread, on any backend.
#pragma once

#include <doctest/doctest.h>

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "common/engine/engine_core.h"
#include "tests/common/engine/engine_runner.h"
#include "tests/common/engine/memory_model.h"

namespace updraft::testing {

// One layer, so that worlds by the hundred stay cheap.
inline Hyperparameters tiny_hyperparameters(Architecture architecture = Architecture::kQwen3) {
  Hyperparameters h;
  h.architecture = architecture;
  h.layer_count = 1;
  h.hidden_dim = 16;
  h.ff_dim = 16;
  h.head_count = 2;
  h.kv_head_count = 1;
  h.head_dim = 8;
  h.vocab_count = 64;
  h.context_tokens = 96;
  h.norm_eps = 1e-5F;
  h.rope_dims = 8;
  return h;
}

inline EngineCoreConfig core_config(const Hyperparameters& h) {
  EngineCoreConfig config;
  config.scheduler.slots = 4;
  config.scheduler.page_tokens = 4;
  config.scheduler.page_count = 4 * h.context_tokens / 4;
  config.scheduler.step_tokens_max = 32;
  config.scheduler.logit_rows_max = 16;
  config.context_tokens = h.context_tokens;
  config.vocab_count = h.vocab_count;
  config.hidden_dim = h.hidden_dim;
  return config;
}

class CoreRunner {
 public:
  CoreRunner(const EngineCoreConfig& config, const Model& model, std::unique_ptr<Backend> backend,
             int32_t swap_pages = 0)
      : page_count_(config.scheduler.page_count) {
    auto forward = Forward::create(
        model, *backend, {config.scheduler.step_tokens_max, config.scheduler.logit_rows_max}, {});
    REQUIRE_MESSAGE(forward.ok(), forward.message());
    KvShape shape = Forward::kv_shape(model.hyperparameters());
    shape.page_tokens = config.scheduler.page_tokens;
    shape.page_count = config.scheduler.page_count;
    shape.type = DType::kF32;
    REQUIRE(backend->make_kv_pool(shape).ok());
    if (swap_pages > 0) REQUIRE(backend->make_swap_space(swap_pages).ok());
    core_ = std::make_unique<EngineCore>(config, std::move(*forward), std::move(backend));
  }

  std::shared_ptr<Recorder> add(SequenceRequest request) {
    auto recorder = std::make_shared<Recorder>();
    core_->add(std::move(request), recorder, now_ns_);
    return recorder;
  }
  void step() {
    now_ns_ += 1'000'000;
    core_->plan(now_ns_, ended_);
    core_->run(ended_);
  }
  // Until nothing is left to do.
  void finish() {
    int64_t steps = 0;
    while (!core_->idle()) {
      REQUIRE(++steps < 100'000);
      step();
    }
    const EngineLoad load = core_->load();
    CHECK(load.kv_pages_free == page_count_);
    CHECK(load.running + load.waiting == 0);
  }
  EngineCore& core() { return *core_; }
  const std::vector<uint64_t>& ended() const { return ended_; }

 private:
  const int32_t page_count_;
  std::unique_ptr<EngineCore> core_;
  std::vector<uint64_t> ended_;
  int64_t now_ns_ = 0;
};

}  // namespace updraft::testing
