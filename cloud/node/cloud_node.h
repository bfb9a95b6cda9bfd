// The cloud node's daemon: a LocalModel behind a pool link, with /metrics, /livez and /readyz on a
// small HTTP listener.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/memory_level.h"
#include "common/base/progress.h"
#include "common/base/result.h"
#include "common/daemon/node_config.h"
#include "common/log/log.h"
#include "common/serve/local_model.h"

namespace updraft {

// configs/cloud.toml, section by section; defaults here, validated by load_cloud_config().
struct CloudConfig {
  std::string file;                     // where all this was read; empty: no reload
  Settings settings;                    // as they were read, to tell what a reload cannot change
  std::string node_id;                  // [node] id; empty: "cloud-" + host name
  LocalModelConfig model;               // [model]
  PoolSection pool = PoolSection(100);  // [pool]
  HttpServerConfig http;                // [http] metrics and health only
  MemoryThresholds memory;              // [memory] from where on work is shed, and refused
  std::string memory_root;              // stands before /proc and /sys, for tests
  int32_t drain_grace_ms = 30000;
  LogConfig log;
};
Result<CloudConfig> load_cloud_config(const std::string& path);

class CloudNode {
 public:
  virtual ~CloudNode() = default;
  // Loads the model (progress), starts the link and the listener.
  static Result<std::unique_ptr<CloudNode>> start(const CloudConfig& config,
                                                  const Progress& progress);
  // The same around a model that is already there.
  static Result<std::unique_ptr<CloudNode>> start(const CloudConfig& config,
                                                  std::unique_ptr<LocalModel> model);
  virtual bool connected() const = 0;  // welcomed by at least one router
  virtual uint16_t http_port() const = 0;
  // Any thread. Reads the configuration's file again and takes over keys, certificates, hosts and
  // limits of [http]. Returns the names of other settings that differ and need a restart; a file
  // that is refused changes nothing.
  virtual Result<std::vector<std::string>> reload() = 0;
  // Drains and stops; returns when everything has ended or grace is over.
  virtual void stop() = 0;
};

}  // namespace updraft
