// A local server in this process whose service answers as the tests tell it, for clients that come
// through the library.
#pragma once

#include <doctest/doctest.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "common/message/service.h"
#include "tests/edge/local_daemon.h"

namespace updraft::testing {

constexpr size_t kHeaderBytes = 33;  // of a PNG: no text, so the echo leaves it out

// By the model's name: "echo" answers with the bytes of the parts and prompts in pieces of at most
// 1000, "script" with the events it was given, "hold" starts and never ends by itself.
class EchoService final : public InferenceService {
 public:
  void submit(Request request, EventSink sink) override {
    Started started;
    started.node_id = "echo";
    started.tier = Tier::kEdge;
    started.model = request.model;
    started.decision = "it is here";
    started.prompt_tokens = 7;
    std::vector<Event> script;
    bool holds = false;
    {
      const std::lock_guard lock(mutex_);
      last_ = request;
      ++submitted_;
      script = script_;
      holds = request.model == "hold" && !answers_held_;
      if (holds) held_[request.id] = sink;
    }
    changed_.notify_all();
    sink(started);
    if (holds) return;
    if (request.model == "script") {
      for (Event& event : script) sink(std::move(event));
      return;
    }
    std::string all;
    for (const ChatMessage& message : request.messages)
      for (const ContentPart& part : message.parts) {
        all += part.text;
        if (part.bytes.size() > kHeaderBytes) all += part.bytes.text().substr(kHeaderBytes);
      }
    for (const std::string& prompt : request.prompts) all += prompt;
    int32_t offset = 0;
    for (size_t at = 0; at < all.size(); at += 1000) {
      TokenChunk chunk;
      chunk.offset = offset++;
      chunk.ids = {chunk.offset};
      chunk.text = all.substr(at, 1000);
      sink(std::move(chunk));
    }
    sink(Finished{});
  }

  void cancel(const RequestId& id) override {
    EventSink sink;
    {
      const std::lock_guard lock(mutex_);
      const auto it = held_.find(id);
      if (it == held_.end()) return;
      sink = std::move(it->second);
      held_.erase(it);
      ++cancelled_;
    }
    changed_.notify_all();
    sink(error_of(ErrorCode::kCancelled, "the client left"));
  }

  std::vector<ModelInfo> models() const override {
    ModelInfo model;
    model.id = "echo";
    model.context_tokens = 512;
    return {model};
  }
  bool ready(std::string*) const override { return true; }

  void set_script(std::vector<Event> events) {
    const std::lock_guard lock(mutex_);
    script_ = std::move(events);
  }
  Request last() {
    const std::lock_guard lock(mutex_);
    return last_;
  }
  // From now on "hold" is answered like "echo".
  void answer_held() {
    const std::lock_guard lock(mutex_);
    answers_held_ = true;
  }
  void forget() {
    const std::lock_guard lock(mutex_);
    last_ = {};
  }
  bool wait_submitted(int count, int seconds = 10) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(seconds),
                             [&] { return submitted_ >= count; });
  }
  bool wait_cancelled(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return cancelled_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  Request last_;
  std::vector<Event> script_;
  std::map<RequestId, EventSink> held_;
  bool answers_held_ = false;
  int submitted_ = 0;
  int cancelled_ = 0;
};

// What a session with 1 MiB of payload has, and nothing for a further segment.
inline LocalServerConfig without_growth() {
  LocalServerConfig config;
  config.segment_bytes_max = 2'180'000;
  return config;
}

using EchoDaemon = LocalDaemon<EchoService, 20>;

}  // namespace updraft::testing
