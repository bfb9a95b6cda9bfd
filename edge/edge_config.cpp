// edge.toml -> EdgeConfig.
#include <unistd.h>

#include <cstdlib>

#include "common/config/memory_section.h"
#include "common/daemon/node_config.h"
#include "common/http/http_config.h"
#include "edge/edge_daemon.h"

namespace updraft {
namespace {

constexpr size_t kSocketPathBytesMax = 107;  // sockaddr_un

// In the user's own runtime folder, so that others cannot take the name.
std::string default_socket_path() {
  if (const char* runtime = std::getenv("XDG_RUNTIME_DIR");
      runtime != nullptr && runtime[0] == '/') {
    return std::string(runtime) + "/updraft/edge.sock";
  }
  return "/tmp/updraft-" + std::to_string(getuid()) + "/edge.sock";
}

void read_local_section(TomlFile& file, EdgeConfig& config) {
  file.get_path("local.socket", config.socket_path);
  if (config.socket_path.empty()) config.socket_path = default_socket_path();
  if (config.socket_path.size() > kSocketPathBytesMax) {
    file.refuse("local.socket", "= " + config.socket_path + " has more than " +
                                    std::to_string(kSocketPathBytesMax) + " bytes");
  }
  file.get("local.sessions_max", config.sessions_max, 1, 65536);
  file.get("local.sessions_per_uid_max", config.sessions_per_uid_max, 1, 65536);
  file.get("local.requests_per_uid_max", config.requests_per_uid_max, 1, 1'000'000);
  file.get("local.stall_ms", config.stall_ms, 100, 600'000);
  file.get("local.spin_us", config.local_spin_us, 0, 1'000'000);
  auto segment_max = static_cast<uint64_t>(config.segment_bytes_max);
  auto per_uid_max = static_cast<uint64_t>(config.segment_bytes_per_uid_max);
  file.get_bytes("local.segment_max", segment_max);
  file.get_bytes("local.segment_per_uid_max", per_uid_max);
  constexpr uint64_t kSegmentBytesMin = 64 * 1024;
  constexpr uint64_t kSegmentBytesMax = uint64_t{1} << 40;
  if (segment_max < kSegmentBytesMin || segment_max > kSegmentBytesMax) {
    file.refuse("local.segment_max",
                "= " + std::to_string(segment_max) + " bytes is not in 64 KiB..1 TiB");
  } else if (per_uid_max < segment_max || per_uid_max > kSegmentBytesMax) {
    file.refuse("local.segment_per_uid_max",
                "= " + std::to_string(per_uid_max) + " bytes is not in segment_max..1 TiB");
  } else {
    config.segment_bytes_max = static_cast<int64_t>(segment_max);
    config.segment_bytes_per_uid_max = static_cast<int64_t>(per_uid_max);
  }
}

}  // namespace

Result<EdgeConfig> load_edge_config(const std::string& path) {
  Result<TomlFile> file = TomlFile::open(path);
  if (!file) return file.error();
  EdgeConfig config;
  config.file = path;
  config.model.slots = 4;
  config.model.queue_max = 64;
  read_node_section(*file, "edge", config.node_id);
  read_model_section(*file, config.model);
  read_pool_section(*file, config.pool);
  config.http.port = 8081;
  read_http_section(*file, config.http);
  read_local_section(*file, config);
  read_memory_section(*file, config.memory);
  read_drain_section(*file, config.drain_grace_ms);
  read_log_section(*file, config.node_id, config.log);
  if (auto done = file->finish(); !done) return done.error();
  config.settings = file->settings();
  return config;
}

}  // namespace updraft
