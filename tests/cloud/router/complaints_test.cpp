// What users of the peers complained about, where no other file of this folder is its home. The
// whole list, and that each of them has its test: tests/tools/proofs_test.cpp.
#include <doctest/doctest.h>

#include <functional>
#include <memory>

#include "common/pool/grant_ledger.h"
#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

namespace {

const NodeLoad& load_of(const PoolFixture& pool, const std::string& id) {
  return pool.core.registry().load(pool.core.registry().find_id(id));
}

}  // namespace

TEST_CASE(
    "what a node reports of its memory is not overwritten by a router's count (Dynamo PR 7754)") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 32768, 8);
  pool.settle();
  // Four sequences of other routers fill it: this one knows of them only by the beat.
  node.beat.running = 4;
  node.beat.slots_free = 4;
  node.beat.kv_tokens_free = 1000;
  pool.beat(node);
  pool.submit(PoolFixture::chat("small", 30));
  REQUIRE(node.work.size() == 1);
  pool.submit(PoolFixture::chat("large", 9000));
  for (int i = 0; i < 10; ++i) {
    pool.advance_ms(100);
    CHECK(load_of(pool, "cloud-1").kv_tokens_free == 1000);
    CHECK(node.work.size() == 1);
  }
  node.beat.kv_tokens_free = 20'000;
  pool.beat(node);
  CHECK(node.work.size() == 2);
}

TEST_CASE("two routers that see the same idle nodes do not crowd them (Dynamo #589)") {
  constexpr int kRouters = 2;
  constexpr int kNodes = 3;
  constexpr int32_t kSlots = 4;
  struct Shared {
    GrantLedger ledger{600};
    GrantLedger::LinkId links[kRouters] = {};
    int32_t held = 0;
  };
  Shared shared[kNodes];
  PoolFixture routers[kRouters];
  const auto name = [](int node) { return "cloud-" + std::to_string(node); };
  int32_t refused = 0;
  int32_t most_held = 0;
  for (int n = 0; n < kNodes; ++n) {
    shared[n].ledger.set_taking(true);
    shared[n].ledger.report(kSlots, 0, kSlots * 4096);
    for (int r = 0; r < kRouters; ++r) {
      shared[n].links[r] = shared[n].ledger.join(routers[r].now_ns);
      FakeNode& node = routers[r].add(name(n), Tier::kCloud, 4096, kSlots);
      node.beating = false;  // its beats come with its ledger's grants, below
      routers[r].say(node, node.hello);
    }
  }
  for (int r = 0; r < kRouters; ++r) {
    routers[r].on_work = [&, r](FakeNode& node, const Submit& work) {
      Shared& at = shared[node.hello.node_id.back() - '0'];
      if (!at.ledger.take(at.links[r], work.slots, routers[r].now_ns)) ++refused;
      at.held += work.slots;
      most_held = std::max(most_held, at.held);
    };
  }
  const auto beat_all = [&] {
    for (int n = 0; n < kNodes; ++n) {
      shared[n].ledger.report(kSlots, shared[n].held, kSlots * 4096);
      for (int r = 0; r < kRouters; ++r) {
        FakeNode& node = routers[r].nodes.at(name(n));
        ++node.beat.seq;
        node.beat.slots_free = kSlots - shared[n].held;  // what both would see without grants
        node.beat.running = shared[n].held;
        node.beat.credit = shared[n].ledger.grant(shared[n].links[r], routers[r].now_ns);
        routers[r].say(node, node.beat);
      }
    }
  };
  for (int i = 0; i < 20; ++i) {
    beat_all();
    for (PoolFixture& router : routers) router.advance_ms(100);
  }
  // At one moment both get as much as the whole pool has room for.
  std::vector<ClientId> clients[kRouters];
  for (int i = 0; i < kNodes * kSlots; ++i) {
    for (int r = 0; r < kRouters; ++r)
      clients[r].push_back(routers[r].submit(PoolFixture::chat("r" + std::to_string(i), 30)));
  }
  CHECK(most_held >= kSlots / 2);
  for (int round = 0; round < 40; ++round) {
    for (int r = 0; r < kRouters; ++r) {
      for (int n = 0; n < kNodes; ++n) {
        FakeNode& node = routers[r].nodes.at(name(n));
        for (const Submit& work : std::exchange(node.work, {})) {
          shared[n].ledger.give(shared[n].links[r], work.slots);
          shared[n].held -= work.slots;
          routers[r].serve(node, work);
        }
      }
      routers[r].advance_ms(100);
    }
    beat_all();
  }
  CHECK(refused == 0);
  CHECK(most_held <= kSlots);
  for (int r = 0; r < kRouters; ++r) {
    for (const ClientId client : clients[r]) CHECK(routers[r].finished(client));
  }
}

