// cloud.toml -> CloudConfig.
#include "cloud/node/cloud_node.h"
#include "common/config/memory_section.h"
#include "common/daemon/node_config.h"
#include "common/http/http_config.h"

namespace updraft {

Result<CloudConfig> load_cloud_config(const std::string& path) {
  Result<TomlFile> file = TomlFile::open(path);
  if (!file) return file.error();
  CloudConfig config;
  config.file = path;
  read_node_section(*file, "cloud", config.node_id);
  read_model_section(*file, config.model);
  read_pool_section(*file, config.pool);
  if (config.pool.router_endpoints.empty()) {
    file->refuse("pool.routers", "is empty: a cloud node serves nobody without a router");
  }
  read_http_section(*file, config.http);
  read_memory_section(*file, config.memory);
  read_drain_section(*file, config.drain_grace_ms);
  read_log_section(*file, config.node_id, config.log);
  if (auto done = file->finish(); !done) return done.error();
  config.settings = file->settings();
  return config;
}

}  // namespace updraft
