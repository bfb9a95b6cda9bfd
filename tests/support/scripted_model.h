// Services whose answers a test writes by hand: ScriptedService, and ScriptedModel with load and
// token counts. Any thread.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "common/serve/local_model.h"

namespace updraft::testing {

inline Request chat_request(const std::string& id, const std::string& text = "hi",
                            const std::string& model = "") {
  Request r;
  r.id = id;
  r.model = model;
  r.messages = {{"user", {{ContentPart::Kind::kText, text, "", ""}}}};
  return r;
}

inline RequestError make_error(ErrorCode code, const std::string& message = "because") {
  RequestError error;
  error.code = code;
  error.message = message;
  return error;
}

// The events of one request.
class Answer {
 public:
  EventSink sink() {
    return [this](Event event) {
      const std::lock_guard lock(mutex_);
      if (is_end(event)) ++end_count_;
      events_.push_back(std::move(event));
    };
  }
  int end_count() const {
    const std::lock_guard lock(mutex_);
    return end_count_;
  }
  std::vector<Event> events() const {
    const std::lock_guard lock(mutex_);
    return events_;
  }
  // The end's error; kInternal with an empty message when it ended well or not at all.
  RequestError error() const {
    const std::lock_guard lock(mutex_);
    if (events_.empty() || !std::holds_alternative<RequestError>(events_.back())) return {};
    return std::get<RequestError>(events_.back());
  }
  std::string text() const {
    std::string out;
    for (const Event& event : events()) {
      if (const auto* chunk = std::get_if<TokenChunk>(&event)) out += chunk->text;
    }
    return out;
  }
  Started started() const {
    for (const Event& event : events()) {
      if (const auto* s = std::get_if<Started>(&event)) return *s;
    }
    return {};
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Event> events_;
  int end_count_ = 0;
};

// Base is InferenceService or LocalModel. Keeps what was submitted; the test emits the events.
// cancel() ends a request with kCancelled, as every service does.
template <typename Base>
class Scripted : public Base {
 public:
  void submit(Request request, EventSink sink) override {
    const std::lock_guard lock(mutex_);
    submitted_.push_back(request.id);
    requests_[request.id] = std::move(request);
    sinks_[submitted_.back()] = std::move(sink);
  }
  void cancel(const RequestId& id) override {
    EventSink sink;
    {
      const std::lock_guard lock(mutex_);
      cancelled_.push_back(id);
      const auto at = sinks_.find(id);
      if (at == sinks_.end()) return;
      sink = std::move(at->second);
      sinks_.erase(at);
    }
    sink(make_error(ErrorCode::kCancelled));
  }
  std::vector<ModelInfo> models() const override {
    const std::lock_guard lock(mutex_);
    return models_;
  }
  bool ready(std::string* why_not) const override {
    const std::lock_guard lock(mutex_);
    if (!ready_ && why_not != nullptr) *why_not = "the script says no";
    return ready_;
  }

  bool has(const RequestId& id) const {
    const std::lock_guard lock(mutex_);
    return sinks_.contains(id);
  }
  Request request(const RequestId& id) const {
    const std::lock_guard lock(mutex_);
    return requests_.at(id);
  }
  RequestId first_id() const {
    const std::lock_guard lock(mutex_);
    return submitted_.at(0);
  }
  // Where the bytes of its first part lie: tells a moved payload from a copied one.
  const char* payload_place(const RequestId& id) const {
    const std::lock_guard lock(mutex_);
    return requests_.at(id).messages.at(0).parts.at(0).text.data();
  }
  size_t submitted_count() const {
    const std::lock_guard lock(mutex_);
    return submitted_.size();
  }
  size_t cancelled_count() const {
    const std::lock_guard lock(mutex_);
    return cancelled_.size();
  }
  // False when no such request is open.
  bool emit(const RequestId& id, Event event) {
    EventSink sink;
    {
      const std::lock_guard lock(mutex_);
      const auto at = sinks_.find(id);
      if (at == sinks_.end()) return false;
      sink = at->second;
      if (is_end(event)) sinks_.erase(at);
    }
    sink(std::move(event));
    return true;
  }
  void set_models(std::vector<ModelInfo> models) {
    const std::lock_guard lock(mutex_);
    models_ = std::move(models);
  }
  void set_ready(bool ready) {
    const std::lock_guard lock(mutex_);
    ready_ = ready;
  }

 protected:
  mutable std::mutex mutex_;

 private:
  std::vector<RequestId> submitted_;
  std::vector<RequestId> cancelled_;
  std::map<RequestId, Request> requests_;
  std::map<RequestId, EventSink> sinks_;
  std::vector<ModelInfo> models_;
  bool ready_ = true;
};

using ScriptedService = Scripted<InferenceService>;

// One token per word of the prompt; a prompt that contains "uncountable" cannot be measured.
class ScriptedModel : public Scripted<LocalModel> {
 public:
  explicit ScriptedModel(int32_t context_tokens = 1000) {
    ModelInfo info;
    info.id = "tiny";
    info.context_tokens = context_tokens;
    set_models({info});
    load_.slots_total = 2;
    load_.slots_free = 2;
    load_.kv_tokens_total = 4 * context_tokens;
    load_.kv_tokens_free = 4 * context_tokens;
  }
  Result<Size> measure(const Request& request) const override {
    Size size;
    std::string text;
    for (const ChatMessage& message : request.messages) {
      for (const ContentPart& part : message.parts) text += part.text + " ";
    }
    for (const std::string& prompt : request.prompts) text += prompt + " ";
    if (text.find("uncountable") != std::string::npos) return fail("cannot be counted");
    size.prompt_tokens = static_cast<int32_t>(std::count(text.begin(), text.end(), ' '));
    size.wanted_tokens = request.sampling.max_tokens.value_or(0);
    const std::lock_guard lock(mutex_);
    ++measured_count_;
    return size;
  }
  ServiceLoad load() const override {
    const std::lock_guard lock(mutex_);
    return load_;
  }
  std::string description() const override { return "a scripted model"; }
  std::string device() const override { return "script"; }
  bool has_chat_template() const override { return true; }
  void drain() override { set_ready(false); }

  void set_load(const ServiceLoad& load) {
    const std::lock_guard lock(mutex_);
    load_ = load;
  }
  int measured_count() const {
    const std::lock_guard lock(mutex_);
    return measured_count_;
  }

 private:
  ServiceLoad load_;
  mutable int measured_count_ = 0;
};

}  // namespace updraft::testing
