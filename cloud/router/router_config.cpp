// configs/router.toml -> RouterConfig: every key, its range and its default in one place.
#include <string>
#include <utility>

#include "cloud/router/router.h"
#include "common/config/memory_section.h"
#include "common/config/toml_file.h"
#include "common/http/http_config.h"

namespace updraft {
namespace {

void get_log(TomlFile& file, LogConfig& log) {
  std::string level = "info";
  std::string format = "text";
  file.get_choice("log.level", level, {"debug", "info", "warn", "error"});
  file.get_choice("log.format", format, {"text", "json"});
  file.get_path("log.file", log.file);
  if (Result<LogLevel> parsed = parse_log_level(level)) log.level = *parsed;
  log.format = format == "json" ? LogFormat::kJson : LogFormat::kText;
}

void get_admin(TomlFile& file, RouterConfig& config) {
  config.admin = config.http;
  config.admin.bind_address = "127.0.0.1";
  config.has_admin = file.has("admin.port");
  file.get("admin.port", config.admin.port, 0, 65535);
  file.get("admin.bind", config.admin.bind_address);
  file.get_path("admin.audit_file", config.audit_file);
  if (!config.has_admin) return;
  if (config.audit_file.empty())
    file.refuse("admin.audit_file", "is missing: the file that says what administrators did");
  if (config.http.auth == nullptr || !config.http.auth->has_admin()) {
    file.refuse("admin.port",
                "needs a key with the role admin in [http] api_keys_file (updraft keys api FILE "
                "--role admin) or jwt_keys_file");
  }
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
  config.file = path;
  read_http_section(file, config.http);
  get_admin(file, config);
  file.get("pool.listen", config.pool_endpoint);
  file.get_path("pool.key", config.key_file);
  file.get_path("pool.nodes", config.allowed_keys_folder);
  need(file, "pool.key", config.key_file, "the router's key file (updraft keys new)");
  need(file, "pool.nodes", config.allowed_keys_folder,
       "the folder of the nodes' public keys (updraft keys allow)");
  file.get("queue.max", config.queue_max, 1, 1'000'000);
  file.get("queue.timeout_ms", config.queue_timeout_ms, 1, 3'600'000);
  file.get("placement.edge_reserve_slots", config.edge_reserve_slots, 0, 256);
  file.get("placement.price_weight_ms", config.price_weight_ms, 0, 1'000'000);
  read_memory_section(file, config.memory);
  get_log(file, config.log);
  config.log.component = config.router_id;
  if (Result<void> finished = file.finish(); !finished) return finished.error();
  config.settings = file.settings();
  return config;
}

}  // namespace updraft
