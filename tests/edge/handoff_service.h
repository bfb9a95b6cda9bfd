// A local server in front of a service that echoes, and a client's way to it: what the tests of the
// handoff share.
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "edge/client/local_client.h"
#include "tests/edge/local_daemon.h"

namespace updraft::testing {

// Answers with the text of the request's parts (long ones and images as their byte count); holds
// requests whose model is "hold" until they are cancelled; floods those whose model is "flood";
// sends those named "spill" a little more than the client's ring holds, "spill-hold" without an
// end.
inline constexpr int kSpillChunks = 1050;
inline constexpr int kStreamChunks = 4000;
class HandoffService final : public InferenceService {
 public:
  void expect() override { ++expected_; }
  int expected() const { return expected_; }
  int submitted() const { return submitted_; }
  // To every request that is held; an end lets it go.
  void emit_held(const Event& event) {
    std::map<RequestId, EventSink> sinks;
    {
      const std::lock_guard lock(mutex_);
      sinks = is_end(event) ? std::exchange(held_, {}) : held_;
    }
    for (auto& [id, sink] : sinks) sink(event);
  }
  int cancelled() {
    const std::lock_guard lock(mutex_);
    return cancelled_;
  }
  void submit(Request request, EventSink sink) override {
    ++submitted_;
    Started started;
    started.node_id = "echo";
    started.tier = Tier::kEdge;
    sink(started);
    if (request.model == "hold" && !answers_held_) {
      const std::lock_guard lock(mutex_);
      held_[request.id] = std::move(sink);
      return;
    }
    if (request.model == "stream") return start_stream(request.id, std::move(sink));
    if (request.model == "flood" || request.model.rfind("spill", 0) == 0) {
      const int chunks = request.model == "flood" ? 4000 : kSpillChunks;
      for (int i = 0; i < chunks; ++i) {
        TokenChunk chunk;
        chunk.offset = i;
        chunk.ids = {i};
        chunk.text = std::string(1000, 'x');
        sink(std::move(chunk));
      }
      if (request.model == "spill") return sink(Finished{});
      const std::lock_guard lock(mutex_);
      held_[request.id] = std::move(sink);
      return;
    }
    TokenChunk chunk;
    chunk.ids = {1};
    for (const ChatMessage& message : request.messages) {
      for (const ContentPart& part : message.parts) {
        const std::string bytes(part.kind == ContentPart::Kind::kText ? part.text
                                                                      : part.bytes.text());
        chunk.text += bytes.size() < 1000
                          ? bytes
                          : "[" + std::to_string(bytes.size()) + " " + bytes.substr(1, 3) + "]";
      }
    }
    sink(std::move(chunk));
    sink(Finished{});
  }
  void cancel(const RequestId& id) override {
    EventSink sink;
    {
      const std::lock_guard lock(mutex_);
      const auto it = held_.find(id);
      if (it == held_.end()) {
        const auto stream = streams_.find(id);
        if (stream == streams_.end()) return;
        stream->second.cancelled = true;
        ++cancelled_;
        changed_.notify_all();
        return;
      }
      sink = std::move(it->second);
      held_.erase(it);
      ++cancelled_;
    }
    changed_.notify_all();
    RequestError error;
    error.code = ErrorCode::kCancelled;
    sink(error);
  }
  // "stream": chunks without end or haste, on a thread of its own, while nobody pauses it.
  void pause(const RequestId& id) override { set_paused(id, true); }
  void resume(const RequestId& id) override { set_paused(id, false); }
  bool wait_pauses(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return pauses_ >= count; });
  }
  int resumes() {
    const std::lock_guard lock(mutex_);
    return resumes_;
  }
  std::vector<ModelInfo> models() const override {
    ModelInfo model;
    model.id = "echo";
    model.context_tokens = 512;
    return {model};
  }
  bool ready(std::string*) const override { return true; }

  // From now on "hold" is answered like everything else.
  void answer_held() { answers_held_ = true; }
  bool wait_cancelled(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return cancelled_ >= count; });
  }

  ~HandoffService() override {
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  struct Stream {
    bool paused = false;
    bool cancelled = false;
  };
  void set_paused(const RequestId& id, bool paused) {
    const std::lock_guard lock(mutex_);
    const auto it = streams_.find(id);
    if (it == streams_.end()) return;
    it->second.paused = paused;
    ++(paused ? pauses_ : resumes_);
    changed_.notify_all();
  }
  void start_stream(const RequestId& id, EventSink sink) {
    const std::lock_guard lock(mutex_);
    streams_[id] = {};
    threads_.emplace_back([this, id, sink = std::move(sink)] {
      for (int i = 0; i < kStreamChunks; ++i) {
        {
          std::unique_lock lock(mutex_);
          changed_.wait(lock, [&] { return !streams_[id].paused || streams_[id].cancelled; });
          if (streams_[id].cancelled) break;
        }
        TokenChunk chunk;
        chunk.offset = i;
        chunk.ids = {i};
        chunk.text = std::string(1000, 'x');
        sink(std::move(chunk));
        // As a model would: slow enough for somebody to say stop.
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
      bool cancelled = false;
      {
        const std::lock_guard lock(mutex_);
        cancelled = streams_[id].cancelled;
        streams_.erase(id);
      }
      if (!cancelled) return sink(Finished{});
      sink(error_of(ErrorCode::kCancelled, "cancelled"));
    });
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Stream> streams_;
  std::vector<std::thread> threads_;
  int pauses_ = 0;
  int resumes_ = 0;
  std::atomic<int> expected_ = 0;
  std::atomic<int> submitted_ = 0;
  std::atomic<bool> answers_held_ = false;
  std::map<RequestId, EventSink> held_;
  int cancelled_ = 0;
};

struct Daemon : LocalDaemon<HandoffService, 10> {
  using LocalDaemon::LocalDaemon;
  std::unique_ptr<LocalClient> client(bool map_memory = true, int32_t reconnect_ms = 0) {
    LocalClientOptions options;
    options.reconnect_ms = reconnect_ms;
    options.socket_path = socket();
    options.map_memory = map_memory;
    options.payload_bytes = 2 << 20;
    Result<std::unique_ptr<LocalClient>> connected = LocalClient::connect(options);
    REQUIRE_MESSAGE(connected.ok(), connected.message());
    return std::move(connected).value();
  }
};

inline Request chat(const std::string& text, const std::string& model = "echo") {
  Request request;
  request.model = model;
  ContentPart part;
  part.text = text;
  request.messages.push_back({"user", {part}});
  return request;
}

// All events of one request up to its end.
inline std::vector<Event> collect(LocalClient& client, uint32_t handle) {
  std::vector<Event> events;
  while (events.empty() || !is_end(events.back())) {
    auto next = client.next(10000);
    REQUIRE_MESSAGE(next.ok(), next.message());
    REQUIRE(next->has_value());
    if ((*next)->first == handle) events.push_back(std::move((*next)->second));
  }
  return events;
}

inline std::string answer(const std::vector<Event>& events) {
  std::string text;
  for (const Event& event : events) {
    if (const auto* chunk = std::get_if<TokenChunk>(&event)) text += chunk->text;
  }
  return text;
}

}  // namespace updraft::testing