TEST_CASE("what a request counted against its node is given back however it ends (Ray PR 61755)") {
  struct Way {
    const char* name;
    std::function<void(PoolFixture&, FakeNode&)> end;
  };
  const auto each = [](PoolFixture& pool, FakeNode& node, const auto& say) {
    for (const Submit& work : std::vector<Submit>(node.work)) pool.say(node, say(work));
  };
  const auto back = [](PoolFixture& pool, FakeNode& node) {
    node.peer.peer += "+";
    node.arrived = 0;
    pool.say(node, node.hello);
    pool.beat(node);
  };
  const std::vector<Way> ways = {
      {"finished",
       [](PoolFixture& pool, FakeNode& node) {
         for (const Submit& work : std::vector<Submit>(node.work)) pool.serve(node, work);
       }},
      {"failed by the node",
       [&](PoolFixture& pool, FakeNode& node) {
         each(pool, node,
              [](const Submit& work) { return PoolFixture::failed(work, ErrorCode::kInternal); });
       }},
      {"rejected as too long",
       [&](PoolFixture& pool, FakeNode& node) {
         each(pool, node, [](const Submit& work) {
           return PoolFixture::rejected(work, ErrorCode::kRejectedTooLong, 9000, 4096);
         });
       }},
      {"cancelled before anything came",
       [](PoolFixture& pool, FakeNode&) {
         for (int i = 0; i < 4; ++i) pool.cancel("r" + std::to_string(i));
       }},
      {"cancelled while it ran",
       [&](PoolFixture& pool, FakeNode& node) {
         each(pool, node, [](const Submit& work) { return PoolFixture::accepted(work); });
         each(pool, node, [](const Submit& work) { return PoolFixture::tokens(work, 0, {1}); });
         for (int i = 0; i < 4; ++i) pool.cancel("r" + std::to_string(i));
       }},
      {"out of time",
       [](PoolFixture& pool, FakeNode& node) {
         pool.advance_ms(6000);
         CHECK(node.cancels.size() == 4);
       }},
      {"a gap in its tokens",
       [&](PoolFixture& pool, FakeNode& node) {
         each(pool, node, [](const Submit& work) { return PoolFixture::accepted(work); });
         each(pool, node, [](const Submit& work) { return PoolFixture::tokens(work, 7, {1}); });
       }},
      {"its node fell silent",
       [&](PoolFixture& pool, FakeNode& node) {
         each(pool, node, [](const Submit& work) { return PoolFixture::tokens(work, 0, {1}); });
         node.beating = false;
         pool.advance_ms(4000);
         node.beating = true;
         back(pool, node);
       }},
      {"its node's connection broke",
       [&](PoolFixture& pool, FakeNode& node) {
         each(pool, node, [](const Submit& work) { return PoolFixture::tokens(work, 0, {1}); });
         Actions out;
         pool.core.on_peer_gone(node.peer.peer, "test", pool.now_ns, out);
         pool.take(std::move(out));
         back(pool, node);
       }},
      {"its node began a new life",
       [&](PoolFixture& pool, FakeNode& node) {
         each(pool, node, [](const Submit& work) { return PoolFixture::tokens(work, 0, {1}); });
         node.hello.boot_epoch = ++node.beat.boot_epoch;
         back(pool, node);
       }},
  };
  for (const bool grants : {false, true}) {
    for (const Way& way : ways) {
      CAPTURE(grants);
      CAPTURE(way.name);
      PoolFixture pool;
      FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
      node.grants = grants;
      pool.settle();
      std::vector<ClientId> clients;
      for (int i = 0; i < 4; ++i) {
        Request request = PoolFixture::chat("r" + std::to_string(i), 30);
        request.hints.deadline_ms = 5000;
        clients.push_back(pool.submit(std::move(request)));
      }
      REQUIRE(node.work.size() == 4);
      REQUIRE(load_of(pool, "cloud-1").live_slots == 4);
      way.end(pool, node);
      pool.advance_ms(6000);  // whatever was tried again has run out of time by now
      for (const ClientId client : clients) CHECK(pool.ends(client) == 1);
      const NodeLoad& load = load_of(pool, "cloud-1");
      CHECK(load.live_slots == 0);
      CHECK(load.assigned_slots == 0);
      CHECK(load.assigned_kv_tokens == 0);
      CHECK(load.assigned_prefill_tokens == 0);
      CHECK(load.returned_slots == 0);
      // As many as it ever took go out at once.
      const size_t before = node.work.size();
      for (int i = 0; i < 5; ++i) pool.submit(PoolFixture::chat("n" + std::to_string(i), 30));
      CHECK(node.work.size() == before + 4);
    }
  }
}

TEST_CASE(
    "a stream that is cut falls back to another node until its first token (LiteLLM #40404)") {
  PoolFixture pool;
  FakeNode& one = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  FakeNode& two = pool.join("cloud-2", Tier::kCloud, 4096, 4);
  pool.settle();
  const auto cut = [&](FakeNode& node) {
    Actions out;
    pool.core.on_peer_gone(node.peer.peer, "test", pool.now_ns, out);
    pool.take(std::move(out));
  };
  const ClientId client = pool.submit(PoolFixture::chat("r", 30));
  FakeNode& first = one.work.empty() ? two : one;
  FakeNode& second = one.work.empty() ? one : two;
  REQUIRE(first.work.size() == 1);
  pool.say(first, PoolFixture::accepted(first.work[0]));
  cut(first);
  REQUIRE(second.work.size() == 1);
  pool.say(second, PoolFixture::accepted(second.work[0]));
  pool.say(second, PoolFixture::tokens(second.work[0], 0, {1}));
  // From here on another node's answer would be another answer: the client is told, and at once.
  cut(second);
  CHECK(pool.error(client).code == ErrorCode::kNodeLost);
}
