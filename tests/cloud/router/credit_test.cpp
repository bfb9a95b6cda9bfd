// Grants as the router keeps to them.
#include <doctest/doctest.h>

#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

namespace {

struct GrantingPool : PoolFixture {
  explicit GrantingPool(int32_t slots) {
    FakeNode& joining = add("cloud-1", Tier::kCloud, 4096, slots);
    joining.grants = true;
    say(joining, joining.hello);
    beat(joining);
    settle();
  }
  FakeNode& node() { return nodes.at("cloud-1"); }
  ClientId ask(const std::string& id) { return submit(chat(id, 30)); }
  // What a beat shows free follows from what it was sent.
  void take_slots(int32_t count) {
    node().beat.slots_free -= count;
    node().beat.running += count;
  }
};

}  // namespace

TEST_CASE("the router asks for grants in its welcome, and says which slots it uses") {
  GrantingPool pool(4);
  REQUIRE(!pool.node().other.empty());
  CHECK(std::get<Welcome>(pool.node().other[0]).credits);
  Request request = PoolFixture::chat("r", 30);
  request.choice_count = 3;
  pool.submit(std::move(request));
  REQUIRE(pool.node().work.size() == 1);
  CHECK(pool.node().work[0].slots == 3);
}

TEST_CASE("no more is sent than was granted, whatever else a beat shows free") {
  GrantingPool pool(4);
  FakeNode& node = pool.node();
  node.grants = false;
  ++node.beat.seq;
  NodeBeat beat = node.beat;
  beat.credit = Credit{100, 0, 2, 16384, 600};
  pool.say(node, beat);
  for (int i = 0; i < 4; ++i) pool.ask("r" + std::to_string(i));
  CHECK(node.work.size() == 2);
  CHECK(pool.core.queued() == 2);
}

TEST_CASE("an edge's reserve is of the whole node, not of each router's part of it") {
  RouterCoreConfig config;
  config.edge_reserve_slots = 1;
  PoolFixture pool(config);
  FakeNode& edge = pool.join("edge-1", Tier::kEdge, 4096, 2);
  NodeBeat beat = edge.beat;
  beat.seq = ++edge.beat.seq;
  beat.credit = Credit{100, 0, 1, 8192, 600};  // the other slot is granted to another router
  pool.say(edge, beat);
  pool.submit(PoolFixture::chat("a", 30));
  CHECK(edge.work.size() == 1);
  beat.seq = ++edge.beat.seq;
  beat.slots_free = 1;  // now somebody has it
  beat.running = 1;
  beat.last_assignment_seq = 1;
  beat.credit = Credit{101, 1, 1, 8192, 600};
  pool.say(edge, beat);
  pool.submit(PoolFixture::chat("b", 30));
  CHECK(edge.work.size() == 1);
  CHECK(pool.core.queued() == 1);
}

TEST_CASE("a grant's memory is a limit like its slots") {
  GrantingPool pool(4);
  FakeNode& node = pool.node();
  ++node.beat.seq;
  NodeBeat beat = node.beat;
  beat.credit = Credit{100, 0, 4, 60, 600};
  pool.say(node, beat);
  pool.ask("a");  // 24 tokens of prompt and 16 of answer, about
  pool.ask("b");
  CHECK(node.work.size() == 1);
  CHECK(pool.core.queued() == 1);
}

