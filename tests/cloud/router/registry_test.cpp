// The node table: hellos, beats in order, ageing by arrival, reconnects, and figures that cannot
// be.
#include "cloud/router/registry.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

namespace {

std::string state_of(const PoolFixture& pool, const std::string& id) {
  for (const RouterCore::NodeInfo& node : pool.core.nodes()) {
    if (node.id == id) return node.state;
  }
  return "unknown";
}

int changes_of(PoolFixture& pool, NodeChange::Kind kind, const std::string& id) {
  int count = 0;
  for (const NodeChange& change : pool.core.take_changes())
    count += change.kind == kind && change.node_id == id ? 1 : 0;
  return count;
}

const NodeLoad& load_of(const PoolFixture& pool, const std::string& id) {
  return pool.core.registry().load(pool.core.registry().find_id(id));
}

}  // namespace

TEST_CASE("a silent node ages from fresh over suspect and stale to dead within its lease") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096);
  CHECK(state_of(pool, "cloud-1") == "fresh");
  node.beating = false;
  pool.advance_ms(290);
  CHECK(state_of(pool, "cloud-1") == "fresh");
  pool.advance_ms(100);
  CHECK(state_of(pool, "cloud-1") == "suspect");
  pool.advance_ms(700);
  CHECK(state_of(pool, "cloud-1") == "stale");
  pool.advance_ms(1000);
  CHECK(state_of(pool, "cloud-1") == "dead");
}

TEST_CASE("each change of a node's state is reported once") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096);
  pool.advance_ms(1000);
  CHECK(changes_of(pool, NodeChange::Kind::kJoined, "cloud-1") == 1);
  node.beating = false;
  pool.advance_ms(5000);
  CHECK(changes_of(pool, NodeChange::Kind::kLost, "cloud-1") == 1);
  node.beating = true;
  pool.advance_ms(1000);
  CHECK(changes_of(pool, NodeChange::Kind::kJoined, "cloud-1") == 1);
  CHECK(state_of(pool, "cloud-1") == "fresh");
}

TEST_CASE("a lease longer than three seconds is cut to three") {
  PoolFixture pool;
  FakeNode& node = pool.add("edge-1", Tier::kEdge, 512);
  node.beat.lease_ttl_ms = 60'000;
  pool.say(node, node.hello);
  pool.beat(node);
  node.beating = false;
  pool.advance_ms(2900);
  CHECK(state_of(pool, "edge-1") != "dead");
  pool.advance_ms(200);
  CHECK(state_of(pool, "edge-1") == "dead");
}

TEST_CASE("a node that still streams but does not beat is stale, not dead") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096);
  const ClientId client = pool.submit(PoolFixture::chat("r1", 30));
  REQUIRE(node.work.size() == 1);
  const Submit work = node.work[0];
  pool.say(node, PoolFixture::accepted(work));
  node.beating = false;
  for (int32_t i = 0; i < 10; ++i) {
    pool.advance_ms(500);
    pool.say(node, PoolFixture::tokens(work, i, {7}));
  }
  CHECK(state_of(pool, "cloud-1") == "stale");
  CHECK(pool.ends(client) == 0);
  CHECK(pool.seen<TokenChunk>(client).size() == 10);
}

TEST_CASE("beats older than the last one, or of an earlier boot, are dropped") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  NodeBeat late = node.beat;  // the same seq again, with other figures
  late.slots_free = 0;
  pool.say(node, late);
  CHECK(load_of(pool, "cloud-1").slots_free == 4);
  late.seq = node.beat.seq + 10;
  late.boot_epoch = 0;
  pool.say(node, late);
  CHECK(load_of(pool, "cloud-1").slots_free == 4);
  CHECK(pool.core.registry().beats_old() == 2);
}

