// Waits for a request's events and checks the rules that every stream keeps.
#pragma once

#include <doctest/doctest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/message/event.h"

namespace updraft::testing {

class EventLog {
 public:
  // Runs on the service's thread after each event was kept. Set before the first event.
  std::function<void(const Event&)> on_event;

  // Keeps its own hold of the state: the service may still be inside the sink when the test goes
  // on.
  EventSink sink() {
    return [state = state_, then = on_event](Event event) {
      {
        const std::lock_guard lock(state->mutex);
        state->events.push_back(event);
        state->changed.notify_all();
      }
      if (then) then(event);
    };
  }
  // The end event; fails after a minute.
  Event wait_end() {
    std::unique_lock lock(state_->mutex);
    const bool ended = state_->changed.wait_for(lock, std::chrono::minutes(1), [&] {
      return !state_->events.empty() && is_end(state_->events.back());
    });
    REQUIRE(ended);
    return state_->events.back();
  }
  std::vector<Event> events() {
    const std::lock_guard lock(state_->mutex);
    return state_->events;
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<Event> events;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

struct Choice {
  std::string text;
  std::vector<int32_t> ids;
  std::vector<PositionLogprobs> logprobs;
  std::optional<FinishReason> finish;
};

struct Reply {
  Started started;
  std::vector<Choice> choices;
  std::vector<TokenChunk> chunks;
  std::optional<Finished> finished;
  std::optional<RequestError> error;
};

// Started first, offsets without gaps, nothing after a choice's finish, one end.
inline Reply assemble(const std::vector<Event>& events, size_t choice_count) {
  Reply reply;
  reply.choices.resize(choice_count);
  for (size_t i = 0; i < events.size(); ++i) {
    if (const auto* started = std::get_if<Started>(&events[i])) {
      REQUIRE(i == 0);
      reply.started = *started;
    } else if (const auto* chunk = std::get_if<TokenChunk>(&events[i])) {
      REQUIRE(i > 0);
      REQUIRE(static_cast<size_t>(chunk->choice) < choice_count);
      Choice& choice = reply.choices[static_cast<size_t>(chunk->choice)];
      REQUIRE_FALSE(choice.finish.has_value());
      REQUIRE(chunk->offset == static_cast<int32_t>(choice.ids.size()));
      choice.text += chunk->text;
      choice.ids.insert(choice.ids.end(), chunk->ids.begin(), chunk->ids.end());
      choice.logprobs.insert(choice.logprobs.end(), chunk->logprobs.begin(), chunk->logprobs.end());
      choice.finish = chunk->finish;
      reply.chunks.push_back(*chunk);
    } else {
      REQUIRE(i + 1 == events.size());
      if (const auto* finished = std::get_if<Finished>(&events[i])) reply.finished = *finished;
      if (const auto* error = std::get_if<RequestError>(&events[i])) reply.error = *error;
    }
  }
  if (reply.finished) {
    for (const Choice& choice : reply.choices) REQUIRE(choice.finish.has_value());
  }
  return reply;
}

}  // namespace updraft::testing
