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
  std::string pending;  // events of one batch, sent as one chunk
};

struct Connection::Route {
  std::string_view path;
  const char* label;  // in metrics and the access log
  bool is_post;
  bool needs_key;
  bool is_prefix;
};

}  // namespace updraft
