// The router as its clients see it: HTTP in front, nodes that speak the pool's protocol behind.
#include <doctest/doctest.h>

#include <atomic>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "common/log/log.h"
#include "tests/common/http/http_fixture.h"
#include "wire_node.h"

using namespace updraft;
using namespace updraft::test;

TEST_CASE("short requests are answered by the edge, long ones by the cloud, behind one endpoint") {
  DemoPool pool;
  const auto small = pool.router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(small.ok(), small.message());
  CHECK(small->status == 200);
  CHECK(small->field("x-updraft-node") == "edge-1");
  CHECK(small->field("x-updraft-tier") == "edge");
  CHECK(small->field("x-updraft-decision") == "fits the edge");
  CHECK(small->body.find("one two three") != std::string::npos);
  const auto large = pool.router.client().post_json(kChat, chat_body(6000));
  REQUIRE_MESSAGE(large.ok(), large.message());
  CHECK(large->status == 200);
  CHECK(large->field("x-updraft-node") == "cloud-1");
  CHECK(large->field("x-updraft-decision") == "too long for the edge");
  CHECK(pool.edge.works() == 1);
  CHECK(pool.cloud.works() == 1);
}

TEST_CASE(
    "a request that the edge counts as too long is answered by the cloud, unseen by the client") {
  DemoPool pool;
  pool.edge.set_mood(WireNode::Mood::kTooLong);
  const auto answer = pool.router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(answer.ok(), answer.message());
  // Counted as 5,000 tokens: too long for the cloud as well.
  CHECK(answer->status == 400);
  CHECK(answer->body.find("context_length_exceeded") != std::string::npos);
  CHECK(answer->body.find("5000") != std::string::npos);
  CHECK(answer->body.find("4096") != std::string::npos);
  CHECK(pool.edge.works() == 1);
  CHECK(pool.cloud.works() == 0);
}

TEST_CASE("a prompt of a megabyte goes out in parts while beats and other requests pass") {
  CloudPool pool(2'000'000);
  const auto answer = pool.router.client().post_json(kChat, chat_body(3'000'000));
  REQUIRE_MESSAGE(answer.ok(), answer.message());
  CHECK(answer->status == 200);
  CHECK(pool.cloud.largest_prompt_bytes() == 3'000'000);
  CHECK(pool.router.state_of("cloud-1") == "fresh");
}

TEST_CASE(
    "when the client leaves, the node is told to stop, streaming or not (production-stack #634, "
    "LiteLLM #37140)") {
  CloudPool pool;
  pool.cloud.set_mood(WireNode::Mood::kStall);
  (void)pool.router.client().post_events(kChat, chat_body(60, true), [](std::string_view data) {
    return data.find("one") == std::string_view::npos;
  });
  CHECK(eventually([&] { return pool.cloud.cancels() == 1; }));
  testing::RawSocket waiting(pool.router.router().http_port());
  REQUIRE(waiting.send_all(testing::raw_post(kChat, chat_body(60))));
  REQUIRE(eventually([&] { return pool.cloud.works() == 2; }));
  waiting.close();
  CHECK(eventually([&] { return pool.cloud.cancels() == 2; }));
}

TEST_CASE("a node's own refusal of a request reaches the client as it is") {
  CloudPool pool;
  pool.cloud.set_mood(WireNode::Mood::kFail);
  const auto answer = pool.router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(answer.ok(), answer.message());
  CHECK(answer->status == 400);
  CHECK(answer->body.find("no such thing") != std::string::npos);
}

TEST_CASE("ready, models and errors follow the pool") {
  TestRouter router;
  router.start();
  auto ready = router.client().get("/readyz");
  REQUIRE_MESSAGE(ready.ok(), ready.message());
  CHECK(ready->status == 503);
  CHECK(router.client().get("/livez")->status == 200);
  const auto early = router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(early.ok(), early.message());
  CHECK(early->status == 503);
  CHECK(!early->field("retry-after").empty());
  WireNode cloud(router, router.allow("cloud-1"), "cloud-1", Tier::kCloud, 4096);
  REQUIRE(router.wait_for("cloud-1", "fresh"));
  CHECK(eventually([&] { return router.client().get("/readyz")->status == 200; }));
  CHECK(eventually([&] {
    return router.client().get("/v1/models")->body.find("\"demo\"") != std::string::npos;
  }));
  cloud.kill();
  CHECK(eventually([&] { return router.client().get("/readyz")->status == 503; }));
  CHECK(eventually([&] {
    const auto metrics = router.client().get("/metrics");
    return metrics && metrics->body.find("updraft_router_nodes{state=\"dead\",tier=\"cloud\"} 1") !=
                          std::string::npos;
  }));
  const std::string metrics = router.client().get("/metrics")->body;
  CHECK(metrics.find("\nupdraft_router_breakers_open 0") != std::string::npos);
  CHECK(metrics.find("\nupdraft_router_evictions_frozen 0") != std::string::npos);
}

