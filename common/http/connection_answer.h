// The part of a connection that exists only while an inference request is being answered. Internal
// to connection.cpp and exchange.cpp.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "common/http/connection.h"

namespace updraft {

struct Connection::Answer {
  RequestId id;
  std::shared_ptr<EventInbox> inbox;
  std::optional<StreamAnswer> stream;  // exactly one of the two
  std::optional<WholeAnswer> whole;
  Started started;
  bool placed = false;     // Started came
  bool streaming = false;  // the head of a streamed answer is sent
  bool ended = false;      // the service's end event came
  int64_t ttft_ms = -1;
  bool complete = false;      // with Finished
  RateLimits::Ticket ticket;  // of the key's limits, settled at the end
  int64_t prompt_tokens_assumed = 0;
  int64_t tokens_seen = 0;
  std::string idempotency_key;  // empty: none, or its answer is kept already
  std::string kept;             // of a stream, for whoever asks again with that key
  std::string pending;          // events of one batch, sent as one chunk
};

}  // namespace updraft
