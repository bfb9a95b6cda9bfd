// Circuit breakers: the rules one by one, then as the pool lives by them.
#include "cloud/router/breaker.h"

#include <doctest/doctest.h>

#include <set>

#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

namespace {

using Outcome = BreakerTable::Outcome;
using State = BreakerTable::State;

// Nodes that serve one model, and a table over them.
struct Table {
  Registry registry{Registry::Limits{}};
  BreakerTable breakers;
  int64_t now_ns = 5000 * kNsPerSecond;
  ModelIndex model = kNoModel;
  explicit Table(int nodes, BreakerTable::Rules rules = {}) : breakers(rules, registry, 1) {
    for (int i = 0; i < nodes; ++i) hello(i, 1);
    model = registry.find_model(kModel);
  }
  void hello(int i, uint64_t boot_epoch) {
    NodeHello hello;
    hello.node_id = "n" + std::to_string(i);
    hello.boot_epoch = boot_epoch;
    hello.tier = Tier::kCloud;
    ModelInfo info;
    info.id = kModel;
    info.context_tokens = 4096;
    hello.models = {info};
    registry.on_hello("p" + std::to_string(i), "k" + std::to_string(i), "n", hello, now_ns);
  }
  void pass_ms(int64_t ms) { now_ns += ms * kNsPerMs; }
  void ends(NodeIndex node, Outcome outcome, int count = 1) {
    for (int i = 0; i < count; ++i) {
      const bool probe = breakers.dispatched(node, model, now_ns);
      breakers.score(node, model, outcome, probe, now_ns);
    }
  }
  State state(NodeIndex node) const { return breakers.state(node, model, now_ns); }
  bool admits(NodeIndex node) const { return breakers.admits(node, model, now_ns); }
};

RouterCoreConfig patient() {
  RouterCoreConfig config;
  config.retries_max = 0;
  return config;
}

}  // namespace

TEST_CASE("five faults that are half of the last ten seconds open a breaker") {
  Table table(2);
  table.ends(0, Outcome::kFault, 4);
  CHECK(table.state(0) == State::kClosed);
  table.ends(0, Outcome::kFault);
  CHECK(table.state(0) == State::kOpen);
  CHECK_FALSE(table.admits(0));
  CHECK(table.admits(1));
  Table mixed(2);
  mixed.ends(0, Outcome::kSuccess, 6);
  mixed.ends(0, Outcome::kFault, 5);
  CHECK(mixed.state(0) == State::kClosed);
  mixed.ends(0, Outcome::kFault);
  CHECK(mixed.state(0) == State::kOpen);
}

