// The router's daemon: one OpenAI endpoint in front of every node. HTTP (common/http) on one
// thread, the core and the pool's socket on another, the administrators' listener on a third; the
// core (core.h) is pure: events and now_ns in, decisions out.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/memory_level.h"
#include "common/base/result.h"
#include "common/config/toml_file.h"
#include "common/http/server.h"
#include "common/log/log.h"

namespace updraft {

struct RouterConfig {
  std::string router_id = "router";
  std::string file;        // where all this was read; empty: no reload
  Settings settings;       // as they were read, to tell what a reload cannot change
  HttpServerConfig http;   // [http] bind, port, keys, TLS, limits
  bool has_admin = false;  // [admin] port is given: the administrators' own listener
  HttpServerConfig admin;  // [admin] bind, port; keys, TLS and limits are those of [http]
  std::string audit_file;  // [admin] audit_file, what administrators did
  std::string pool_endpoint = "tcp://127.0.0.1:7070";  // [pool] listen
  std::string key_file;                                // [pool] key
  std::string allowed_keys_folder;   // [pool] nodes; re-read every few seconds, so nodes are added
                                     // without a restart
  int32_t queue_max = 1024;          // [queue] requests waiting for a node
  int32_t queue_timeout_ms = 30000;  // then 503 with Retry-After
  int32_t edge_reserve_slots = 0;    // [placement] of each edge, kept for its own clients
  int32_t price_weight_ms =
      0;                    // by how much longer a request may take to cost one unit of price less
  MemoryThresholds memory;  // [memory] from where on requests are shed, and refused
  std::string memory_root;  // stands before /proc and /sys, for tests
  LogConfig log;
};
Result<RouterConfig> load_router_config(const std::string& path);

// What came of a reload: names of settings that differ from what runs and that a start alone can
// change.
struct ReloadReport {
  std::vector<std::string> needs_restart;
};

class Router {
 public:
  virtual ~Router() = default;
  static Result<std::unique_ptr<Router>> start(const RouterConfig& config);
  virtual uint16_t http_port() const = 0;
  virtual uint16_t admin_port() const = 0;  // 0: there is no such listener
  // Any thread. Reads the configuration's file again and takes over keys, certificates, hosts and
  // the limits of [http] for what comes from now on. A file that is refused, or files it names,
  // changes nothing.
  virtual Result<ReloadReport> reload() = 0;
  virtual std::string pool_endpoint() const = 0;
  // Nodes known and FRESH, for `updraft up` and tests: id, tier, model ids.
  struct NodeView {
    std::string id;
    Tier tier = Tier::kAny;
    std::string state;  // "fresh", "suspect", "stale", "dead", "draining", "loading"
    std::vector<std::string> models;
    int32_t running = 0;
  };
  virtual std::vector<NodeView> nodes() const = 0;
  virtual void stop(int grace_ms) = 0;
};

}  // namespace updraft
