// See the header.
#include "common/daemon/node_config.h"

#include <unistd.h>

#include <algorithm>
#include <climits>

#include "common/base/bytes.h"
#include "common/http/http_config.h"
#include "common/message/node_status.h"

namespace updraft {

std::string default_node_id(const std::string& role) {
  char host[HOST_NAME_MAX + 1] = "";
  if (gethostname(host, sizeof host - 1) != 0) host[0] = '\0';
  std::string id = role + "-" + host;
  for (char& c : id) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))) c = '-';
  }
  if (id.size() > kNodeIdBytesMax) id.resize(kNodeIdBytesMax);
  return id;
}

void read_node_section(TomlFile& file, const std::string& role, std::string& node_id) {
  node_id = default_node_id(role);
  file.get("node.id", node_id);
  if (!is_node_id(node_id)) {
    file.refuse("node.id", "= \"" + printable(node_id) + "\" is not 1..64 of a-z, 0-9 and '-'");
  }
}

void read_model_section(TomlFile& file, LocalModelConfig& model) {
  file.get_path("model.path", model.model_path);
  if (model.model_path.empty()) file.refuse("model.path", "is missing: the model's file or folder");
  file.get("model.name", model.served_name);
  file.get("model.aliases", model.aliases);
  file.get("model.chat_template", model.chat_template);
  file.get("model.context", model.context_tokens, 0, 1 << 26);
  file.get("model.slots", model.slots, 1, 256);
  file.get("model.queue_max", model.queue_max, 1, 65536);
  file.get("model.page_tokens", model.page_tokens, 16, 256);
  file.get_choice("model.kv_type", model.kv_type, {"f32", "f16", "bf16", "int8", "fp8"});
  file.get("model.kv_tokens", model.kv_tokens, 0, int64_t{1} << 40);
  file.get_bytes("model.kv_swap", model.kv_swap_bytes);
  file.get("model.step_tokens_max", model.step_tokens_max, 1, 65536);
  file.get("model.prefix_cache", model.prefix_cache);
  file.get("model.speculation", model.speculation);
  file.get("model.draft_tokens_max", model.draft_tokens_max, 1, 64);
  file.get_choice("model.backend", model.backend, {"auto", "cpu", "cuda"});
  file.get_choice("model.weights", model.weights, {"as is", "fp8"});
  file.get_choice("model.activations", model.activations, {"bf16", "int8", "fp8"});
  file.get("model.offload", model.offload);
  file.get("model.tune", model.tune);
  file.get_path("model.tune_cache", model.tune_cache);
  file.get("model.warpgroups", model.warpgroups);
  file.get("model.gpus", model.gpus, 0, 63);
  if (model.gpus.empty() || model.gpus.size() > 16)
    file.refuse("model.gpus",
                "names " + std::to_string(model.gpus.size()) + " GPUs, must be 1..16");
  file.get("model.tensor_parallel", model.tensor_parallel, 1, 16);
  std::vector<std::string> isas = isa_choices();
  isas.insert(isas.begin(), "");  // the best of this machine
  file.get_choice("model.isa", model.isa, isas);
  file.get("model.threads", model.threads, 0, 1024);
  file.get("model.cores", model.cores, 0, 65535);
  file.get_bytes("model.max_memory", model.max_memory_bytes);
  file.get("model.exact", model.exact);
}

void read_pool_section(TomlFile& file, PoolSection& pool) {
  file.get("pool.routers", pool.router_endpoints);
  file.get_path("pool.router_key", pool.router_key_file);
  file.get_path("pool.key", pool.key_file);
  file.get("pool.beat_ms", pool.beat_interval_ms, 10, 10'000);
  file.get("pool.lease_ms", pool.lease_ttl_ms, 100, 600'000);
  file.get("pool.price", pool.price, 0, 1'000'000);
  if (pool.lease_ttl_ms < 2 * pool.beat_interval_ms) {
    file.refuse("pool.lease_ms",
                "= " + std::to_string(pool.lease_ttl_ms) +
                    " is less than twice beat_ms = " + std::to_string(pool.beat_interval_ms));
  }
  if (pool.router_endpoints.empty()) return;
  if (pool.router_key_file.empty())
    file.refuse("pool.router_key", "is missing: the file of the routers' public key");
  if (pool.key_file.empty())
    file.refuse("pool.key", "is missing: the file of this node's key (updraft keys new)");
}

Result<std::vector<std::string>> reload_http(HttpServer& server, const HttpServerConfig& fresh,
                                             const Settings& before, const Settings& after,
                                             const std::string& file) {
  if (auto done = server.reconfigure(fresh); !done) return done.error();
  log_info("configuration reloaded", {{"file", file}});
  return needs_restart(before, after);
}

void read_drain_section(TomlFile& file, int32_t& grace_ms) {
  file.get("drain.grace_ms", grace_ms, 0, 3'600'000);
}

void read_log_section(TomlFile& file, const std::string& component, LogConfig& log) {
  std::string level = "info";
  std::string format = log.format == LogFormat::kJson ? "json" : "text";
  file.get_choice("log.level", level, {"debug", "info", "warn", "error"});
  file.get_choice("log.format", format, {"text", "json"});
  file.get_path("log.file", log.file);
  if (const auto parsed = parse_log_level(level)) log.level = *parsed;
  log.format = format == "json" ? LogFormat::kJson : LogFormat::kText;
  log.component = component;
}

}  // namespace updraft