TEST_CASE(
    "the window slides: what is older than ten seconds is not counted (SGLang window_duration)") {
  Table table(2);
  table.ends(0, Outcome::kFault, 3);
  table.pass_ms(5000);
  table.ends(0, Outcome::kFault, 1);
  table.pass_ms(6000);
  table.ends(0, Outcome::kFault, 3);
  CHECK(table.state(0) == State::kClosed);
  table.ends(0, Outcome::kFault, 1);
  CHECK(table.state(0) == State::kOpen);
  Table old(2);
  old.ends(0, Outcome::kSuccess, 100);
  old.pass_ms(11'000);
  old.ends(0, Outcome::kFault, 5);
  CHECK(old.state(0) == State::kOpen);
}

TEST_CASE("three connections lost in a row open it, two and a success do not") {
  Table table(2);
  table.ends(0, Outcome::kConnectFault, 2);
  table.ends(0, Outcome::kSuccess);
  table.ends(0, Outcome::kConnectFault, 2);
  CHECK(table.state(0) == State::kClosed);
  table.ends(0, Outcome::kConnectFault);
  CHECK(table.state(0) == State::kOpen);
}

TEST_CASE("it stays open for 2 s, doubling to 60 s, give or take a fifth") {
  Table table(2);
  table.ends(0, Outcome::kFault, 5);
  std::set<int64_t> times;
  int64_t plain_ms = 2000;
  for (int round = 0; round < 8; ++round) {
    const int64_t opened_ns = table.now_ns;
    while (table.state(0) == State::kOpen) table.pass_ms(10);
    const int64_t open_ms = (table.now_ns - opened_ns) / kNsPerMs;
    CHECK(open_ms >= plain_ms * 8 / 10);
    CHECK(open_ms <= plain_ms * 12 / 10 + 10);
    times.insert(open_ms - plain_ms);
    plain_ms = std::min<int64_t>(60'000, plain_ms * 2);
    table.ends(0, Outcome::kFault);
  }
  CHECK(times.size() > 3);
}

TEST_CASE("half-open lets one probe through at a time, two successes close it (SGLang half-open)") {
  Table table(2);
  table.ends(0, Outcome::kFault, 5);
  table.pass_ms(2500);
  CHECK(table.state(0) == State::kHalfOpen);
  REQUIRE(table.admits(0));
  CHECK(table.breakers.dispatched(0, table.model, table.now_ns));
  CHECK_FALSE(table.admits(0));
  table.breakers.score(0, table.model, Outcome::kSuccess, true, table.now_ns);
  CHECK(table.state(0) == State::kHalfOpen);
  CHECK(table.admits(0));
  table.ends(0, Outcome::kSuccess);
  CHECK(table.state(0) == State::kClosed);
  // Its past is forgotten: it takes five faults again, and two seconds.
  table.ends(0, Outcome::kFault, 4);
  CHECK(table.state(0) == State::kClosed);
}

TEST_CASE("a probe that says nothing leaves room for the next, what ends late is no probe") {
  Table table(2);
  table.ends(0, Outcome::kFault, 5);
  table.pass_ms(2500);
  table.ends(0, Outcome::kNeutral);
  CHECK(table.admits(0));
  table.breakers.score(0, table.model, Outcome::kSuccess, false, table.now_ns);
  table.breakers.score(0, table.model, Outcome::kSuccess, false, table.now_ns);
  CHECK(table.state(0) == State::kHalfOpen);
  table.breakers.score(0, table.model, Outcome::kFault, false, table.now_ns);
  CHECK(table.state(0) == State::kHalfOpen);
  table.ends(0, Outcome::kFault);
  CHECK(table.state(0) == State::kOpen);
}

TEST_CASE("a new boot of the node is worth a probe at once") {
  Table table(2);
  table.ends(0, Outcome::kFault, 5);
  table.hello(0, 2);
  table.breakers.rebooted(0, table.now_ns);
  CHECK(table.state(0) == State::kHalfOpen);
  CHECK(table.admits(0));
}

TEST_CASE("neither the last node nor more than half are ever ejected") {
  Table one(1);
  one.ends(0, Outcome::kFault, 50);
  CHECK(one.admits(0));
  Table five(5);
  for (NodeIndex node = 0; node < 5; ++node) five.ends(node, Outcome::kFault, 10);
  int admitted = 0;
  for (NodeIndex node = 0; node < 5; ++node) admitted += five.admits(node);
  CHECK(admitted == 3);
}

TEST_CASE("when the others go, the one that was ejected is let in again") {
  PoolFixture pool(patient());
  FakeNode& bad = pool.join("bad", Tier::kCloud, 4096, 8);
  bad.beat.prefill_tokens_per_s = 1e6;  // the one to choose
  bad.beat.decode_tokens_per_s = 1e4;
  FakeNode& good = pool.join("good", Tier::kCloud, 4096, 8);
  pool.settle();
  for (int i = 0; i < 6; ++i) {
    pool.submit(PoolFixture::chat("r" + std::to_string(i), 30));
    if (bad.work.size() > static_cast<size_t>(i))
      pool.say(bad, PoolFixture::failed(bad.work.back(), ErrorCode::kInternal));
  }
  REQUIRE(bad.work.size() == 5);
  REQUIRE(good.work.size() == 1);
  REQUIRE(pool.core.breakers().size() == 1);
  CHECK(pool.core.breakers()[0].node_id == "bad");
  CHECK(std::string(pool.core.breakers()[0].state) == "open");
  CHECK(pool.core.breakers()[0].faults == 5);
  CHECK(pool.core.breakers_open() == 1);
  good.beating = false;
  pool.advance_ms(1000);
  pool.nodes.at("bad").beat.slots_free = 8;
  for (int i = 0; i < 3 && pool.core.breakers_open() > 0; ++i) pool.advance_ms(400);
  CHECK(pool.core.breakers_open() == 0);
}

TEST_CASE("a 4xx does not open the breaker (SGLang #25811)") {
  PoolFixture pool(patient());
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 8);
  pool.join("cloud-2", Tier::kCloud, 512, 1).beat.slots_free = 0;
  pool.settle();
  for (int i = 0; i < 20; ++i) {
    pool.submit(PoolFixture::chat("r" + std::to_string(i), 30));
    pool.say(node, PoolFixture::failed(node.work.back(), i % 2 == 0 ? ErrorCode::kInvalidRequest
                                                                    : ErrorCode::kContextLength));
  }
  CHECK(node.work.size() == 20);
  CHECK(pool.core.breakers().empty());
}

TEST_CASE(
    "a busy 503 does not open the breaker, nor do a 429 and clients that leave (SGLang PR 39464)") {
  PoolFixture pool(patient());
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 8);
  pool.join("cloud-2", Tier::kCloud, 512, 1).beat.slots_free = 0;
  pool.settle();
  for (int i = 0; i < 30; ++i) {
    const std::string id = "r" + std::to_string(i);
    pool.submit(PoolFixture::chat(id, 30));
    REQUIRE(node.work.size() == static_cast<size_t>(i) + 1);
    const Submit work = node.work.back();
    if (i % 3 == 0) pool.say(node, PoolFixture::failed(work, ErrorCode::kOverloaded));
    if (i % 3 == 1) pool.say(node, PoolFixture::failed(work, ErrorCode::kRateLimited));
    if (i % 3 == 2) pool.cancel(id);
    pool.advance_ms(100);
  }
  CHECK(pool.core.breakers().empty());
  // Nor are they successes: five faults are all that counts here.
  for (int i = 0; i < 5; ++i) {
    pool.submit(PoolFixture::chat("fault" + std::to_string(i), 30));
    pool.say(node, PoolFixture::failed(node.work.back(), ErrorCode::kInternal));
    pool.advance_ms(100);
  }
  REQUIRE(pool.core.breakers().size() == 1);
  CHECK(pool.core.breakers()[0].requests == 5);
  CHECK(std::string(pool.core.breakers()[0].state) == "open");
}

