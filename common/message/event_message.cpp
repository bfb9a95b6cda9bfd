// Events to messages and back.
#include "common/message/event_message.h"

#include <type_traits>
#include <utility>

namespace updraft {

PoolMessage to_message(const RequestId& id, uint32_t epoch, Event event) {
  return std::visit(
      [&](auto&& value) -> PoolMessage {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, Started>) {
          return Accepted{id, epoch, 0, std::move(value)};
        } else if constexpr (std::is_same_v<T, TokenChunk>) {
          return Tokens{id, epoch, {std::move(value)}};
        } else if constexpr (std::is_same_v<T, Finished>) {
          return Done{id, epoch, value};
        } else {
          return Failed{id, epoch, std::move(value)};
        }
      },
      std::move(event));
}

std::optional<RequestEvents> to_events(PoolMessage message) {
  if (auto* accepted = std::get_if<Accepted>(&message)) {
    return RequestEvents{accepted->id, accepted->epoch, {std::move(accepted->started)}};
  }
  if (auto* tokens = std::get_if<Tokens>(&message)) {
    RequestEvents out{tokens->id, tokens->epoch, {}};
    for (TokenChunk& chunk : tokens->chunks) out.events.emplace_back(std::move(chunk));
    return out;
  }
  if (auto* done = std::get_if<Done>(&message))
    return RequestEvents{done->id, done->epoch, {done->finished}};
  if (auto* failed = std::get_if<Failed>(&message)) {
    return RequestEvents{failed->id, failed->epoch, {std::move(failed->error)}};
  }
  if (auto* rejected = std::get_if<Rejected>(&message)) {
    return RequestEvents{rejected->id, rejected->epoch, {std::move(rejected->error)}};
  }
  return std::nullopt;
}

}  // namespace updraft