TEST_CASE("a beat that cannot be is refused and counted, and the node keeps its last good state") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  const NodeBeat good = node.beat;
  const auto refused_after = [&](auto&& spoil) {
    const uint64_t before = pool.core.registry().beats_refused();
    NodeBeat bad = good;
    bad.seq = good.seq + 5;
    spoil(bad);
    pool.say(node, bad);
    return pool.core.registry().beats_refused() - before;
  };
  CHECK(refused_after([](NodeBeat& b) { b.slots_free = b.slots_total + 1; }) == 1);
  CHECK(refused_after([](NodeBeat& b) { b.slots_free = -1; }) == 1);
  CHECK(refused_after([](NodeBeat& b) { b.kv_tokens_free = b.kv_tokens_total + 1; }) == 1);
  CHECK(refused_after(
            [](NodeBeat& b) { b.kv_tokens_total = std::numeric_limits<int64_t>::max(); }) == 1);
  CHECK(refused_after([](NodeBeat& b) { b.interval_ms = 0; }) == 1);
  CHECK(refused_after([](NodeBeat& b) { b.lease_ttl_ms = -5; }) == 1);
  CHECK(refused_after([](NodeBeat& b) { b.running = -1; }) == 1);
  CHECK(refused_after([](NodeBeat& b) {
          b.decode_tokens_per_s = std::numeric_limits<float>::quiet_NaN();
        }) == 1);
  CHECK(refused_after([](NodeBeat& b) {
          b.prefill_tokens_per_s = std::numeric_limits<float>::infinity();
        }) == 1);
  CHECK(load_of(pool, "cloud-1").slots_free == 4);
  CHECK(load_of(pool, "cloud-1").kv_tokens_free == good.kv_tokens_free);
  CHECK(check_beat(good).ok());
  NodeBeat bad = good;
  bad.slots_free = 9;
  CHECK(check_beat(bad).message().find("slots_free = 9") == 0);
}

TEST_CASE("a refused beat is reported with its reason, once in ten seconds however many come") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.core.take_changes();
  NodeBeat absurd = node.beat;
  absurd.slots_free = 5;
  const auto reports_of = [&](int beats) {
    std::vector<std::string> reasons;
    for (int i = 0; i < beats; ++i) {
      absurd.seq = node.beat.seq + 1;
      pool.say(node, absurd);
      pool.advance_ms(100);  // its own beats go on, and are good
      for (const NodeChange& change : pool.core.take_changes()) {
        if (change.kind == NodeChange::Kind::kAbsurdBeat) reasons.push_back(change.detail);
      }
    }
    return reasons;
  };
  const std::vector<std::string> first = reports_of(50);
  REQUIRE(first.size() == 1);
  CHECK(first[0].find("slots_free = 5") == 0);
  CHECK(reports_of(60).size() == 1);  // 11 seconds in all
  CHECK(pool.core.registry().beats_refused() == 110);
}

TEST_CASE("absurd beats alone do not keep a node alive") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096);
  node.beat.slots_free = 100;
  pool.advance_ms(2500);
  CHECK(changes_of(pool, NodeChange::Kind::kLost, "cloud-1") == 1);
  pool.settle();
  pool.submit(PoolFixture::chat("r1", 30));
  CHECK(node.work.empty());  // it may say hello again, but nothing is known of it
}

TEST_CASE("a node may not call itself by the name of another key of the allow-list") {
  PoolFixture pool;
  pool.core.set_allowed_names({"edge-1", "edge-2"});
  FakeNode& node = pool.add("edge-1", Tier::kEdge, 512);
  node.hello.node_id = "edge-2";
  pool.say(node, node.hello);
  CHECK(pool.core.nodes().empty());
  CHECK(changes_of(pool, NodeChange::Kind::kRefused, "edge-2") == 1);
  for (const char* id : {"edge-1", "kitchen"}) {
    node.hello.node_id = id;
    ++node.hello.boot_epoch;
    pool.say(node, node.hello);
    REQUIRE(pool.core.nodes().size() == 1);
    CHECK(pool.core.nodes()[0].id == id);
  }
}

TEST_CASE("the same key on a new connection replaces the old one") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096);
  node.peer.peer = "second-connection";
  pool.say(node, node.hello);
  pool.beat(node);
  CHECK(pool.core.nodes().size() == 1);
  const ClientId client = pool.submit(PoolFixture::chat("r1", 30));
  REQUIRE(node.work.size() == 1);  // sent to the new connection
  pool.serve(node, node.work[0]);
  CHECK(pool.finished(client));
}

