// A node's links to several routers, and what it tells of itself.
#include "common/daemon/pool_links.h"

#include <doctest/doctest.h>

#include <fstream>
#include <string>

#include "common/daemon/node_metrics.h"
#include "tests/support/scripted_model.h"
#include "tests/support/scripted_router.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

struct Files {
  TempDir dir;
  PoolSection pool;

  Files(ScriptedRouter& first, ScriptedRouter& second) {
    second.keys = first.keys;  // routers of one pool share their key
    second.node_keys = first.node_keys;
    first.bind();
    second.bind();
    REQUIRE(save_curve_keys(first.node_keys, dir.file("node")).ok());
    REQUIRE(save_curve_keys(first.keys, dir.file("router")).ok());
    pool.router_endpoints = {first.listener->endpoint(), second.listener->endpoint()};
    pool.router_key_file = dir.file("router.pub");
    pool.key_file = dir.file("node");
    pool.beat_interval_ms = 20;
  }
};

MemoryWatch memory({100, 100});  // never short

}  // namespace

TEST_CASE("a node with two routers works for both and rises to one that is there") {
  ScriptedRouter first;
  ScriptedRouter second;
  const Files files(first, second);
  ScriptedModel model;
  const NodeHello hello = make_hello("edge-1", Tier::kEdge, model, {"phone"});
  REQUIRE(hello.models.size() == 2);
  CHECK(hello.models[1].id == "phone");
  CHECK(hello.boot_epoch > 1'700'000'000'000);
  auto links =
      PoolLinks::start(files.pool, hello, model, memory, [&] { return BeatFiller(model); });
  REQUIRE_MESSAGE(links.ok(), links.message());
  (*links)->set_state(NodeState::kReady);
  REQUIRE(first.run_until([&] {
    second.turn();
    return (*links)->connected_count() == 2 && !first.beats.empty() && !second.beats.empty();
  }));
  CHECK(first.beats.back().slots_total == 2);
  CHECK(first.beats.back().memory_total_bytes > 0);
  CHECK((*links)->upward().models().size() == 1);  // both routers serve the same one

  Answer answer;
  (*links)->upward().submit(chat_request("u1"), answer.sink());
  REQUIRE(first.run_until([&] { return first.find_submit("u1") != nullptr; }));
  first.listener.reset();
  REQUIRE(second.run_until(
      [&] { return answer.end_count() == 1 && (*links)->connected_count() == 1; }));
  Answer other;
  (*links)->upward().submit(chat_request("u2"), other.sink());
  REQUIRE(second.run_until([&] { return second.find_submit("u2") != nullptr; }));
  second.send("u2", Done{"u2", 1, {}});
  REQUIRE(second.run_until([&] { return other.end_count() == 1; }));
  CHECK((*links)->upward().ready(nullptr));
}

TEST_CASE("a gateway of its own has no links, and says so") {
  ScriptedModel model;
  auto links = PoolLinks::start(PoolSection{}, make_hello("edge-1", Tier::kEdge, model, {}), model,
                                memory, [&] { return BeatFiller(model); });
  REQUIRE(links.ok());
  CHECK_FALSE((*links)->configured());
  std::string why;
  CHECK_FALSE((*links)->upward().ready(&why));
  CHECK(why == "no router is configured");
  Answer answer;
  (*links)->upward().submit(chat_request("u"), answer.sink());
  CHECK(answer.error().code == ErrorCode::kOverloaded);
  (*links)->drain(0);
}

TEST_CASE("key files that cannot be used stop the start, by name") {
  ScriptedRouter first;
  ScriptedRouter second;
  Files files(first, second);
  ScriptedModel model;
  const auto start = [&] {
    return PoolLinks::start(files.pool, make_hello("edge-1", Tier::kEdge, model, {}), model, memory,
                            [&] { return BeatFiller(model); })
        .message();
  };
  files.pool.key_file = files.dir.file("absent");
  CHECK(start().find("absent") != std::string::npos);
  files.pool.key_file = files.dir.file("node");
  files.pool.router_key_file = files.dir.file("router");  // the secret one
  CHECK(start().find("secret key where a public") != std::string::npos);
}

TEST_CASE("the model's metrics follow its load under the names that dashboards know") {
  ScriptedModel model;
  ServiceLoad load = model.load();
  load.running = 3;
  load.waiting = 4;
  load.kv_tokens_total = 1024;
  load.kv_tokens_free = 256;
  load.completion_tokens_total = 100;
  load.draft_tokens_total = 40;
  load.draft_tokens_accepted_total = 30;
  load.pages_swapped_out = 7;
  load.pages_swapped_in = 5;
  load.page_bytes = 1024;
  load.swap_ns = 1'500'000'000;
  model.set_load(load);
  const auto metrics = Metrics::create();
  LocalModelConfig config;
  config.page_tokens = 32;
  export_model_metrics(*metrics, model, config);
  std::string text = metrics->text();
  CHECK(text.find("vllm:num_requests_running{model_name=\"tiny\"} 3") != std::string::npos);
  CHECK(text.find("vllm:num_requests_waiting{model_name=\"tiny\"} 4") != std::string::npos);
  CHECK(text.find("vllm:kv_cache_usage_perc{model_name=\"tiny\"} 0.75") != std::string::npos);
  CHECK(text.find("block_size=\"32\"") != std::string::npos);
  CHECK(text.find("num_gpu_blocks=\"32\"") != std::string::npos);
  CHECK(text.find("vllm:generation_tokens_total{model_name=\"tiny\"} 100") != std::string::npos);
  CHECK(text.find("vllm:spec_decode_num_draft_tokens_total{model_name=\"tiny\"} 40") !=
        std::string::npos);
  CHECK(text.find("vllm:spec_decode_num_accepted_tokens_total{model_name=\"tiny\"} 30") !=
        std::string::npos);
  for (const char* line :
       {"updraft_kv_swapped_pages_total{direction=\"out\",model_name=\"tiny\"} 7",
        "updraft_kv_swapped_pages_total{direction=\"in\",model_name=\"tiny\"} 5",
        "updraft_kv_swapped_bytes_total{direction=\"out\",model_name=\"tiny\"} 7168",
        "updraft_kv_swapped_bytes_total{direction=\"in\",model_name=\"tiny\"} 5120",
        "updraft_kv_swap_seconds_total{model_name=\"tiny\"} 1.5"}) {
    CAPTURE(line);
    CHECK(text.find(line) != std::string::npos);
  }
  load.completion_tokens_total = 150;
  model.set_load(load);
  text = metrics->text();
  CHECK(text.find("vllm:generation_tokens_total{model_name=\"tiny\"} 150") != std::string::npos);
}
