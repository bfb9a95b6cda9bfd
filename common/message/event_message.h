// Events of a request as messages on the wire and back: the same on the pool's connections and in
// shared memory.
#pragma once

#include <optional>

#include "common/message/pool_message.h"

namespace updraft {

// Started -> Accepted, TokenChunk -> Tokens, Finished -> Done, RequestError -> Failed.
PoolMessage to_message(const RequestId& id, uint32_t epoch, Event event);

// What a message says about a request: its id, epoch and the events in order; nothing for messages
// of another kind.
struct RequestEvents {
  RequestId id;
  uint32_t epoch = 1;
  std::vector<Event> events;
};
std::optional<RequestEvents> to_events(PoolMessage message);

}  // namespace updraft