TEST_CASE("a dead worker costs three requests, not ten (SGLang dead worker, 10 and 3.08 s)") {
  PoolFixture pool;
  FakeNode& flaky = pool.join("flaky", Tier::kCloud, 4096, 8);
  flaky.beat.prefill_tokens_per_s = 1e6;
  flaky.beat.decode_tokens_per_s = 1e4;
  FakeNode& good = pool.join("good", Tier::kCloud, 4096, 8);
  pool.settle();
  int sent = 0;
  std::vector<ClientId> clients;
  for (int i = 0; i < 6; ++i) {
    clients.push_back(pool.submit(PoolFixture::chat("r" + std::to_string(i), 30)));
    if (flaky.work.size() > static_cast<size_t>(sent)) {
      // Its connection breaks before it answers; it is back at once.
      sent = static_cast<int>(flaky.work.size());
      Actions out;
      pool.core.on_peer_gone(flaky.peer.peer, "test", pool.now_ns, out);
      pool.take(std::move(out));
      flaky.peer.peer += "+";
      pool.say(flaky, flaky.hello);
      pool.beat(flaky);
    }
    while (!good.work.empty()) {
      const Submit work = good.work.back();
      good.work.pop_back();
      pool.serve(good, work);
    }
  }
  CHECK(flaky.work.size() == 3);
  for (const ClientId client : clients) CHECK(pool.finished(client));
}

TEST_CASE("a stream is scored at its end: cut off in the middle it is a fault (LiteLLM #40404)") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 8);
  pool.join("cloud-2", Tier::kCloud, 4096, 8).beat.prefill_tokens_queued = 1'000'000;
  pool.settle();
  const ClientId client = pool.submit(PoolFixture::chat("r", 30));
  REQUIRE(node.work.size() == 1);
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1}));
  CHECK(pool.core.breakers().empty());
  pool.say(node, PoolFixture::tokens(node.work[0], 7, {1}));  // a gap
  REQUIRE(pool.core.breakers().size() == 1);
  CHECK(pool.core.breakers()[0].faults == 1);
  CHECK(pool.error(client).code == ErrorCode::kNodeLost);
}

TEST_CASE(
    "a request that only an ejected node could take is given to it rather than kept waiting") {
  PoolFixture pool(patient());
  FakeNode& wide = pool.join("wide", Tier::kCloud, 8192, 8);
  pool.join("narrow", Tier::kCloud, 512, 8);
  pool.settle();
  for (int i = 0; i < 7; ++i) {
    pool.submit(PoolFixture::chat("r" + std::to_string(i), 9000));
    if (wide.work.size() > static_cast<size_t>(i))
      pool.say(wide, PoolFixture::failed(wide.work.back(), ErrorCode::kInternal));
  }
  CHECK(wide.work.size() == 7);
}

TEST_CASE("an operator's drain can be taken back") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 2);
  pool.settle();
  Actions out;
  REQUIRE(pool.core.drain_node("cloud-1", 1000, out));
  pool.take(std::move(out));
  node.beat.state = NodeState::kDraining;  // as the node does when it is told
  pool.advance_ms(200);
  const ClientId client = pool.submit(PoolFixture::chat("r", 30));
  CHECK(node.work.empty());
  out.clear();
  CHECK_FALSE(pool.core.undrain_node("cloud-2", out));
  REQUIRE(pool.core.undrain_node("cloud-1", out));
  pool.take(std::move(out));
  CHECK(std::get<Drain>(node.other.back()).resume);
  pool.advance_ms(200);  // beats that were under way still say draining
  CHECK(node.work.empty());
  node.beat.state = NodeState::kReady;
  pool.advance_ms(200);
  const ClientId again = pool.submit(PoolFixture::chat("r2", 30));
  CHECK(node.work.size() >= 1);
  (void)client;
  (void)again;
}