TEST_CASE("one node is told what a waiting request needs there beyond what was granted") {
  PoolFixture pool;
  const auto wanted = [](const FakeNode& node) {
    std::vector<Welcome> out;
    for (const PoolMessage& message : node.other) {
      const auto* welcome = std::get_if<Welcome>(&message);
      if (welcome != nullptr && welcome->wanted_slots > 0) out.push_back(*welcome);
    }
    return out;
  };
  for (const char* id : {"cloud-1", "cloud-2"}) {
    FakeNode& node = pool.join(id, Tier::kCloud, 4096, 4);
    node.grants = true;
    node.granted_max = 1;  // the rest is another router's
    pool.beat(node);
  }
  FakeNode& first = pool.nodes.at("cloud-1");
  FakeNode& second = pool.nodes.at("cloud-2");
  pool.settle();
  Request request = PoolFixture::chat("wide", 30);
  request.choice_count = 3;
  const ClientId client = pool.submit(std::move(request));
  pool.advance_ms(400);
  REQUIRE(pool.core.queued() == 1);
  CHECK(wanted(first).empty());  // it may still come by itself
  CHECK(wanted(second).empty());
  pool.advance_ms(1000);
  FakeNode& told = wanted(first).empty() ? second : first;
  FakeNode& other = wanted(first).empty() ? first : second;
  REQUIRE(wanted(told).size() >= 5);  // with each beat
  CHECK(wanted(told)[0].wanted_slots == 3);
  CHECK(wanted(told)[0].wanted_kv_tokens > 0);
  CHECK(wanted(told)[0].router_epoch == 1);
  CHECK(wanted(other).empty());
  told.beating = false;  // another one is asked when this one says nothing more
  pool.advance_ms(3000);
  CHECK(wanted(other).size() >= 5);
  other.granted_max = 3;
  pool.advance_ms(100);
  REQUIRE(other.work.size() == 1);
  pool.serve(other, Submit(other.work[0]));
  CHECK(pool.finished(client));
  const size_t count = wanted(other).size();
  pool.advance_ms(1000);
  CHECK(wanted(other).size() == count);
}

TEST_CASE("a grant that has run out is not used while another node may answer") {
  GrantingPool pool(4);
  FakeNode& other = pool.join("cloud-2", Tier::kCloud, 4096, 4);
  other.beat.prefill_tokens_queued = 10'000'000;  // far worse
  other.beat.prefill_tokens_per_s = 100;
  pool.advance_ms(300);
  pool.ask("a");
  REQUIRE(pool.node().work.size() == 1);
  pool.node().beating = false;
  pool.advance_ms(550);
  pool.ask("b");  // suspect by now, but what was granted still holds
  CHECK(pool.node().work.size() == 2);
  pool.advance_ms(100);
  pool.ask("c");
  CHECK(pool.node().work.size() == 2);
  CHECK(other.work.size() == 1);
}

TEST_CASE("what waits is not sent against a grant that has run out, even when room comes back") {
  GrantingPool pool(2);
  FakeNode& node = pool.node();
  pool.ask("a");
  REQUIRE(node.work.size() == 1);
  // Another node is there and full, so that waiting is better than a node that has gone silent.
  FakeNode& full = pool.join("cloud-2", Tier::kCloud, 4096, 1);
  full.beat.slots_free = 0;
  pool.beat(full);
  node.beating = false;
  pool.advance_ms(700);
  pool.ask("b");
  REQUIRE(pool.core.queued() == 1);
  node.grants = false;  // its answer brings no new grant
  pool.serve(node, Submit(node.work[0]));
  CHECK(node.work.size() == 1);
  node.grants = true;
  node.beating = true;
  pool.advance_ms(20);
  CHECK(node.work.size() == 2);
}

TEST_CASE("staleness does not block a pool of one node (llm-d #2408)") {
  GrantingPool pool(4);
  pool.node().beating = false;
  pool.advance_ms(1500);
  REQUIRE(std::string(pool.core.nodes()[0].state) == "stale");
  const ClientId client = pool.ask("a");
  REQUIRE(pool.node().work.size() == 1);
  pool.serve(pool.node(), pool.node().work[0]);
  CHECK(pool.finished(client));
}

TEST_CASE("what was under way when a grant was given counts against it") {
  GrantingPool pool(2);
  FakeNode& node = pool.node();
  const Credit before = PoolFixture::credit(node);  // the node has not seen the first one yet
  pool.ask("a");
  REQUIRE(node.work.size() == 1);
  ++node.beat.seq;
  NodeBeat beat = node.beat;
  beat.credit = before;
  beat.last_assignment_seq = 0;
  pool.say(node, beat);
  pool.ask("b");
  pool.ask("c");
  CHECK(node.work.size() == 2);
}

TEST_CASE("an older grant that comes later changes nothing (Ray Serve #42948)") {
  GrantingPool pool(4);
  FakeNode& node = pool.node();
  const Credit old = PoolFixture::credit(node);
  node.beat.slots_free = 1;
  pool.beat(node);
  Done stray{"unknown", 1, {}, old};
  pool.say(node, stray);
  for (int i = 0; i < 4; ++i) pool.ask("r" + std::to_string(i));
  CHECK(node.work.size() == 1);
}

