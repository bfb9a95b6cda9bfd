// Runs generations through an Engine and waits for them: what the engine's tests share.
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/engine/engine.h"
#include "tests/common/engine/backends.h"

namespace updraft::testing {

// Keeps everything that happens to one sequence.
class Recorder final : public SequenceSink {
 public:
  // Decides on_token's answer; called on the engine thread.
  std::function<bool(const Recorder&)> keep_going;

  void on_start() override {
    const std::lock_guard lock(mutex_);
    ++starts;
  }
  void on_prompt_token(const SampledToken& token) override {
    const std::lock_guard lock(mutex_);
    prompt_tokens.push_back(token);
  }
  bool on_token(const SampledToken& token) override {
    {
      const std::lock_guard lock(mutex_);
      tokens.push_back(token);
      changed_.notify_all();
    }
    return !keep_going || keep_going(*this);
  }
  void on_failure(const std::string& why) override {
    const std::lock_guard lock(mutex_);
    failure = why;
  }
  void on_end(SequenceEnd how, int32_t cached) override {
    const std::lock_guard lock(mutex_);
    ++ends;
    cached_tokens = cached;
    end = how;
    changed_.notify_all();
  }

  // False when nothing came within a minute.
  bool wait_end() {
    return wait([&] { return ends > 0; });
  }
  bool wait_tokens(size_t count) {
    return wait([&] { return tokens.size() >= count || ends > 0; });
  }
  std::vector<int32_t> ids() {
    const std::lock_guard lock(mutex_);
    std::vector<int32_t> out;
    for (const SampledToken& token : tokens) out.push_back(token.id);
    return out;
  }

  int starts = 0;
  int ends = 0;
  int32_t cached_tokens = 0;
  SequenceEnd end = SequenceEnd::kStop;
  std::string failure;
  std::vector<SampledToken> prompt_tokens;
  std::vector<SampledToken> tokens;

 private:
  template <typename Condition>
  bool wait(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::minutes(1), condition);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
};

inline EngineConfig small_engine() {
  EngineConfig config;
  config.slots = 4;
  config.page_tokens = 16;
  config.kv_type = DType::kF32;
  config.step_tokens_max = 64;
  config.mixed_step_ms = 0;
  return config;
}

inline std::unique_ptr<Engine> open_engine(const EngineConfig& config,
                                           std::shared_ptr<const Model> model,
                                           std::unique_ptr<Backend> backend = nullptr) {
  if (!backend) backend = exact_cpu();
  auto engine = Engine::open(config, std::move(model), std::move(backend), {});
  REQUIRE_MESSAGE(engine.ok(), engine.message());
  return std::move(*engine);
}

inline SequenceRequest greedy_request(uint64_t id, std::vector<int32_t> prompt,
                                      int32_t max_tokens) {
  SequenceRequest request;
  request.id = id;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0.0F;
  request.sampling.max_tokens = max_tokens;
  return request;
}

// The answers' ids, all submitted before the first is waited for.
inline std::vector<std::vector<int32_t>> run_all(Engine& engine,
                                                 const std::vector<SequenceRequest>& requests) {
  std::vector<std::shared_ptr<Recorder>> recorders;
  for (const SequenceRequest& request : requests) {
    recorders.push_back(std::make_shared<Recorder>());
    REQUIRE(engine.submit(request, recorders.back()));
  }
  std::vector<std::vector<int32_t>> out;
  for (const auto& recorder : recorders) {
    REQUIRE(recorder->wait_end());
    CHECK(recorder->starts == 1);
    CHECK(recorder->ends == 1);
    out.push_back(recorder->ids());
  }
  return out;
}

// Waits until the engine holds no sequence any more; false after a minute.
inline bool wait_idle(const Engine& engine) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (std::chrono::steady_clock::now() < deadline) {
    const EngineLoad load = engine.load();
    if (load.running == 0 && load.waiting == 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

}  // namespace updraft::testing