TEST_CASE("a hello of an earlier boot changes nothing") {
  PoolFixture pool;
  FakeNode& node = pool.add("cloud-1", Tier::kCloud, 4096);
  node.hello.boot_epoch = node.beat.boot_epoch = 5;
  pool.say(node, node.hello);
  pool.beat(node);
  NodeHello old = node.hello;
  old.boot_epoch = 4;
  old.models.clear();
  pool.say(node, old);
  pool.advance_ms(200);
  CHECK(pool.core.models().size() == 1);
}

TEST_CASE(
    "a node that an operator drained stays drained when it was silent for longer than its lease") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096);
  pool.settle();
  Actions out;
  REQUIRE(pool.core.drain_node("cloud-1", 1000, out));  // its Drain never arrives
  node.beating = false;
  pool.advance_ms(4000);
  CHECK(state_of(pool, "cloud-1") == "dead");
  node.peer.peer = "peer-cloud-1-again";
  pool.say(node, node.hello);
  node.beating = true;
  pool.advance_ms(500);
  CHECK(state_of(pool, "cloud-1") == "draining");
  node.peer.peer = "peer-cloud-1-anew";
  node.hello.boot_epoch = ++node.beat.boot_epoch;
  node.beat.seq = 0;
  pool.say(node, node.hello);
  pool.advance_ms(500);
  CHECK(state_of(pool, "cloud-1") == "fresh");
}

TEST_CASE("a machine whose clock was set back joins when the lease of its last life is over") {
  PoolFixture pool;
  FakeNode& node = pool.join("edge-1", Tier::kEdge, 4096);
  node.hello.boot_epoch = node.beat.boot_epoch = 5000;
  pool.say(node, node.hello);
  pool.beat(node);
  pool.settle();
  node.beating = false;  // restarted in the past, on a new connection
  node.peer.peer = "peer-edge-1-again";
  node.hello.boot_epoch = node.beat.boot_epoch = 17;
  pool.say(node, node.hello);
  CHECK(pool.core.registry().find_peer(node.peer.peer) == kNoNode);
  pool.advance_ms(3000);
  CHECK(state_of(pool, "edge-1") == "dead");
  pool.say(node, node.hello);
  node.beat.seq = 0;
  node.beating = true;
  pool.advance_ms(500);
  CHECK(state_of(pool, "edge-1") == "fresh");
  const ClientId client = pool.submit(PoolFixture::chat("r1", 10));
  REQUIRE(node.work.size() == 1);
  pool.serve(node, node.work[0]);
  CHECK(pool.finished(client));
}

TEST_CASE(
    "a node id held by a live node of another key is refused; that of a dead one is taken over") {
  PoolFixture pool;
  FakeNode& first = pool.join("cloud-1", Tier::kCloud, 4096);
  FakeNode& second = pool.add("impostor", Tier::kCloud, 4096);
  second.hello.node_id = "cloud-1";
  pool.say(second, second.hello);
  pool.beat(second);
  CHECK(pool.core.registry().hellos_refused() == 1);
  CHECK(changes_of(pool, NodeChange::Kind::kRefused, "cloud-1") == 1);
  CHECK(second.other.empty());  // no welcome, not after its beat either
  first.beating = second.beating = false;
  pool.advance_ms(3000);
  CHECK(state_of(pool, "cloud-1") == "dead");
  pool.say(second, second.hello);
  pool.beat(second);
  CHECK(state_of(pool, "cloud-1") == "fresh");
  CHECK(pool.core.nodes().size() == 1);
}

TEST_CASE("hellos that make no sense are refused with the reason") {
  const auto refusal = [](auto&& spoil) {
    PoolFixture pool;
    FakeNode& node = pool.add("node-x", Tier::kCloud, 4096);
    spoil(node.hello);
    pool.say(node, node.hello);
    CHECK(pool.core.nodes().empty());
    const std::vector<NodeChange> changes = pool.core.take_changes();
    return changes.size() == 1 ? changes[0].detail : "(no reason)";
  };
  CHECK(refusal([](NodeHello& h) { h.protocol_version = 99; }).find("protocol version 99") == 0);
  CHECK(refusal([](NodeHello& h) { h.node_id = "Bad Id"; }).find("node id 'Bad Id'") == 0);
  CHECK(refusal([](NodeHello& h) { h.node_id = ""; }).find("node id ''") == 0);
  CHECK(refusal([](NodeHello& h) { h.tier = Tier::kAny; }).find("its tier") == 0);
  CHECK(refusal([](NodeHello& h) {
          h.models[0].context_tokens = 0;
        }).find("model 'demo' with a context of 0") == 0);
  CHECK(refusal([](NodeHello& h) { h.models.resize(100, h.models[0]); }).find("100 models") == 0);
}

