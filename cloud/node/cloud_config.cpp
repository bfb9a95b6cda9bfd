// cloud.toml -> CloudConfig.
#include "cloud/node/cloud_node.h"
#include "common/daemon/node_config.h"

namespace updraft {

Result<CloudConfig> load_cloud_config(const std::string& path) {
  Result<TomlFile> file = TomlFile::open(path);
  if (!file) return file.error();
  CloudConfig config;
  read_node_section(*file, "cloud", config.node_id);
  read_model_section(*file, config.model);
  PoolSection pool;
  pool.beat_interval_ms = config.beat_interval_ms;
  pool.lease_ttl_ms = config.lease_ttl_ms;
  read_pool_section(*file, pool);
  if (pool.router_endpoints.empty()) {
    file->refuse("pool.routers", "is empty: a cloud node serves nobody without a router");
  }
  config.router_endpoints = pool.router_endpoints;
  config.router_key_file = pool.router_key_file;
  config.key_file = pool.key_file;
  config.beat_interval_ms = pool.beat_interval_ms;
  config.lease_ttl_ms = pool.lease_ttl_ms;
  read_listen_section(*file, config.http_bind, config.http_port, config.api_keys_sha256);
  read_drain_section(*file, config.drain_grace_ms);
  read_log_section(*file, config.node_id, config.log);
  if (auto done = file->finish(); !done) return done.error();
  config.model.tier = Tier::kCloud;
  config.model.node_id = config.node_id;
  return config;
}

}  // namespace updraft
