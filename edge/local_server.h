// The daemon's side of the local handoff: sessions of local clients, each with its segment, in
// front of an InferenceService. A client, dead or hostile, can hurt only itself.
//
// Threads: one of its own, which owns listener, sessions, submission rings and the control channel.
// Events of the service go from their own threads into the completion ring (local_outbox.h); what
// the server has to do about one, and events of unmapped sessions, are posted through a mailbox.
//
// While submissions come in quick succession the thread spins for the next one, at most spin_us,
// before it sleeps; an idle session costs nothing.
//
// A client that does not read pauses its streams: the service is told to stop generating for them
// and to go on when there is room in the completion ring again. After stall_ms they end.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/base/result.h"
#include "common/message/service.h"

namespace updraft {

struct LocalServerConfig {
  std::string socket_path;
  int32_t sessions_max = 256;
  int32_t sessions_per_uid_max = 256;
  int64_t segment_bytes_max = 64LL << 20;           // one session, all its segments
  int64_t segment_bytes_per_uid_max = 512LL << 20;  // all sessions of a user
  int32_t requests_per_uid_max = 4096;              // in flight, all sessions of a user
  // After a submission the thread looks at its rings for so long before it sleeps. More than a few
  // microseconds pay only where a core can be spared for it; an idle session costs nothing anyway.
  int64_t spin_us = 5;
  int64_t stall_ms = 10'000;  // a client that reads nothing for so long loses its open requests
};

struct LocalServerStats {
  int32_t sessions = 0;
  int64_t mapped_bytes = 0;     // of all segments, also those that only a request still holds
  int64_t huge_page_bytes = 0;  // of them in whole huge pages
  int32_t requests_in_flight = 0;
  int64_t requests_taken = 0;  // since the start, refused ones too
  int64_t sessions_refused = 0;
  int64_t segments_refused = 0;  // further ones
  int64_t requests_over_quota = 0;
  int64_t streams_stalled = 0;  // requests ended because their client read nothing for stall_ms
  int64_t sessions_broken = 0;  // ended because their memory made no sense
};

class LocalServer {
 public:
  virtual ~LocalServer() = default;  // ends every session
  // Errors: the socket's path is taken or cannot be made.
  static Result<std::unique_ptr<LocalServer>> start(const LocalServerConfig& config,
                                                    InferenceService& service);
  virtual LocalServerStats stats() const = 0;  // any thread
};

}  // namespace updraft