TEST_CASE("the end of a request brings the grant for the next one at once") {
  GrantingPool pool(1);
  pool.ask("a");
  pool.take_slots(1);
  pool.advance_ms(200);
  pool.ask("b");
  REQUIRE(pool.node().work.size() == 1);
  pool.take_slots(-1);
  pool.serve(pool.node(), pool.node().work[0]);
  CHECK(pool.node().work.size() == 2);
}

TEST_CASE(
    "a submit that the node did not grant is placed anew, unseen by the client (Dynamo #589)") {
  GrantingPool pool(2);
  FakeNode& node = pool.node();
  const ClientId client = pool.ask("a");
  REQUIRE(node.work.size() == 1);
  // Another router's work came first.
  Rejected bounced = PoolFixture::rejected(node.work[0], ErrorCode::kRejectedBusy);
  node.beat.slots_free = 0;
  bounced.credit = PoolFixture::credit(node);
  pool.say(node, bounced);
  CHECK(pool.events.at(client).empty());
  CHECK(pool.core.queued() == 1);
  CHECK(pool.core.stats().bounced == 1);
  node.beat.slots_free = 1;
  pool.beat(node);
  REQUIRE(node.work.size() == 2);
  pool.serve(node, node.work[1]);
  CHECK(pool.finished(client));
}

TEST_CASE("a node's refusal holds until it reports again, no longer (Dynamo PR 12138)") {
  GrantingPool pool(2);
  FakeNode& node = pool.node();
  pool.ask("a");
  pool.say(node, PoolFixture::rejected(node.work.at(0), ErrorCode::kRejectedBusy));
  CHECK(node.work.size() == 1);
  pool.advance_ms(120);
  CHECK(node.work.size() == 2);
}

TEST_CASE("grants survive work that was cut off: the count heals when nothing is there any more") {
  GrantingPool pool(2);
  FakeNode& node = pool.node();
  const uint64_t arrived = node.arrived;
  pool.ask("a");
  node.arrived = arrived;  // it never came
  pool.cancel("a");
  pool.advance_ms(200);
  pool.ask("b");
  pool.ask("c");
  CHECK(node.work.size() == 3);
}

TEST_CASE("a new connection begins the count anew") {
  GrantingPool pool(2);
  FakeNode& node = pool.node();
  pool.ask("a");
  node.peer.peer = "peer-again";
  node.arrived = 0;
  node.grant_epoch = 0;
  pool.say(node, node.hello);
  CHECK(node.work.size() == 1);  // not before it grants again
  pool.beat(node);
  CHECK(node.work.size() == 2);
  pool.ask("b");
  CHECK(node.work.size() == 3);
}

TEST_CASE("absurd grants are refused and change nothing") {
  for (const Credit& absurd :
       {Credit{9, 0, -1, 0, 600}, Credit{9, 0, 5, 0, 600}, Credit{9, 0, 1, -1, 600},
        Credit{9, 0, 1, 0, 0}, Credit{9, 0, 1, 0, 70'000}, Credit{9, ~uint64_t{0}, 1, 0, 600}}) {
    CAPTURE(absurd.count);
    CAPTURE(absurd.ttl_ms);
    GrantingPool pool(4);
    FakeNode& node = pool.node();
    ++node.beat.seq;
    NodeBeat beat = node.beat;
    beat.credit = absurd;
    beat.credit->epoch = 1000;
    pool.say(node, beat);
    CHECK(pool.core.registry().beats_refused() == 1);
    Done stray{"unknown", 1, {}, beat.credit};
    pool.say(node, stray);
    CHECK(pool.core.registry().credits_refused() == 1);
    for (int i = 0; i < 5; ++i) pool.ask("r" + std::to_string(i));
    CHECK(node.work.size() == 4);
  }
}

TEST_CASE("a node without grants is used by its free slots") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 2);
  pool.settle();
  for (int i = 0; i < 3; ++i) pool.submit(PoolFixture::chat("r" + std::to_string(i), 30));
  CHECK(node.work.size() == 2);
  CHECK(pool.core.queued() == 1);
}

TEST_CASE("speeds that no node has are cut, so that a boast does not draw the pool's work") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 2);
  node.beat.prefill_tokens_per_s = 9e8F;
  node.beat.decode_tokens_per_s = 9e8F;
  pool.beat(node);
  const NodeLoad& load = pool.core.registry().load(pool.core.registry().find_id("cloud-1"));
  CHECK(load.prefill_tokens_per_s == 2e6F);
  CHECK(load.decode_tokens_per_s == 2e4F);
}
