// router.toml: what is right is taken, what is wrong is named with its line.
#include <doctest/doctest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "cloud/router/router.h"

using namespace updraft;

namespace {

class Folder {
 public:
  Folder() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "updraft-router-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string write(const std::string& name, const std::string& text) {
    const std::string path = path_ + "/" + name;
    std::ofstream(path) << text;
    return path;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

const std::string kPool = "[pool]\nkey = \"router\"\nnodes = \"nodes\"\n";
const std::string kDigest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

std::string refusal(const std::string& text) {
  Folder folder;
  const Result<RouterConfig> config = load_router_config(folder.write("router.toml", text));
  return config ? "(taken)" : config.message();
}

}  // namespace

TEST_CASE("every key of the router's file arrives in the configuration") {
  Folder folder;
  folder.write("api-keys", "# clients\n\nsha256:" + kDigest + " alice\n");
  const Result<RouterConfig> loaded = load_router_config(folder.write(
      "router.toml",
      "[router]\nid = \"front\"\n[http]\nbind = \"127.0.0.2\"\nport = 9000\napi_keys_file = "
      "\"api-keys\"\n"
      "allowed_hosts = [\"llm.example.com\"]\nbody_bytes_max = \"8 MiB\"\nconnections_max = "
      "77\nsse_keepalive_ms = 5000\n"
      "[pool]\nlisten = \"tcp://0.0.0.0:7071\"\nkey = \"router\"\nnodes = \"/etc/nodes\"\n"
      "[queue]\nmax = 5\ntimeout_ms = 700\n[placement]\nedge_reserve_slots = 2\nprice_weight_ms = 250\n"
      "[log]\nlevel = \"debug\"\nformat = \"json\"\n"));
  REQUIRE_MESSAGE(loaded.ok(), loaded.message());
  const RouterConfig& config = *loaded;
  CHECK(config.router_id == "front");
  CHECK(config.http.bind_address == "127.0.0.2");
  CHECK(config.http.port == 9000);
  REQUIRE(config.http.auth != nullptr);
  REQUIRE(config.http.auth->keys().size() == 1);
  CHECK(hex_of(config.http.auth->keys()[0].digest) == kDigest);
  CHECK(config.http.allowed_hosts == std::vector<std::string>{"llm.example.com"});
  CHECK(config.http.limits.body_bytes_max == 8 << 20);
  CHECK(config.http.limits.connections_max == 77);
  CHECK(config.http.limits.sse_keepalive_ms == 5000);
  CHECK(config.pool_endpoint == "tcp://0.0.0.0:7071");
  CHECK(config.key_file == folder.path() + "/router");
  CHECK(config.allowed_keys_folder == "/etc/nodes");
  CHECK(config.queue_max == 5);
  CHECK(config.queue_timeout_ms == 700);
  CHECK(config.edge_reserve_slots == 2);
  CHECK(config.price_weight_ms == 250);
  CHECK(config.log.level == LogLevel::kDebug);
  CHECK(config.log.format == LogFormat::kJson);
}

TEST_CASE("what is left out has a default") {
  Folder folder;
  const Result<RouterConfig> config = load_router_config(folder.write("router.toml", kPool));
  REQUIRE_MESSAGE(config.ok(), config.message());
  CHECK(config->http.bind_address == "127.0.0.1");
  CHECK(config->http.port == 8080);
  CHECK(config->http.auth == nullptr);
  CHECK(config->pool_endpoint == "tcp://127.0.0.1:7070");
  CHECK(config->queue_max == 1024);
}

TEST_CASE("the shipped configuration is good") {
  const Result<RouterConfig> config = load_router_config(UPDRAFT_SOURCE_DIR "/configs/router.toml");
  CHECK_MESSAGE(config.ok(), config.message());
}

TEST_CASE("wrong configurations are refused with file, line and key") {
  CHECK(refusal(kPool + "[queue]\nmax = 0\n").find("router.toml:5: [queue] max = 0") !=
        std::string::npos);
  CHECK(refusal(kPool + "[queue]\nlength = 3\n").find("length") != std::string::npos);
  CHECK(refusal(kPool + "[http]\nport = 70000\n").find("[http] port = 70000") != std::string::npos);
  CHECK(refusal(kPool + "[http]\nbody_bytes_max = \"1 GiB\"\n").find("body_bytes_max") !=
        std::string::npos);
  CHECK(refusal(kPool + "[log]\nlevel = \"loud\"\n").find("loud") != std::string::npos);
  CHECK(refusal("[pool]\nnodes = \"nodes\"\n").find("key") != std::string::npos);
  CHECK(refusal("[pool]\nkey = \"k\"\n").find("nodes") != std::string::npos);
  CHECK(refusal("[router]\nid = \"\"\n" + kPool).find("id") != std::string::npos);
  CHECK(refusal("[pool\n").find("router.toml:1") != std::string::npos);
  CHECK(load_router_config("/nonexistent/router.toml").message().find("/nonexistent/router.toml") !=
        std::string::npos);
}

TEST_CASE("a broken or empty file of API keys is refused, never taken for no authentication") {
  Folder folder;
  const auto refuse = [&](const std::string& keys) {
    folder.write("api-keys", keys);
    const Result<RouterConfig> config = load_router_config(
        folder.write("router.toml", kPool + "[http]\napi_keys_file = \"api-keys\"\n"));
    return config ? "(taken)" : config.message();
  };
  CHECK(refuse("sha256:" + kDigest + " alice\nnonsense\n").find("api-keys:2: ") !=
        std::string::npos);
  CHECK(refuse("# nothing\n").find("holds no key") != std::string::npos);
  std::filesystem::remove(folder.path() + "/api-keys");
  const Result<RouterConfig> missing = load_router_config(folder.path() + "/router.toml");
  REQUIRE(!missing.ok());
  CHECK(missing.message().find("api-keys") != std::string::npos);
}