TEST_CASE(
    "a beat from a connection the router does not know is answered by a welcome, so that the node "
    "says hello") {
  PoolFixture pool;
  FakeNode& node = pool.add("cloud-1", Tier::kCloud, 4096);
  pool.beat(node);
  REQUIRE(node.other.size() == 2);
  CHECK(std::get<Welcome>(node.other[0]).router_epoch == 2);  // not the one the node knows
  CHECK(std::get<Welcome>(node.other[1]).router_epoch == 1);  // after its hello
  CHECK(pool.core.nodes().size() == 1);
}

TEST_CASE("the welcome names the pool's models and comes again when they change") {
  PoolFixture pool;
  FakeNode& edge = pool.join("edge-1", Tier::kEdge, 512);
  pool.advance_ms(300);
  REQUIRE(!edge.other.empty());
  Welcome last = std::get<Welcome>(edge.other.back());
  REQUIRE(last.pool_models.size() == 1);
  CHECK(last.pool_models[0].context_tokens == 512);
  pool.join("cloud-1", Tier::kCloud, 4096);
  pool.advance_ms(300);
  last = std::get<Welcome>(edge.other.back());
  CHECK(last.pool_models[0].context_tokens == 4096);
  pool.join("cloud-2", Tier::kCloud, 8192, 4, "other");
  pool.advance_ms(300);
  last = std::get<Welcome>(edge.other.back());
  CHECK(last.pool_models.size() == 2);
  const size_t welcomes = edge.other.size();
  pool.advance_ms(3000);
  CHECK(edge.other.size() == welcomes);  // nothing new, nothing said
  pool.nodes.at("cloud-1").beating = false;
  pool.advance_ms(3000);
  last = std::get<Welcome>(edge.other.back());
  REQUIRE(last.pool_models.size() == 2);
  CHECK(last.pool_models[0].context_tokens == 512);
}

TEST_CASE("a pause of the router is no credit for the silence after it") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.settle();
  pool.now_ns += 5000 * kNsPerMs;
  pool.beat(node);  // it had been waiting in the socket
  pool.tick();
  node.beating = false;
  pool.advance_ms(1900);
  CHECK(state_of(pool, "cloud-1") == "stale");
  pool.advance_ms(300);  // its lease is 2 s
  CHECK(state_of(pool, "cloud-1") == "dead");
}

TEST_CASE("a pause of the router itself does not kill its nodes") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096);
  pool.now_ns += 20'000 * kNsPerMs;  // the process was stopped, beats are still in the socket
  pool.tick();
  CHECK(state_of(pool, "cloud-1") != "dead");
  pool.beat(node);
  pool.tick();
  CHECK(state_of(pool, "cloud-1") == "fresh");
}

TEST_CASE("what the router assigned counts against a node until a beat counts it") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.submit(PoolFixture::chat("r1", 30));
  CHECK(load_of(pool, "cloud-1").free_slots(pool.now_ns) == 3);
  // A beat sent before the Submit arrived there: still four free, nothing counted.
  node.beat.last_assignment_seq = 0;
  pool.beat(node);
  CHECK(load_of(pool, "cloud-1").free_slots(pool.now_ns) == 3);
  // A beat that counts it.
  node.beat.last_assignment_seq = node.work[0].assignment_seq;
  node.beat.slots_free = 3;
  node.beat.running = 1;
  pool.beat(node);
  CHECK(load_of(pool, "cloud-1").free_slots(pool.now_ns) == 3);
  // It ends: the slot is free before the next beat says so, and not twice after it.
  pool.serve(node, node.work[0]);
  CHECK(load_of(pool, "cloud-1").free_slots(pool.now_ns) == 4);
  node.beat.slots_free = 4;
  node.beat.running = 0;
  pool.beat(node);
  CHECK(load_of(pool, "cloud-1").free_slots(pool.now_ns) == 4);
}

