// The cloud node: a scripted model behind a link to a scripted router, health and metrics on HTTP.
#include "cloud/node/cloud_node.h"

#include <doctest/doctest.h>

#include <atomic>
#include <fstream>
#include <string>
#include <thread>

#include "common/http/client.h"
#include "common/log/log.h"
#include "tests/support/fake_memory.h"
#include "tests/support/scripted_model.h"
#include "tests/support/scripted_router.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

struct Setup {
  TempDir dir;
  FakeMemory memory;
  ScriptedRouter router;
  ScriptedModel* model = nullptr;  // owned by the node
  std::unique_ptr<CloudNode> node;

  explicit Setup(bool grants = false) {
    router.grants = grants;
    router.bind();
    REQUIRE(save_curve_keys(router.node_keys, dir.file("node")).ok());
    REQUIRE(save_curve_keys(router.keys, dir.file("router")).ok());
    CloudConfig config;
    config.memory_root = memory.root();
    config.node_id = "cloud-1";
    config.pool.router_endpoints = {router.listener->endpoint()};
    config.pool.router_key_file = dir.file("router.pub");
    config.pool.key_file = dir.file("node");
    config.pool.beat_interval_ms = 20;
    config.drain_grace_ms = 5000;
    auto owned = std::make_unique<ScriptedModel>(1000);
    model = owned.get();
    auto made = CloudNode::start(config, std::move(owned));
    REQUIRE_MESSAGE(made.ok(), made.message());
    node = std::move(*made);
    REQUIRE(router.run_until([&] {
      return node->connected() && !router.beats.empty() &&
             router.beats.back().state == NodeState::kReady;
    }));
  }
  HttpClient client() const {
    return HttpClient(*HttpUrl::parse("http://127.0.0.1:" + std::to_string(node->http_port())));
  }
};

Result<CloudConfig> load(const std::string& text) {
  static const TempDir dir;
  std::ofstream(dir.file("cloud.toml")) << text;
  return load_cloud_config(dir.file("cloud.toml"));
}

}  // namespace

TEST_CASE("the node announces its model, serves the router's work and shows it in its metrics") {
  Setup s;
  REQUIRE(s.router.hellos.size() == 1);
  CHECK(s.router.hellos[0].tier == Tier::kCloud);
  CHECK(s.router.hellos[0].models[0].id == "tiny");
  CHECK(s.router.hellos[0].device == "script");
  s.router.send("w", Submit{chat_request("w"), 1, 1});
  REQUIRE(s.router.run_until([&] { return s.model->has("w"); }));
  CHECK(s.model->emit("w", Started{"cloud-1", Tier::kCloud, "tiny", "", 4}));
  TokenChunk chunk;
  chunk.ids = {1};
  chunk.text = "x";
  CHECK(s.model->emit("w", chunk));
  CHECK(s.model->emit("w", Finished{{4, 1, 0}, {}}));
  REQUIRE(s.router.run_until([&] { return s.router.find<Done>("w") != nullptr; }));
  CHECK(s.router.find<Accepted>("w")->prompt_tokens == 4);

  CHECK(s.client().get("/livez")->status == 200);
  CHECK(s.client().get("/readyz")->status == 200);
  const std::string metrics = s.client().get("/metrics")->body;
  CHECK(metrics.find("vllm:num_requests_running{model_name=\"tiny\"} 0") != std::string::npos);
  CHECK(metrics.find("updraft_pool_routers_connected 1") != std::string::npos);
}

TEST_CASE("the node's listener takes no requests") {
  Setup s;
  const auto answer = s.client().post_json(
      "/v1/chat/completions", R"({"model":"tiny","messages":[{"role":"user","content":"x"}]})");
  REQUIRE(answer.ok());
  CHECK(answer->status == 403);
  CHECK(answer->body.find("send requests to the router") != std::string::npos);
}

TEST_CASE("what the node's listener answers is in its log") {
  const TempDir dir;
  LogConfig log;
  log.file = dir.file("node.log");
  REQUIRE(configure_log(log).ok());
  {
    Setup s;
    CHECK(s.client().get("/livez")->status == 200);
    CHECK(s.client().get("/nowhere")->status == 404);
  }
  REQUIRE(configure_log({}).ok());
  std::ifstream in(log.file);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  CHECK(text.find("method=GET path=/livez status=200") != std::string::npos);
  CHECK(text.find("method=GET path=/nowhere status=404") != std::string::npos);
}

