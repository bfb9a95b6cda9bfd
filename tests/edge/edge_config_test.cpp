// edge.toml: defaults, every section, and errors with file, line and key.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <fstream>
#include <string>

#include "edge/edge_daemon.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {
Result<EdgeConfig> load(const std::string& text) {
  static const TempDir dir;
  std::ofstream(dir.file("edge.toml")) << text;
  return load_edge_config(dir.file("edge.toml"));
}
bool says(const std::string& text, const std::string& what) {
  const auto config = load(text);
  CAPTURE(config.message());
  CHECK(config.message().find("edge.toml") != std::string::npos);
  return config.message().find(what) != std::string::npos;
}
}  // namespace

TEST_CASE("the configuration that ships is valid") {
  const auto config = load_edge_config(repo_file("configs/edge.toml"));
  REQUIRE_MESSAGE(config.ok(), config.message());
  CHECK(config->model.slots == 4);
  CHECK(config->http.port == 8081);
  CHECK(config->pool.beat_interval_ms == 250);
  CHECK(config->segment_bytes_max == 64LL << 20);
  CHECK(config->node_id.rfind("edge-", 0) == 0);
  CHECK(config->socket_path.find("edge.sock") != std::string::npos);
}

TEST_CASE("a gateway of its own needs a model and nothing else") {
  const auto config = load("[model]\npath = \"m.gguf\"\n");
  REQUIRE_MESSAGE(config.ok(), config.message());
  CHECK(config->pool.router_endpoints.empty());
  CHECK(config->model.model_path.find("/m.gguf") != std::string::npos);
  CHECK(config->http.bind_address == "127.0.0.1");
}

TEST_CASE("every value is taken") {
  const auto config = load(R"([node]
id = "edge-7"
[model]
path = "/m.gguf"
name = "tiny"
aliases = ["a", "b"]
chat_template = "chatml"
context = 4096
slots = 3
queue_max = 9
page_tokens = 64
kv_type = "int8"
kv_tokens = 8192
kv_swap = "3 GiB"
gpus = [1, 3]
tensor_parallel = 2
step_tokens_max = 128
prefix_cache = false
speculation = false
draft_tokens_max = 7
backend = "cpu"
isa = "avx2"
threads = 2
cores = [0, 1]
max_memory = "1 GiB"
[pool]
routers = ["tcp://10.0.0.1:7070", "tcp://10.0.0.2:7070"]
router_key = "/k/router.pub"
key = "/k/edge"
beat_ms = 300
lease_ms = 3000
price = 7
[http]
bind = "::1"
port = 0
allowed_hosts = ["x.example"]
[local]
socket = "/run/x.sock"
sessions_max = 5
segment_max = "1 MiB"
segment_per_uid_max = "2 MiB"
sessions_per_uid_max = 4
requests_per_uid_max = 6
stall_ms = 700
spin_us = 7
[drain]
grace_ms = 1000
[log]
level = "debug"
format = "json"
)");
  REQUIRE_MESSAGE(config.ok(), config.message());
  CHECK(config->node_id == "edge-7");
  CHECK(config->model.served_name == "tiny");
  CHECK(config->model.aliases == std::vector<std::string>{"a", "b"});
  CHECK(config->model.chat_template == "chatml");
  CHECK(config->model.context_tokens == 4096);
  CHECK(config->model.slots == 3);
  CHECK(config->model.queue_max == 9);
  CHECK(config->model.page_tokens == 64);
  CHECK(config->model.kv_type == "int8");
  CHECK(config->model.kv_tokens == 8192);
  CHECK(config->model.kv_swap_bytes == uint64_t{3} << 30);
  CHECK(config->model.gpus == std::vector<int32_t>{1, 3});
  CHECK(config->model.tensor_parallel == 2);
  CHECK(config->model.step_tokens_max == 128);
  CHECK_FALSE(config->model.prefix_cache);
  CHECK_FALSE(config->model.speculation);
  CHECK(config->model.draft_tokens_max == 7);
  CHECK(config->model.backend == "cpu");
  CHECK(config->model.isa == "avx2");
  CHECK(config->model.threads == 2);
  CHECK(config->model.cores == std::vector<int>{0, 1});
  CHECK(config->model.max_memory_bytes == 1ULL << 30);
  CHECK(config->pool.router_endpoints.size() == 2);
  CHECK(config->pool.router_key_file == "/k/router.pub");
  CHECK(config->pool.key_file == "/k/edge");
  CHECK(config->pool.beat_interval_ms == 300);
  CHECK(config->pool.lease_ttl_ms == 3000);
  CHECK(config->pool.price == 7);
  CHECK(config->http.bind_address == "::1");
  CHECK(config->http.port == 0);
  CHECK(config->http.allowed_hosts == std::vector<std::string>{"x.example"});
  CHECK(config->socket_path == "/run/x.sock");
  CHECK(config->sessions_max == 5);
  CHECK(config->segment_bytes_max == 1 << 20);
  CHECK(config->segment_bytes_per_uid_max == 2 << 20);
  CHECK(config->sessions_per_uid_max == 4);
  CHECK(config->requests_per_uid_max == 6);
  CHECK(config->stall_ms == 700);
  CHECK(config->local_spin_us == 7);
  CHECK(config->drain_grace_ms == 1000);
  CHECK(config->log.level == LogLevel::kDebug);
  CHECK(config->log.format == LogFormat::kJson);
  CHECK(config->log.component == "edge-7");
}