TEST_CASE("a slot that came back is not counted twice when a beat shows another client in it") {
  PoolFixture pool;
  FakeNode& node = pool.join("edge-1", Tier::kEdge, 512, 4);
  pool.submit(PoolFixture::chat("r1", 30));
  node.beat.slots_free = 1;  // ours and two of the gateway's own
  node.beat.running = 3;
  pool.beat(node);
  CHECK(load_of(pool, "edge-1").free_slots(pool.now_ns) == 1);
  pool.serve(node, node.work[0]);
  CHECK(load_of(pool, "edge-1").free_slots(pool.now_ns) == 2);
  pool.beat(node);  // a third one of the gateway's own has taken it
  CHECK(load_of(pool, "edge-1").free_slots(pool.now_ns) == 1);
}

TEST_CASE("a node that never reports assignments is believed after two seconds") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.submit(PoolFixture::chat("r1", 30));
  pool.say(node, PoolFixture::accepted(node.work[0]));
  node.beat.last_assignment_seq = 0;
  node.beat.slots_free = 3;  // it does count it, without saying so
  node.beat.running = 1;
  pool.beat(node);
  CHECK(load_of(pool, "cloud-1").free_slots(pool.now_ns) == 2);
  pool.advance_ms(2200);
  CHECK(load_of(pool, "cloud-1").free_slots(pool.now_ns) == 3);
}

TEST_CASE("assignment numbers of another router are not believed") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.submit(PoolFixture::chat("r1", 30));
  node.beat.last_assignment_seq = 1'000'000;
  pool.beat(node);
  CHECK(load_of(pool, "cloud-1").assigned_slots == 1);
}

TEST_CASE("a router that has just started has its pool back with each node's first beat") {
  PoolFixture pool;  // knows nothing
  for (int i = 0; i < 3; ++i) {
    FakeNode& node = pool.add("cloud-" + std::to_string(i), Tier::kCloud, 4096, 4);
    node.grants = true;
    node.beat.seq = 5000;  // they have been running for long
    node.beat.boot_epoch = node.hello.boot_epoch = 77;
    pool.say(node, node.hello);
    pool.beat(node);
  }
  std::vector<ClientId> clients;
  for (int i = 0; i < 12; ++i)
    clients.push_back(pool.submit(PoolFixture::chat("r" + std::to_string(i), 30)));
  for (auto& [name, node] : pool.nodes) {
    CHECK(node.work.size() == 4);
    CHECK(state_of(pool, name) == "fresh");
    for (const Submit& work : std::vector<Submit>(node.work)) pool.serve(node, work);
  }
  for (const ClientId client : clients) CHECK(pool.finished(client));
}