TEST_CASE("many clients at once each get their own whole answer") {
  DemoPool pool;
  std::atomic<int> good{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&, i] {
      for (int j = 0; j < 10; ++j) {
        const auto answer =
            pool.router.client().post_json(kChat, chat_body(i % 2 == 0 ? 60 : 6000));
        if (answer && answer->status == 200 &&
            answer->body.find("one two three") != std::string::npos)
          ++good;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(good.load() == 80);
}

TEST_CASE("a stopping router refuses new requests and ends what does not end in time") {
  CloudPool pool;
  pool.cloud.set_mood(WireNode::Mood::kStall);
  std::atomic<bool> streaming{false};
  std::string last;
  std::thread client([&] {
    (void)pool.router.client().post_events(kChat, chat_body(60, true), [&](std::string_view data) {
      streaming.store(true);
      last = std::string(data);
      return true;
    });
  });
  REQUIRE(eventually([&] { return pool.cloud.works() == 1 && streaming.load(); }));
  const int64_t begin_ns = monotonic_ns();
  pool.router.router().stop(200);
  client.join();
  CHECK(monotonic_ns() - begin_ns < 5 * kNsPerSecond);
  CHECK(last.find("[DONE]") == std::string::npos);
  CHECK(pool.router.router().nodes().empty());
  CHECK(eventually([&] { return pool.cloud.cancels() >= 1; }));
}

TEST_CASE("a router that cannot start says why") {
  TestRouter router;
  router.config().key_file += ".missing";
  const Result<std::unique_ptr<Router>> no_key = Router::start(router.config());
  REQUIRE(!no_key.ok());
  CHECK(no_key.message().find("router.missing") != std::string::npos);
  TestRouter other;
  other.config().allowed_keys_folder += ".missing";
  const Result<std::unique_ptr<Router>> no_folder = Router::start(other.config());
  REQUIRE(!no_folder.ok());
  CHECK(no_folder.message().find("nodes.missing") != std::string::npos);
  TestRouter third;
  third.config().pool_endpoint = "udp://nowhere";
  CHECK(!Router::start(third.config()).ok());
}

TEST_CASE("a router whose memory fills sheds at 95 and refuses at 98 percent, and says so") {
  const testing::TempDir dir;
  LogConfig log;
  log.file = dir.file("router.log");
  REQUIRE(configure_log(log).ok());
  {
    CloudPool pool;
    const auto ask = [&](const char* priority) {
      const auto answer =
          pool.router.client({{"x-updraft-priority", priority}}).post_json(kChat, chat_body(60));
      REQUIRE_MESSAGE(answer.ok(), answer.message());
      return *answer;
    };
    const auto level = [&] {
      const auto metrics = pool.router.client().get("/metrics");
      REQUIRE_MESSAGE(metrics.ok(), metrics.message());
      const size_t at = metrics->body.find("\nupdraft_memory_level ");
      return at == std::string::npos ? '?' : metrics->body[at + 22];
    };
    CHECK(ask("bulk").status == 200);
    CHECK(level() == '0');
    pool.router.memory().set(96.0);
    REQUIRE(eventually([&] { return level() == '1'; }));
    for (const char* low : {"bulk", "default"}) {
      const HttpResponse shed = ask(low);
      CHECK(shed.status == 503);
      CHECK(shed.field("retry-after") == "2");
      CHECK(shed.body.find("\"code\":\"overloaded\"") != std::string::npos);
      CHECK(shed.body.find("only interactive requests") != std::string::npos);
    }
    CHECK(ask("interactive").status == 200);
    CHECK(pool.router.client().get("/readyz")->status == 200);

    pool.router.memory().set(98.5);
    REQUIRE(eventually([&] { return level() == '2'; }));
    const HttpResponse refused = ask("interactive");
    CHECK(refused.status == 503);
    CHECK(refused.field("retry-after") == "5");
    CHECK(refused.body.find("no new request is taken") != std::string::npos);
    CHECK(pool.router.client().get("/livez")->status == 200);
    CHECK(pool.router.client().get("/v1/models")->status == 200);
    const auto ready = pool.router.client().get("/readyz");
    CHECK(ready->status == 503);
    CHECK(ready->body.find("memory") != std::string::npos);
    CHECK(eventually([&] {
      const std::string metrics = pool.router.client().get("/metrics")->body;
      return metrics.find("updraft_memory_refused_total{reason=\"shed\"} 2") != std::string::npos &&
             metrics.find("updraft_memory_refused_total{reason=\"refuse\"} 1") !=
                 std::string::npos &&
             metrics.find("updraft_memory_used_ratio 0.985") != std::string::npos;
    }));
    pool.router.memory().set(50.0);
    REQUIRE(eventually([&] { return level() == '0'; }));
    CHECK(ask("bulk").status == 200);
    CHECK(pool.cloud.works() == 3);
  }
  REQUIRE(configure_log({}).ok());
  std::ifstream in(log.file);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  const auto lines_with = [&](const std::string& what) {
    size_t count = 0;
    for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1))
      ++count;
    return count;
  };
  CHECK(lines_with("memory level") == 3);
  CHECK(lines_with("memory level from=normal to=shed used_percent=96") == 1);
  CHECK(lines_with("memory level from=shed to=refuse used_percent=98.5") == 1);
  CHECK(lines_with("memory level from=refuse to=normal used_percent=50") == 1);
}