TEST_CASE("what is wrong is named with its key") {
  const std::string model = "[model]\npath = \"m\"\n";
  CHECK(says("", "[model] path"));
  CHECK(says("[node]\nid = \"Edge 7\"\n" + model, "Edge 7"));
  CHECK(says("[model]\npath = \"m\"\nslots = 0\n",
             "edge.toml:3: [model] slots = 0 is not in 1..256"));
  CHECK(says("[model]\npath = \"m\"\nkv_type = \"int4\"\n", "int4"));
  CHECK(says("[model]\npath = \"m\"\ndraft_tokens_max = 65\n", "draft_tokens_max = 65"));
  CHECK(says("[model]\npath = \"m\"\ngpus = []\n", "names 0 GPUs, must be 1..16"));
  CHECK(says("[model]\npath = \"m\"\ntensor_parallel = 17\n", "tensor_parallel = 17"));
  CHECK(says("[model]\npath = \"m\"\nspeculation = 4\n", "speculation"));
  CHECK(says("[model]\npath = \"m\"\nslotz = 4\n", "slotz"));
  CHECK(says(model + "[pool]\nrouters = [\"tcp://h:1\"]\n", "[pool] router_key"));
  CHECK(says(model + "[pool]\nlease_ms = 300\n", "lease_ms"));
  CHECK(says(model + "[local]\nsegment_max = \"1 KiB\"\n", "segment_max"));
  CHECK(says(model + "[local]\nsegment_max = \"1 GiB\"\n", "segment_per_uid_max"));
  CHECK(says(model + "[local]\nsessions_per_uid_max = 0\n", "sessions_per_uid_max = 0"));
  CHECK(says(model + "[local]\nrequests_per_uid_max = 0\n", "requests_per_uid_max = 0"));
  CHECK(says(model + "[local]\nstall_ms = 10\n", "stall_ms = 10 is not in 100..600000"));
  CHECK(says(model + "[local]\nsocket = \"/" + std::string(200, 'x') + "\"\n", "107"));
  CHECK(says(model + "[local]\nspin_us = 2000000\n", "spin_us"));
  CHECK(says(model + "[log]\nlevel = \"loud\"\n", "loud"));
  CHECK(says(model + "[http]\napi_keys_file = \"nowhere\"\n", "nowhere"));
  CHECK_FALSE(load_edge_config("/nowhere/edge.toml").ok());
}
