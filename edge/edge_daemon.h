// The edge daemon: a small model on the gateway, local clients through shared memory and loopback
// HTTP, a pool link upward. Placement at the edge is a pure function (placement.h): what fits is
// served here, the rest rises.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/memory_level.h"
#include "common/base/progress.h"
#include "common/base/result.h"
#include "common/daemon/node_config.h"
#include "common/http/server.h"
#include "common/log/log.h"
#include "common/serve/local_model.h"

namespace updraft {

struct EdgeConfig {
  std::string file;                     // where all this was read; empty: no reload
  Settings settings;                    // as they were read, to tell what a reload cannot change
  std::string node_id;                  // [node] id; empty: "edge-" + host name
  LocalModelConfig model;               // [model]
  PoolSection pool = PoolSection(250);  // [pool]; no routers: a gateway of its own
  HttpServerConfig http;                // [http] loopback endpoint
  std::string socket_path;  // [local] handoff socket; empty: $XDG_RUNTIME_DIR/updraft/edge.sock or
                            // /tmp/updraft-<uid>/edge.sock
  int32_t sessions_max = 256;
  int32_t sessions_per_uid_max = 256;
  int64_t segment_bytes_max = 64LL << 20;  // per session
  int64_t segment_bytes_per_uid_max = 512LL << 20;
  int32_t requests_per_uid_max = 4096;  // in flight, all sessions of a user
  int64_t stall_ms = 10'000;  // a client that reads nothing for so long loses its open requests
  int32_t local_spin_us = 5;  // LocalServerConfig::spin_us
  MemoryThresholds memory;    // [memory] from where on work is shed, and refused
  std::string memory_root;    // stands before /proc and /sys, for tests
  int32_t drain_grace_ms = 30000;
  LogConfig log;
};
Result<EdgeConfig> load_edge_config(const std::string& path);

class EdgeDaemon {
 public:
  virtual ~EdgeDaemon() = default;
  static Result<std::unique_ptr<EdgeDaemon>> start(const EdgeConfig& config,
                                                   const Progress& progress);
  // The same around a model that is already there.
  static Result<std::unique_ptr<EdgeDaemon>> start(const EdgeConfig& config,
                                                   std::unique_ptr<LocalModel> model);
  virtual uint16_t http_port() const = 0;
  virtual std::string socket_path() const = 0;
  virtual bool connected() const = 0;  // welcomed by the router
  // Any thread. Reads the configuration's file again and takes over keys, certificates, hosts and
  // limits of [http]. Returns the names of other settings that differ and need a restart; a file
  // that is refused changes nothing.
  virtual Result<std::vector<std::string>> reload() = 0;
  virtual void stop() = 0;
};

}  // namespace updraft
