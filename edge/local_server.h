// The daemon's side of the local handoff: sessions of local clients, each with its segment, in
// front of an InferenceService. A client, dead or hostile, can hurt only itself.
//
// Threads: one of its own, which owns listener, sessions, rings and the control channel. Events of
// the service arrive on other threads and are posted through a mailbox.
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
  int64_t segment_bytes_max = 64LL << 20;           // one session
  int64_t segment_bytes_per_uid_max = 512LL << 20;  // all sessions of a user
};

struct LocalServerStats {
  int32_t sessions = 0;
  int64_t mapped_bytes = 0;
  int32_t requests_in_flight = 0;
  int64_t sessions_refused = 0;
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
