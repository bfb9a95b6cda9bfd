// Thousands of random events against the core: nodes come, go, lie and repeat themselves, clients
// leave. What must hold holds after every step, and when everything has calmed down nothing is left
// behind.
#include <doctest/doctest.h>

#include <random>
#include <set>

#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

namespace {

class Storm {
 public:
  // grants: every other node gives credit.
  explicit Storm(uint64_t seed, bool grants = true)
      : random_(seed), grants_(grants), pool_(config(seed)) {
    for (int i = 0; i < 3; ++i) add("edge-" + std::to_string(i), Tier::kEdge, 512, 2);
    for (int i = 0; i < 4; ++i)
      add("cloud-" + std::to_string(i), Tier::kCloud, i == 0 ? 8192 : 4096, 3);
    pool_.on_work = [this](FakeNode& node, const Submit& work) { check_dispatch(node, work); };
    pool_.settle();
  }

  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      step();
      if (i % 25 == 0) check_invariants();
    }
    calm_down();
    check_end();
  }
  uint64_t trace() const { return trace_; }

 private:
  static RouterCoreConfig config(uint64_t seed) {
    RouterCoreConfig config;
    config.queue_max = 20;
    config.queue_timeout_ms = 3000;
    config.seed = seed;
    return config;
  }
  uint32_t pick(uint32_t count) { return static_cast<uint32_t>(random_() % count); }
  void add(const std::string& id, Tier tier, int32_t context, int32_t slots) {
    pool_.join(id, tier, context, slots).grants = grants_ && names_.size() % 2 == 1;
    names_.push_back(id);
  }
  FakeNode& any_node() {
    return pool_.nodes.at(names_[pick(static_cast<uint32_t>(names_.size()))]);
  }

  void step() {
    trace_ = trace_ * 1099511628211ULL + pool_.core.live() * 31 + pool_.core.queued();
    switch (pick(12)) {
      case 0:
      case 1:
      case 2:
        submit();
        break;
      case 3:
        pool_.advance_ms(10 * (1 + pick(30)));
        break;
      case 4:
        if (!ids_.empty()) pool_.cancel(ids_[pick(static_cast<uint32_t>(ids_.size()))]);
        break;
      case 5:
        trouble();
        break;
      case 6:
        rise();
        break;
      default:
        answer();
        break;
    }
  }

  Request request() {
    Request request = PoolFixture::chat("r" + std::to_string(++next_id_), 1 + pick(3) * pick(9000));
    request.hints.priority = static_cast<Priority>(pick(4));
    request.hints.tier = static_cast<Tier>(pick(8) == 0 ? 1 + pick(2) : 0);
    if (pick(4) == 0) request.hints.deadline_ms = 1 + pick(5000);
    if (pick(3) == 0) request.hints.session = "s" + std::to_string(pick(5));
    if (pick(5) == 0) request.choice_count = 1 + static_cast<int32_t>(pick(4));
    return request;
  }
  void submit() {
    Request r = request();
    ids_.push_back(r.id);
    clients_.push_back(pool_.submit(std::move(r)));
  }
  void rise() {
    FakeNode& node = any_node();
    Request r = request();
    r.hints.local_only = pick(10) == 0;
    if (node.hello.tier == Tier::kEdge) pool_.say(node, Submit{std::move(r), 1 + pick(3), 0});
  }

  // A node with work answers some of it, rightly or wrongly.
  void answer() {
    FakeNode& node = any_node();
    if (node.work.empty()) return;
    const Submit work =
        node.work[node.work.size() - 1 -
                  pick(std::min<uint32_t>(6, static_cast<uint32_t>(node.work.size())))];
    switch (pick(10)) {
      case 0:
        pool_.say(node, PoolFixture::accepted(work, static_cast<int32_t>(pick(3000))));
        break;
      case 1:
        pool_.say(node, PoolFixture::rejected(work, ErrorCode::kRejectedBusy));
        break;
      case 2: {
        const int32_t limit = node.hello.models[0].context_tokens;
        pool_.say(node, PoolFixture::rejected(work, ErrorCode::kRejectedTooLong,
                                              limit + static_cast<int32_t>(pick(5000)), limit));
        break;
      }
      case 3:
        pool_.say(node, PoolFixture::failed(work, static_cast<ErrorCode>(pick(15))));
        break;
      case 4:
        pool_.say(node, PoolFixture::tokens(work, static_cast<int32_t>(pick(4)), {1, 2}));
        break;
      case 5:
        pool_.say(node, PoolFixture::done(work));
        break;
      default:
        pool_.serve(node, work);
        break;
    }
  }

  void trouble() {
    FakeNode& node = any_node();
    switch (pick(8)) {
      case 0:
        node.beating = false;
        break;
      case 1:
        node.beating = true;
        break;
      case 2: {  // a new boot
        node.hello.boot_epoch = ++node.beat.boot_epoch;
        node.peer.peer = "peer-" + std::to_string(++next_peer_);
        node.arrived = 0;
        pool_.say(node, node.hello);
        break;
      }
      case 3: {  // a new connection of the same boot
        node.peer.peer = "peer-" + std::to_string(++next_peer_);
        node.arrived = 0;
        pool_.say(node, node.hello);
        break;
      }
      case 4:
        node.beat.state = static_cast<NodeState>(pick(2));
        break;
      case 5: {
        NodeBeat absurd = node.beat;
        absurd.seq += 1000;
        absurd.kv_tokens_free = absurd.kv_tokens_total + 1;
        pool_.say(node, absurd);
        break;
      }
      case 6: {
        NodeBeat old = node.beat;
        old.slots_free = 0;
        pool_.say(node, old);
        break;
      }
      case 7: {
        Actions out;
        pool_.core.on_peer_gone(node.peer.peer, "test", pool_.now_ns, out);
        pool_.take(std::move(out));
        break;
      }
    }
  }

  // Work goes to a node that is there, takes work and is wide enough by its own figures.
  void check_dispatch(const FakeNode& node, const Submit& work) {
    const Registry& registry = pool_.core.registry();
    const NodeLoad& load = registry.load(registry.find_id(node.hello.node_id));
    REQUIRE(epochs_.insert({work.request.id, work.epoch}).second);  // one generation, one node
    REQUIRE(load.freshness != Freshness::kDead);
    REQUIRE(!load.draining);
    REQUIRE(load.state == NodeState::kReady);
    REQUIRE(load.live_slots <= load.slots_total);
    // Nothing leaves but against a grant.
    if (load.grants) REQUIRE(load.credit_used <= load.credit_limit);
    REQUIRE(estimate_request(work.request).prompt_tokens_least() <=
            node.hello.models[0].context_tokens);
    REQUIRE((work.request.hints.tier == Tier::kAny || work.request.hints.tier == node.hello.tier));
    REQUIRE(!work.request.hints.local_only);
  }

  void check_invariants() {
    for (const ClientId client : clients_) REQUIRE(pool_.ends(client) <= 1);
    REQUIRE(pool_.core.queued() + pool_.core.dispatched() == pool_.core.live());
  }

  // No more troubles: every node is back, works off what it has, clients wait.
  void calm_down() {
    for (auto& [name, node] : pool_.nodes) {
      node.beating = true;
      node.hello.boot_epoch = ++node.beat.boot_epoch;
      node.beat.state = NodeState::kReady;
      node.arrived = 0;
      pool_.say(node, node.hello);
      looked_at_[name] = node.work.size();
    }
    for (int round = 0; round < 200 && pool_.core.live() > 0; ++round) {
      pool_.advance_ms(100);
      for (auto& [name, node] : pool_.nodes) {
        for (size_t i = looked_at_[name]; i < node.work.size(); ++i) {
          const Submit work = node.work[i];
          pool_.serve(node, work);
        }
        looked_at_[name] = node.work.size();
      }
    }
    pool_.advance_ms(500);
  }

  void check_end() {
    CHECK(pool_.core.live() == 0);
    CHECK(pool_.core.queued() == 0);
    CHECK(pool_.core.dispatched() == 0);
    for (const ClientId client : clients_) REQUIRE(pool_.ends(client) == 1);
    const Registry& registry = pool_.core.registry();
    for (const std::string& name : names_) {
      const NodeLoad& load = registry.load(registry.find_id(name));
      CHECK(load.live_slots == 0);
      CHECK(load.assigned_slots == 0);
      CHECK(load.assigned_kv_tokens == 0);
      CHECK(load.assigned_prefill_tokens == 0);
    }
    uint64_t ended = 0;
    for (const auto& tier : pool_.core.stats().ended) {
      for (const uint64_t count : tier) ended += count;
    }
    CHECK(ended == pool_.core.stats().submitted);
  }

  std::mt19937_64 random_;
  const bool grants_;
  PoolFixture pool_;
  std::vector<std::string> names_;
  std::vector<RequestId> ids_;
  std::vector<ClientId> clients_;
  std::map<std::string, size_t> looked_at_;
  std::set<std::pair<RequestId, uint32_t>> epochs_;
  uint64_t next_id_ = 0;
  uint64_t next_peer_ = 0;
  uint64_t trace_ = 14695981039346656037ULL;
};

}  // namespace

TEST_CASE(
    "under random losses, lies, repeats and cancels every request ends exactly once and nothing is "
    "left behind") {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    Storm storm(seed);
    storm.run(1500);
  }
}

TEST_CASE("the same seed gives the same decisions") {
  Storm a(7);
  Storm b(7);
  a.run(800);
  b.run(800);
  CHECK(a.trace() == b.trace());
}
