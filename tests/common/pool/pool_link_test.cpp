// PoolLink over real sockets against a scripted router and a scripted local service.
#include "common/pool/pool_link.h"

#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "tests/support/scripted_model.h"
#include "tests/support/scripted_router.h"

using namespace updraft;
using updraft::testing::Answer;
using updraft::testing::ScriptedRouter;
using updraft::testing::ScriptedService;

namespace {

Request chat(const std::string& id, size_t image_bytes = 0) {
  Request r;
  r.id = id;
  r.messages = {{"user", {{ContentPart::Kind::kText, "hi", "", ""}}}};
  if (image_bytes > 0) {
    r.messages[0].parts.push_back(
        {ContentPart::Kind::kImage, "", "image/png", std::string(image_bytes, 'p')});
  }
  return r;
}

struct Setup {
  ScriptedRouter router;
  ScriptedService service;
  std::unique_ptr<PoolLink> link;

  explicit Setup(bool router_up = true) {
    router.bind();
    PoolLinkConfig config;
    config.router_endpoint = router.listener->endpoint();
    config.router_public_key = router.keys.public_key;
    config.keys = router.node_keys;
    config.beat_interval_ms = 20;
    config.lease_ttl_ms = 2000;
    NodeHello hello;
    hello.node_id = "edge-1";
    hello.boot_epoch = 99;
    if (!router_up) router.listener.reset();
    auto made = PoolLink::start(config, hello, service, [](NodeBeat& beat) {
      beat.slots_total = 4;
      beat.slots_free = 3;
    });
    REQUIRE_MESSAGE(made.ok(), made.message());
    link = std::move(*made);
    link->set_state(NodeState::kReady);
  }
  void join() {
    REQUIRE(router.run_until([&] { return link->connected() && !router.beats.empty(); }));
  }
};

TokenChunk chunk(int32_t offset, const std::string& text) {
  TokenChunk c;
  c.offset = offset;
  c.ids = {offset};
  c.text = text;
  return c;
}

}  // namespace

TEST_CASE("a node joins, beats, and is told the pool's models") {
  Setup s;
  CHECK_FALSE(s.link->connected());
  s.join();
  REQUIRE(s.router.hellos.size() == 1);
  CHECK(s.router.hellos[0].node_id == "edge-1");
  CHECK(s.router.hellos[0].boot_epoch == 99);
  REQUIRE(s.router.run_until([&] { return s.router.beats.size() >= 5; }));
  CHECK(s.router.beats.back().slots_free == 3);
  CHECK(s.router.beats.back().state == NodeState::kReady);
  for (size_t i = 1; i < s.router.beats.size(); ++i)
    CHECK(s.router.beats[i].seq == s.router.beats[i - 1].seq + 1);
  REQUIRE(s.link->pool_models().size() == 1);
  CHECK(s.link->upward().models()[0].id == "big");
  CHECK(s.link->upward().ready(nullptr));
}