TEST_CASE("a dead node is forgotten after ten minutes") {
  PoolFixture pool;
  pool.join("cloud-1", Tier::kCloud, 4096).beating = false;
  pool.advance_ms(5000);
  CHECK(pool.core.nodes().size() == 1);
  pool.advance_ms(601'000);
  CHECK(pool.core.nodes().empty());
  FakeNode& again = pool.join("cloud-1", Tier::kCloud, 4096);
  pool.submit(PoolFixture::chat("r1", 30));
  CHECK(again.work.size() == 1);
}

namespace {

// Ten nodes, each with a stream.
struct WidePool : PoolFixture {
  explicit WidePool(RouterCoreConfig config = {}) : PoolFixture(std::move(config)) {
    for (int i = 0; i < 10; ++i) {
      FakeNode& node = join("cloud-" + std::to_string(i), Tier::kCloud, 4096, 1);
      clients.push_back(submit(chat("r" + std::to_string(i), 30)));
      const Submit work = node.work.at(0);
      say(node, accepted(work));
      say(node, tokens(work, 0, {1}));
      node.beat.running = 1;
      node.beat.slots_free = 0;
    }
    settle();
  }
  void silence(int count, bool silent = true) {
    for (int i = 0; i < count; ++i) nodes.at("cloud-" + std::to_string(i)).beating = !silent;
  }
  int ended() {
    int count = 0;
    for (const ClientId client : clients) count += ends(client);
    return count;
  }
  std::vector<ClientId> clients;
};

}  // namespace

TEST_CASE("when many nodes fall silent at once the router suspects its own link (GPUStack #5935)") {
  WidePool pool;
  pool.silence(4);
  pool.advance_ms(6000);
  CHECK(pool.core.registry().frozen());
  CHECK(pool.ended() == 0);
  pool.silence(4, false);
  pool.advance_ms(500);
  CHECK_FALSE(pool.core.registry().frozen());
  CHECK(state_of(pool, "cloud-0") == "fresh");
  FakeNode& node = pool.nodes.at("cloud-0");
  pool.say(node, PoolFixture::tokens(node.work.at(0), 1, {2}));  // its stream goes on
  CHECK(pool.seen<TokenChunk>(pool.clients[0]).size() == 2);
  int frozen = 0;
  int thawed = 0;
  for (const NodeChange& change : pool.core.take_changes()) {
    frozen += change.kind == NodeChange::Kind::kFrozen;
    thawed += change.kind == NodeChange::Kind::kThawed;
  }
  CHECK(frozen == 1);
  CHECK(thawed == 1);
}

TEST_CASE("nothing new is sent to a node whose lease is over, even while evictions are frozen") {
  PoolFixture pool;
  for (int i = 0; i < 3; ++i) pool.join("cloud-" + std::to_string(i), Tier::kCloud, 4096, 4);
  pool.settle();
  for (auto& [id, node] : pool.nodes) node.beating = false;
  pool.advance_ms(1500);  // stale, but the lease holds: better than nobody
  pool.submit(PoolFixture::chat("early", 30));
  pool.advance_ms(1500);
  REQUIRE(pool.core.registry().frozen());
  pool.submit(PoolFixture::chat("late", 30));
  size_t sent = 0;
  for (const auto& [id, node] : pool.nodes) sent += node.work.size();
  CHECK(sent == 1);
  CHECK(pool.core.queued() == 1);
  for (auto& [id, node] : pool.nodes) node.beating = true;
  pool.advance_ms(500);
  CHECK(pool.core.queued() == 0);
}

TEST_CASE("a few silent nodes are lost as ever, and so are many that fall silent one by one") {
  WidePool pool;
  pool.silence(3);
  pool.advance_ms(2500);
  CHECK_FALSE(pool.core.registry().frozen());
  CHECK(pool.ended() == 3);
  WidePool slow;
  for (int i = 1; i <= 5; ++i) {
    slow.silence(i);
    slow.advance_ms(700);
  }
  slow.advance_ms(2500);
  CHECK(slow.ended() == 5);
}

TEST_CASE("a freeze ends after its time, and is not begun again for the same silence") {
  WidePool pool;
  pool.silence(6);
  pool.advance_ms(11'000);
  CHECK(pool.core.registry().frozen());
  CHECK(pool.ended() == 0);
  pool.advance_ms(1500);
  CHECK_FALSE(pool.core.registry().frozen());
  CHECK(pool.ended() == 6);
}

TEST_CASE("a node that wants it has its beats echoed once a second, whatever they say") {
  PoolFixture pool;
  const auto echoes = [](const FakeNode& node) {
    return std::count_if(node.other.begin(), node.other.end(), [](const PoolMessage& message) {
      return std::holds_alternative<Echo>(message);
    });
  };
  FakeNode& node = pool.add("cloud-1", Tier::kCloud, 4096);
  node.hello.wants_echo = true;
  pool.say(node, node.hello);
  FakeNode& other = pool.join("cloud-2", Tier::kCloud, 4096);
  pool.advance_ms(5000);
  CHECK(echoes(node) >= 4);
  CHECK(echoes(node) <= 6);
  CHECK(echoes(other) == 0);
  const auto before = echoes(node);
  node.beat.kv_tokens_free = node.beat.kv_tokens_total + 1;  // refused, and yet it came
  pool.advance_ms(3000);
  CHECK(echoes(node) >= before + 2);
  node.beating = false;
  pool.advance_ms(1000);
  const auto last = echoes(node);
  pool.advance_ms(5000);
  CHECK(echoes(node) == last);
}