TEST_CASE("without its router the node lives but is not ready") {
  Setup s;
  s.router.listener.reset();
  REQUIRE(s.router.run_until([&] { return !s.node->connected(); }));
  CHECK(s.client().get("/livez")->status == 200);
  CHECK(s.client().get("/readyz")->status == 503);
}

TEST_CASE("stopping drains: the router hears it, running work ends, then the node goes") {
  Setup s;
  s.router.send("w", Submit{chat_request("w"), 1, 1});
  REQUIRE(s.router.run_until([&] { return s.model->has("w"); }));
  std::atomic<bool> stopped{false};
  std::thread stopper([&] {
    s.node->stop();
    stopped = true;
  });
  REQUIRE(s.router.run_until([&] { return s.router.beats.back().state == NodeState::kDraining; }));
  CHECK_FALSE(stopped.load());
  CHECK(s.model->emit("w", Finished{}));
  CHECK(s.router.run_until([&] { return s.router.find<Done>("w") != nullptr && stopped.load(); }));
  stopper.join();
}

TEST_CASE("the configuration that ships is valid, and a node without routers is refused") {
  const auto config = load_cloud_config(repo_file("configs/cloud.toml"));
  REQUIRE_MESSAGE(config.ok(), config.message());
  CHECK(config->model.slots == 8);
  CHECK(config->http.port == 8082);
  CHECK(config->pool.beat_interval_ms == 100);
  CHECK(load("[model]\npath = \"m\"\n").message().find("[pool] routers") != std::string::npos);
  CHECK(load("[model]\npath = \"m\"\nslots = 999\n").message().find("slots = 999") !=
        std::string::npos);
  CHECK(load("[local]\nsocket = \"x\"\n[model]\npath = \"m\"\n[pool]\nrouters = "
             "[\"tcp://h:1\"]\nrouter_key = \"r\"\nkey = \"k\"\n")
            .message()
            .find("socket") != std::string::npos);
}

TEST_CASE(
    "a node whose memory fills grants nothing, then takes nothing, and finishes what it has") {
  Setup s(true);
  const auto granted = [&] {
    return s.router.beats.back().credit ? s.router.beats.back().credit->count : -1;
  };
  REQUIRE(s.router.run_until([&] { return granted() == 2; }));
  s.router.send("a", Submit{chat_request("a"), 1, 1});
  REQUIRE(s.router.run_until([&] { return s.model->has("a"); }));
  s.memory.set(96.0);
  REQUIRE(s.router.run_until([&] { return granted() == 0; }));
  CHECK(s.client().get("/readyz")->status == 200);
  s.memory.set(99.0);
  REQUIRE(s.router.run_until([&] {
    return s.client().get("/metrics")->body.find("updraft_memory_level 2") != std::string::npos;
  }));
  const auto ready = s.client().get("/readyz");
  CHECK(ready->status == 503);
  CHECK(ready->body.find("memory") != std::string::npos);
  // The links learn of it with their next beat.
  const size_t beats = s.router.beats.size();
  REQUIRE(s.router.run_until([&] { return s.router.beats.size() > beats + 1; }));
  s.router.send("b", Submit{chat_request("b"), 1, 2});
  REQUIRE(s.router.run_until([&] { return s.router.find<Rejected>("b") != nullptr; }));
  CHECK(s.router.find<Rejected>("b")->error.code == ErrorCode::kRejectedBusy);
  CHECK_FALSE(s.model->has("b"));
  CHECK(s.model->emit("a", Started{"cloud-1", Tier::kCloud, "tiny", "", 4}));
  CHECK(s.model->emit("a", Finished{{4, 1, 0}, {}}));
  REQUIRE(s.router.run_until([&] { return s.router.find<Done>("a") != nullptr; }));
  s.memory.set(40.0);
  REQUIRE(s.router.run_until([&] { return granted() == 2; }));
}