TEST_CASE("work from the router is answered by the local service") {
  Setup s;
  s.join();
  s.router.send("w1", Submit{chat("w1", 900'000), 1, 5});
  REQUIRE(s.router.run_until([&] { return s.service.has("w1"); }));
  CHECK(s.service.request("w1").messages[0].parts[1].bytes.size() == 900'000);
  s.service.emit("w1", Started{"edge-1", Tier::kEdge, "tiny", "", 3});
  for (int i = 0; i < 100; ++i) s.service.emit("w1", chunk(i, "t"));
  s.service.emit("w1", Finished{{3, 100, 0}, {}});
  REQUIRE(s.router.run_until([&] { return s.router.find<Done>("w1") != nullptr; }));
  CHECK(s.router.find<Accepted>("w1")->prompt_tokens == 3);
  int32_t next = 0;
  for (const PoolMessage& message : s.router.got) {
    if (const auto* tokens = std::get_if<Tokens>(&message)) {
      for (const TokenChunk& c : tokens->chunks) {
        CHECK(c.offset == next);
        next += static_cast<int32_t>(c.ids.size());
      }
    }
  }
  CHECK(next == 100);

  s.router.send("w2", Submit{chat("w2"), 1, 6});
  REQUIRE(s.router.run_until([&] { return s.service.has("w2"); }));
  s.router.send("w2", Cancel{"w2", 1});
  REQUIRE(s.router.run_until([&] { return s.router.find<Rejected>("w2") != nullptr; }));
  CHECK(s.router.find<Rejected>("w2")->error.code == ErrorCode::kCancelled);
}

TEST_CASE("a large request rises in parts while beats go on, and streams back") {
  Setup s;
  s.join();
  Answer answer;
  s.link->upward().submit(chat("u1", 8'000'000), answer.sink());
  REQUIRE(s.router.run_until([&] { return s.router.find_submit("u1") != nullptr; }));
  CHECK(s.router.find_submit("u1")->request.messages[0].parts[1].bytes.size() == 8'000'000);
  s.router.send("u1", Accepted{"u1", 1, 9, Started{"cloud-1", Tier::kCloud, "big", "", 9}});
  TokenChunk last = chunk(1, "b");
  last.finish = FinishReason::kStop;
  s.router.send("u1", Tokens{"u1", 1, {chunk(0, "a"), last}});
  s.router.send("u1", Done{"u1", 1, {}});
  REQUIRE(s.router.run_until([&] { return answer.end_count() == 1; }));
  CHECK(answer.text() == "ab");
  CHECK(answer.events().size() == 4);
}

TEST_CASE(
    "the router vanishes mid-stream: everything ends exactly once, and the node joins the next "
    "router by itself") {
  Setup s;
  s.join();
  Answer streaming;
  Answer waiting;
  s.link->upward().submit(chat("u1"), streaming.sink());
  s.link->upward().submit(chat("u2"), waiting.sink());
  s.router.send("w", Submit{chat("w"), 1, 1});
  REQUIRE(s.router.run_until(
      [&] { return s.service.has("w") && s.router.find_submit("u2") != nullptr; }));
  s.service.emit("w", Started{});
  s.router.send("u1", Accepted{"u1", 1, 1, Started{"cloud-1", Tier::kCloud, "big", "", 1}});
  s.router.send("u1", Tokens{"u1", 1, {chunk(0, "a")}});
  REQUIRE(s.router.run_until([&] { return streaming.text() == "a"; }));

  const std::string endpoint = s.router.listener->endpoint();
  s.router.listener.reset();
  REQUIRE(
      s.router.run_until([&] { return streaming.end_count() == 1 && waiting.end_count() == 1; }));
  CHECK(streaming.error().code == ErrorCode::kNodeLost);
  CHECK(waiting.error().code == ErrorCode::kOverloaded);
  CHECK_FALSE(s.link->connected());
  REQUIRE(s.router.run_until([&] { return s.service.cancelled_count() == 1; }));
  std::string why;
  CHECK_FALSE(s.link->upward().ready(&why));
  CHECK(why.find(endpoint) != std::string::npos);
  Answer away;
  s.link->upward().submit(chat("u3"), away.sink());
  REQUIRE(s.router.run_until([&] { return away.end_count() == 1; }));
  CHECK(away.error().code == ErrorCode::kOverloaded);

  s.router.epoch = 2;
  s.router.got.clear();
  s.router.bind(endpoint);
  REQUIRE(s.router.run_until([&] { return s.link->connected(); }));
  CHECK(s.router.hellos.size() == 2);
  s.router.send("w", Submit{chat("w"), 2, 1});
  REQUIRE(s.router.run_until([&] { return s.service.has("w"); }));
  s.service.emit("w", Finished{});
  REQUIRE(s.router.run_until([&] { return s.router.find<Done>("w") != nullptr; }));
  CHECK(s.router.find<Done>("w")->epoch == 2);
  CHECK(streaming.end_count() == 1);
  CHECK(waiting.end_count() == 1);
}

TEST_CASE("a node that starts before its router joins when the router comes") {
  Setup s(false);
  Answer answer;
  s.link->upward().submit(chat("early"), answer.sink());
  REQUIRE(s.router.run_until([&] { return answer.end_count() == 1; }));
  CHECK(answer.error().code == ErrorCode::kOverloaded);
}

TEST_CASE("draining waits for running work and says so to the router") {
  Setup s;
  s.join();
  s.router.send("w", Submit{chat("w"), 1, 1});
  REQUIRE(s.router.run_until([&] { return s.service.has("w"); }));
  std::atomic<bool> drained{false};
  std::thread drainer([&] {
    s.link->drain(10000);
    drained = true;
  });
  REQUIRE(s.router.run_until([&] {
    return !s.router.beats.empty() && s.router.beats.back().state == NodeState::kDraining;
  }));
  s.router.send("late", Submit{chat("late"), 1, 2});
  REQUIRE(s.router.run_until([&] { return s.router.find<Rejected>("late") != nullptr; }));
  CHECK(s.router.find<Rejected>("late")->error.code == ErrorCode::kOverloaded);
  CHECK_FALSE(drained.load());
  s.service.emit("w", Finished{});
  REQUIRE(
      s.router.run_until([&] { return s.router.find<Done>("w") != nullptr && drained.load(); }));
  drainer.join();
}

TEST_CASE("work that outlasts the grace is cancelled and failed") {
  Setup s;
  s.join();
  s.router.send("w", Submit{chat("w"), 1, 1});
  REQUIRE(s.router.run_until([&] { return s.service.has("w"); }));
  s.service.emit("w", Started{});
  std::thread drainer([&] { s.link->drain(50); });
  REQUIRE(s.router.run_until([&] { return s.router.find<Failed>("w") != nullptr; }));
  CHECK(s.router.find<Failed>("w")->error.code == ErrorCode::kNodeLost);
  drainer.join();
  CHECK(s.service.cancelled_count() == 1);
}

TEST_CASE("stopping the link ends what rose, and late local events find nobody") {
  Answer answer;
  ScriptedService* service = nullptr;
  Setup s;
  s.join();
  service = &s.service;
  s.link->upward().submit(chat("u"), answer.sink());
  s.router.send("w", Submit{chat("w"), 1, 1});
  REQUIRE(s.router.run_until(
      [&] { return service->has("w") && s.router.find_submit("u") != nullptr; }));
  s.link.reset();
  CHECK(answer.end_count() == 1);
  CHECK(service->cancelled_count() == 1);
}

TEST_CASE("requests that rise from many threads at once each end exactly once") {
  Setup s;
  s.join();
  constexpr int kThreads = 4;
  constexpr int kEach = 50;
  std::vector<Answer> answers(kThreads * kEach);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const int index = t * kEach + i;
        s.link->upward().submit(chat("u" + std::to_string(index)), answers[index].sink());
        if (i % 5 == 0) s.link->upward().cancel("u" + std::to_string(index));
      }
    });
  }
  size_t answered = 0;
  const auto all_ended = [&] {
    for (; answered < s.router.got.size(); ++answered) {
      if (const auto* submit = std::get_if<Submit>(&s.router.got[answered])) {
        s.router.send(submit->request.id, Done{submit->request.id, 1, {}});
      }
    }
    for (const Answer& answer : answers) {
      if (answer.end_count() == 0) return false;
    }
    return true;
  };
  const bool ended = s.router.run_until(all_ended);
  for (std::thread& thread : threads) thread.join();
  CHECK(ended);
  for (const Answer& answer : answers) CHECK(answer.end_count() == 1);
}

