// configs/router.toml -> RouterConfig: every key, its range and its default in one place.
#include <string>
#include <utility>
#include <vector>

#include "cloud/router/router.h"
#include "common/config/api_keys.h"
#include "common/config/toml_file.h"

namespace updraft {
namespace {

void get_limits(TomlFile& file, HttpLimits& limits) {
  uint64_t header_bytes = limits.header_bytes_max;
  uint64_t body_bytes = limits.body_bytes_max;
  uint64_t stream_bytes = limits.stream_buffer_bytes_max;
  file.get_bytes("http.header_bytes_max", header_bytes);
  file.get_bytes("http.body_bytes_max", body_bytes);
  file.get_bytes("http.stream_buffer_bytes_max", stream_bytes);
  const auto check = [&](const char* key, uint64_t bytes, uint64_t min, uint64_t max) {
    if (bytes >= min && bytes <= max) return;
    file.refuse(key, std::to_string(bytes) + " bytes is not in " + std::to_string(min) + ".." +
                         std::to_string(max));
  };
  check("http.header_bytes_max", header_bytes, 1024, 1 << 20);
  check("http.body_bytes_max", body_bytes, 1024, 24 << 20);
  check("http.stream_buffer_bytes_max", stream_bytes, 4096, 64 << 20);
  limits.header_bytes_max = header_bytes;
  limits.body_bytes_max = body_bytes;
  limits.stream_buffer_bytes_max = stream_bytes;
  file.get("http.header_count_max", limits.header_count_max, 8, 1024);
  file.get("http.connections_max", limits.connections_max, 1, 1'000'000);
  file.get("http.request_read_timeout_ms", limits.request_read_timeout_ms, 100, 3'600'000);
  file.get("http.idle_timeout_ms", limits.idle_timeout_ms, 100, 3'600'000);
  file.get("http.write_stall_timeout_ms", limits.write_stall_timeout_ms, 100, 3'600'000);
  file.get("http.sse_keepalive_ms", limits.sse_keepalive_ms, 100, 3'600'000);
}

void get_http(TomlFile& file, HttpServerConfig& http) {
  file.get("http.bind", http.bind_address);
  file.get("http.port", http.port, 0, 65535);
  file.get("http.allowed_hosts", http.allowed_hosts);
  std::string keys_path;
  file.get_path("http.api_keys_file", keys_path);
  if (!keys_path.empty()) {
    Result<std::vector<std::string>> digests = load_api_key_digests(keys_path);
    if (!digests) {
      file.refuse("http.api_keys_file", digests.message());
    } else if (digests->empty()) {
      file.refuse("http.api_keys_file", "= " + keys_path + " holds no key");
    } else {
      http.api_keys_sha256 = std::move(*digests);
    }
  }
  get_limits(file, http.limits);
}

void get_log(TomlFile& file, LogConfig& log) {
  std::string level = "info";
  std::string format = "text";
  file.get_choice("log.level", level, {"debug", "info", "warn", "error"});
  file.get_choice("log.format", format, {"text", "json"});
  file.get_path("log.file", log.file);
  if (Result<LogLevel> parsed = parse_log_level(level)) log.level = *parsed;
  log.format = format == "json" ? LogFormat::kJson : LogFormat::kText;
}

void need(TomlFile& file, const char* key, const std::string& value, const char* what) {
  if (value.empty()) file.refuse(key, std::string("is missing: ") + what);
}

}  // namespace

Result<RouterConfig> load_router_config(const std::string& path) {
  Result<TomlFile> opened = TomlFile::open(path);
  if (!opened) return opened.error();
  TomlFile& file = *opened;
  RouterConfig config;
  config.http.port = 8080;
  file.get("router.id", config.router_id);
  const bool named = !config.router_id.empty() && config.router_id.size() <= 64;
  if (!named) file.refuse("router.id", "must have 1 to 64 characters");
  get_http(file, config.http);
  file.get("pool.listen", config.pool_endpoint);
  file.get_path("pool.key", config.key_file);
  file.get_path("pool.nodes", config.allowed_keys_folder);
  need(file, "pool.key", config.key_file, "the router's key file (updraft keys new)");
  need(file, "pool.nodes", config.allowed_keys_folder,
       "the folder of the nodes' public keys (updraft keys allow)");
  file.get("queue.max", config.queue_max, 1, 1'000'000);
  file.get("queue.timeout_ms", config.queue_timeout_ms, 1, 3'600'000);
  file.get("placement.edge_reserve_slots", config.edge_reserve_slots, 0, 256);
  get_log(file, config.log);
  config.log.component = config.router_id;
  if (Result<void> finished = file.finish(); !finished) return finished.error();
  return config;
}

}  // namespace updraft
