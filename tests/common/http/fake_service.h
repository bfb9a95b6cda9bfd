// An InferenceService for tests: by default it answers every request at once with "Hello world" in
// two chunks; a test can instead hold requests and feed events by hand.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/message/service.h"

namespace updraft::testing {

inline TokenChunk text_chunk(std::string text, int32_t offset = 0, int32_t choice = 0) {
  TokenChunk chunk;
  chunk.choice = choice;
  chunk.offset = offset;
  chunk.ids = {100 + offset};
  chunk.text = std::move(text);
  return chunk;
}

inline TokenChunk last_chunk(FinishReason reason = FinishReason::kStop, int32_t choice = 0) {
  TokenChunk chunk;
  chunk.choice = choice;
  chunk.finish = reason;
  return chunk;
}

inline Started started_event() {
  Started started;
  started.node_id = "edge-1";
  started.tier = Tier::kEdge;
  started.model = "demo";
  started.decision = "fits the edge";
  return started;
}

inline Finished finished_event(int32_t prompt_tokens = 5, int32_t completion_tokens = 2) {
  Finished finished;
  finished.usage.prompt_tokens = prompt_tokens;
  finished.usage.completion_tokens = completion_tokens;
  finished.usage.cached_tokens = 3;
  finished.timings.queued_ns = 7'000'000;
  return finished;
}

class FakeService : public InferenceService {
 public:
  // Runs in submit(); set before the first request. Absent: the default answer.
  std::function<void(const Request&, const EventSink&)> answer;

  void submit(Request request, EventSink sink) override {
    {
      const std::lock_guard lock(mutex_);
      sinks_[request.id] = sink;
      requests_.push_back(request);
      changed_.notify_all();
    }
    if (answer) {
      answer(request, sink);
      return;
    }
    sink(started_event());
    for (int32_t choice = 0; choice < total_choices(request); ++choice) {
      sink(text_chunk("Hello", 0, choice));
      sink(text_chunk(" world", 1, choice));
      sink(last_chunk(FinishReason::kStop, choice));
    }
    sink(finished_event());
  }

  void cancel(const RequestId& id) override {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
    changed_.notify_all();
  }

  std::vector<ModelInfo> models() const override {
    ModelInfo demo;
    demo.id = "demo";
    demo.digest = "d1";
    demo.quantization = "Q8_0";
    demo.context_tokens = 512;
    demo.created = 1700000000;
    ModelInfo slashed = demo;
    slashed.id = "org/name";
    return {demo, slashed};
  }

  bool ready(std::string* why_not) const override {
    const std::lock_guard lock(mutex_);
    if (!is_ready_ && why_not != nullptr) *why_not = "loading weights";
    return is_ready_;
  }
  void set_ready(bool is_ready) {
    const std::lock_guard lock(mutex_);
    is_ready_ = is_ready;
  }

  std::optional<RequestError> short_of_memory() const override {
    if (!memory_full.load()) return std::nullopt;
    return error_of(ErrorCode::kOverloaded, "memory is almost full", 5000);
  }
  std::atomic<bool> memory_full{false};

  // Keeps requests unanswered; the test feeds events through send().
  void hold() {
    answer = [](const Request&, const EventSink&) {};
  }
  void send(const RequestId& id, Event event) {
    EventSink sink;
    {
      const std::lock_guard lock(mutex_);
      sink = sinks_.at(id);
    }
    sink(std::move(event));
  }

  // The request with that index (0: the first), once it has come; nothing after 5 s.
  std::optional<Request> wait_request(size_t index = 0) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::seconds(5), [&] { return requests_.size() > index; }))
      return std::nullopt;
    return requests_[index];
  }
  bool wait_cancelled(const RequestId& id, int within_ms) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::milliseconds(within_ms), [&] {
      for (const RequestId& cancelled : cancelled_) {
        if (cancelled == id) return true;
      }
      return false;
    });
  }
  size_t request_count() const {
    const std::lock_guard lock(mutex_);
    return requests_.size();
  }
  size_t cancel_count() const {
    const std::lock_guard lock(mutex_);
    return cancelled_.size();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool is_ready_ = true;
  std::map<RequestId, EventSink> sinks_;
  std::vector<Request> requests_;
  std::vector<RequestId> cancelled_;
};

}  // namespace updraft::testing