TEST_CASE("a link that cannot be is refused with the reason") {
  ScriptedService service;
  PoolLinkConfig config;
  config.router_endpoint = "tcp://127.0.0.1:1";
  config.router_public_key = new_curve_keys().public_key;
  config.keys = new_curve_keys();
  NodeHello hello;
  hello.node_id = "Bad Name";
  CHECK(PoolLink::start(config, hello, service, [](NodeBeat&) {}).message().find("Bad Name") !=
        std::string::npos);
  hello.node_id = "good";
  config.lease_ttl_ms = 100;
  CHECK(
      PoolLink::start(config, hello, service, [](NodeBeat&) {}).message().find("lease_ms = 100") !=
      std::string::npos);
  config.lease_ttl_ms = 2000;
  config.router_endpoint = "nonsense";
  CHECK(PoolLink::start(config, hello, service, [](NodeBeat&) {}).message().find("nonsense") !=
        std::string::npos);
}

TEST_CASE("a router that takes beats and answers none is dialled anew; one that answers is kept") {
  Setup s;
  s.router.echo_ms = 500;
  s.join();
  REQUIRE(s.router.run_until([&] { return s.router.hellos.size() == 2; }));
  s.router.echoes = true;
  REQUIRE(s.router.run_until([&] { return s.link->connected(); }));
  const size_t hellos = s.router.hellos.size();
  // More beats than fit into the silence that it would take for a router that has gone.
  const size_t beats = s.router.beats.size() + 150;
  REQUIRE(s.router.run_until([&] { return s.router.beats.size() >= beats; }));
  CHECK(s.router.hellos.size() == hellos);
}
