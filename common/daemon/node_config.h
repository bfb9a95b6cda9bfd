// The sections that edge.toml and cloud.toml have in common, read in one place: keys, ranges and
// defaults are the same in both daemons.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/config/toml_file.h"
#include "common/http/server.h"
#include "common/log/log.h"
#include "common/serve/local_model.h"

namespace updraft {

// [pool]
struct PoolSection {
  explicit PoolSection(int32_t beat_ms = 100) : beat_interval_ms(beat_ms) {}

  std::vector<std::string> router_endpoints;  // routers; empty: a gateway of its own
  std::string router_key_file;                // router_key, the routers' public key
  std::string key_file;                       // key, this node's key pair
  int32_t beat_interval_ms;                   // beat_ms; 100 in the cloud, 250 at the edge
  int32_t lease_ttl_ms = 2000;                // lease_ms, at least twice beat_ms
  int32_t price = 0;                          // of a request here, in a unit of the operator's
};

// [node] id; absent: `role` + "-" + the host's name. Refused: anything but [a-z0-9-]{1,64}.
void read_node_section(TomlFile& file, const std::string& role, std::string& node_id);
// [model]; path is required.
void read_model_section(TomlFile& file, LocalModelConfig& model);
void read_pool_section(TomlFile& file, PoolSection& pool);
// [drain] grace_ms
void read_drain_section(TomlFile& file, int32_t& grace_ms);
// [log] level, format, file
void read_log_section(TomlFile& file, const std::string& component, LogConfig& log);

// A node's reload: what [http] says in `fresh` is in force at `server` from now on, if it can be.
// Returns the names of other settings that differ from `before`; logs what was done.
Result<std::vector<std::string>> reload_http(HttpServer& server, const HttpServerConfig& fresh,
                                             const Settings& before, const Settings& after,
                                             const std::string& file);

// "edge-" + host name in lower case, other characters as '-'.
std::string default_node_id(const std::string& role);

}  // namespace updraft
