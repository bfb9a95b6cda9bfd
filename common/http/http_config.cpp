// See the header.
#include "common/http/http_config.h"

#include <utility>
#include <vector>

namespace updraft {
namespace {

void read_bytes(TomlFile& file, const char* key, size_t& out, uint64_t min, uint64_t max) {
  uint64_t bytes = out;
  file.get_bytes(key, bytes);
  if (bytes < min || bytes > max) {
    file.refuse(key, std::to_string(bytes) + " bytes is not in " + std::to_string(min) + ".." +
                         std::to_string(max));
    return;
  }
  out = bytes;
}

void read_limits(TomlFile& file, HttpLimits& limits) {
  read_bytes(file, "http.header_bytes_max", limits.header_bytes_max, 1024, 1 << 20);
  read_bytes(file, "http.body_bytes_max", limits.body_bytes_max, 1024, 24 << 20);
  read_bytes(file, "http.stream_buffer_bytes_max", limits.stream_buffer_bytes_max, 4096, 64 << 20);
  file.get("http.header_count_max", limits.header_count_max, 8, 1024);
  file.get("http.connections_max", limits.connections_max, 1, 1'000'000);
  file.get("http.request_read_timeout_ms", limits.request_read_timeout_ms, 100, 3'600'000);
  file.get("http.idle_timeout_ms", limits.idle_timeout_ms, 100, 3'600'000);
  file.get("http.write_stall_timeout_ms", limits.write_stall_timeout_ms, 100, 3'600'000);
  file.get("http.sse_keepalive_ms", limits.sse_keepalive_ms, 100, 3'600'000);
}

void read_idempotency(TomlFile& file, IdempotencyLimits& limits) {
  auto entries = static_cast<int64_t>(limits.entries_max);
  file.get("http.idempotency_entries_max", entries, 0, 10'000'000);
  limits.entries_max = static_cast<size_t>(entries);
  read_bytes(file, "http.idempotency_bytes_max", limits.bytes_max, 0, uint64_t{64} << 30);
  int64_t keep_s = limits.keep_ms / 1000;
  file.get("http.idempotency_keep_s", keep_s, 1, 7 * 24 * 3600);
  limits.keep_ms = keep_s * 1000;
}

void read_auth(TomlFile& file, HttpServerConfig& http) {
  std::string keys_path;
  std::string tokens_path;
  JwtPolicy tokens;
  std::vector<ApiKey> keys;
  file.get_path("http.api_keys_file", keys_path);
  file.get_path("http.jwt_keys_file", tokens_path);
  file.get("http.jwt_audience", tokens.audience);
  file.get("http.jwt_leeway_s", tokens.leeway_s, 0, 600);
  if (!keys_path.empty()) {
    auto loaded = load_api_keys(keys_path);
    if (!loaded) {
      file.refuse("http.api_keys_file", loaded.message());
    } else if (loaded->empty()) {
      file.refuse("http.api_keys_file", "= " + keys_path + " holds no key");
    } else {
      keys = std::move(*loaded);
    }
  }
  if (!tokens_path.empty()) {
    auto loaded = load_jwt_keys(tokens_path);
    if (!loaded) {
      file.refuse("http.jwt_keys_file", loaded.message());
    } else if (loaded->empty()) {
      file.refuse("http.jwt_keys_file", "= " + tokens_path + " holds no key");
    } else {
      tokens.keys = std::move(*loaded);
    }
    if (tokens.audience.empty())
      file.refuse("http.jwt_audience", "is missing: what a token's \"aud\" must name");
  }
  if (!keys.empty() || !tokens.keys.empty())
    http.auth = std::make_shared<const Authenticator>(std::move(keys), std::move(tokens));
}

}  // namespace

void read_http_section(TomlFile& file, HttpServerConfig& http) {
  file.get("http.bind", http.bind_address);
  if (http.bind_address.empty())
    file.refuse("http.bind", "is empty: an address such as \"127.0.0.1\" is wanted");
  file.get("http.port", http.port, 0, 65535);
  file.get("http.allowed_hosts", http.allowed_hosts);
  file.get_path("http.tls_cert", http.tls_cert_file);
  file.get_path("http.tls_key", http.tls_key_file);
  file.get("http.tls_proxy", http.behind_tls_proxy);
  if (http.tls_cert_file.empty() != http.tls_key_file.empty()) {
    const char* missing = http.tls_cert_file.empty() ? "http.tls_cert" : "http.tls_key";
    file.refuse(missing, "is missing: a certificate and its key go together");
  }
  read_auth(file, http);
  read_limits(file, http.limits);
  read_idempotency(file, http.idempotency);
}

std::vector<std::string> needs_restart(const Settings& before, const Settings& after) {
  std::vector<std::string> names = changed_settings(before, after);
  std::erase_if(names, [](const std::string& name) {
    return name.starts_with("http.") && name != "http.bind" && name != "http.port";
  });
  return names;
}

}  // namespace updraft
