// What a node grants to its routers, on a virtual clock.
#include "common/pool/grant_ledger.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "common/base/clock.h"

using namespace updraft;

namespace {

constexpr int32_t kTtlMs = 600;
constexpr int64_t kStepNs = 10 * kNsPerMs;

struct Node {
  GrantLedger ledger{kTtlMs};
  int64_t now_ns = 1000 * kNsPerSecond;
  explicit Node(int32_t slots) {
    ledger.set_taking(true);
    ledger.report(slots, 0, 1000 * slots);
  }
  Credit grant(GrantLedger::LinkId link) { return ledger.grant(link, now_ns); }
  void pass_ms(int64_t ms) { now_ns += ms * kNsPerMs; }
};

}  // namespace

TEST_CASE("a router alone is granted every free slot and all free memory") {
  Node node(8);
  const auto a = node.ledger.join(node.now_ns);
  Credit credit = node.grant(a);
  CHECK(credit.first == 0);
  CHECK(credit.count == 8);
  CHECK(credit.kv_tokens == 8000);
  CHECK(credit.ttl_ms == kTtlMs);
  REQUIRE(node.ledger.take(a, 3, node.now_ns));
  credit = node.grant(a);
  CHECK(credit.first == 3);
  CHECK(credit.count == 5);
  node.ledger.give(a, 3);
  const Credit later = node.grant(a);
  CHECK(later.count == 8);
  CHECK(later.first == 3);
  CHECK(later.epoch > credit.epoch);
}

TEST_CASE("what local clients use is not granted") {
  Node node(8);
  const auto a = node.ledger.join(node.now_ns);
  REQUIRE(node.grant(a).count == 8);
  REQUIRE(node.ledger.take(a, 2, node.now_ns));
  node.ledger.report(8, 5, 8000);  // two of the pool's, three of somebody else
  CHECK(node.grant(a).count == 3);
}

TEST_CASE("a loading or draining node grants nothing") {
  Node node(8);
  const auto a = node.ledger.join(node.now_ns);
  node.ledger.set_taking(false);
  CHECK(node.grant(a).count == 0);
  CHECK_FALSE(node.ledger.take(a, 1, node.now_ns));
}

TEST_CASE("a second router gets its share when the first one's promise has run out, not before") {
  Node node(8);
  const auto a = node.ledger.join(node.now_ns);
  REQUIRE(node.grant(a).count == 8);
  const auto b = node.ledger.join(node.now_ns);
  CHECK(node.grant(b).count == 0);
  CHECK(node.grant(a).count == 4);
  node.pass_ms(kTtlMs);
  CHECK(node.grant(b).count == 0);  // a Submit of the first may still be under way
  node.pass_ms(GrantLedger::kSlackMs);
  CHECK(node.grant(b).count == 4);
}

TEST_CASE("work beyond a grant is taken only from room that nobody was promised") {
  Node node(4);
  const auto a = node.ledger.join(node.now_ns);
  const auto b = node.ledger.join(node.now_ns);
  REQUIRE(node.grant(a).count == 2);
  REQUIRE(node.grant(b).count == 2);
  CHECK(node.ledger.take(a, 2, node.now_ns));
  CHECK_FALSE(node.ledger.take(a, 1, node.now_ns));
  CHECK(node.ledger.take(b, 1, node.now_ns));
  node.pass_ms(kTtlMs + GrantLedger::kSlackMs);
  CHECK(node.ledger.take(a, 1, node.now_ns));  // the second one's last slot is free again
  CHECK_FALSE(node.ledger.take(b, 1, node.now_ns));
}

TEST_CASE("a session that ends gives its promises back at once") {
  Node node(4);
  const auto a = node.ledger.join(node.now_ns);
  const auto b = node.ledger.join(node.now_ns);
  REQUIRE(node.grant(a).count == 2);
  node.ledger.leave(a);
  CHECK(node.grant(b).count == 4);
  CHECK(node.grant(a).count == 0);
  CHECK_FALSE(node.ledger.take(a, 1, node.now_ns));
}

TEST_CASE("the router that has work gets most slots, each keeps one") {
  Node node(8);
  const auto busy = node.ledger.join(node.now_ns);
  const auto idle = node.ledger.join(node.now_ns);
  int32_t held = 0;
  for (int beat = 0; beat < 40; ++beat) {
    const Credit credit = node.grant(busy);
    for (int32_t i = 0; i < credit.count; ++i) held += node.ledger.take(busy, 1, node.now_ns);
    const Credit other = node.grant(idle);
    if (beat > 20) CHECK(other.count == 1);
    node.pass_ms(100);
  }
  CHECK(held == 7);
}

TEST_CASE("one slot and two routers: it goes round") {
  Node node(1);
  const auto a = node.ledger.join(node.now_ns);
  const auto b = node.ledger.join(node.now_ns);
  int a_had = 0;
  int b_had = 0;
  for (int beat = 0; beat < 400; ++beat) {
    a_had += node.grant(a).count;
    b_had += node.grant(b).count;
    REQUIRE(node.ledger.outstanding(a, node.now_ns) + node.ledger.outstanding(b, node.now_ns) <= 1);
    node.pass_ms(100);
  }
  CHECK(a_had > 60);
  CHECK(b_had > 60);
}

TEST_CASE(
    "routers of an idle node have their parts of its memory all the time, the whole on demand") {
  Node node(4);
  const auto a = node.ledger.join(node.now_ns);
  const auto b = node.ledger.join(node.now_ns);
  for (int beat = 0; beat < 60; ++beat) {
    CHECK(node.grant(a).kv_tokens == 2000);
    CHECK(node.grant(b).kv_tokens == 2000);
    node.pass_ms(100);
  }
  int beats = 0;
  for (; node.grant(b).kv_tokens < 4000; ++beats) {
    REQUIRE(beats <= (kTtlMs + GrantLedger::kSlackMs) / 100 + 1);
    node.ledger.want(b, 1, 4000, node.now_ns);
    (void)node.grant(a);
    node.pass_ms(100);
  }
  REQUIRE(node.ledger.take(b, 1, node.now_ns));
  node.ledger.report(4, 1, 3000);
  for (int beat = 0; beat < 10; ++beat) {
    (void)node.grant(b);
    (void)node.grant(a);
    node.pass_ms(100);
  }
  CHECK(node.grant(a).kv_tokens >= 1000);
}

TEST_CASE("a router that wants more than its part at once is lent it, the others keep the rest") {
  Node node(4);
  const auto a = node.ledger.join(node.now_ns);
  const auto b = node.ledger.join(node.now_ns);
  Credit to_a;
  Credit to_b;
  const auto beats = [&](int count, bool a_wants) {
    for (int beat = 0; beat < count; ++beat) {
      if (a_wants) node.ledger.want(a, 3, 2500, node.now_ns);
      to_b = node.grant(b);
      to_a = node.grant(a);
      REQUIRE(node.ledger.outstanding(a, node.now_ns) + node.ledger.outstanding(b, node.now_ns) <=
              4);
      node.pass_ms(100);
    }
  };
  beats(20, false);
  CHECK(to_a.count == 2);
  CHECK(to_b.count == 2);
  beats(10, true);
  CHECK(to_a.count == 3);
  CHECK(to_a.kv_tokens >= 2500);
  CHECK(to_b.count == 1);
  CHECK(to_b.kv_tokens <= 1000);
  REQUIRE(node.ledger.take(a, 3, node.now_ns));
  node.ledger.give(a, 3);
  int32_t b_most = 0;  // it has had it: the loan is over
  for (int i = 0; i < 100; ++i) {
    beats(1, false);
    b_most = std::max(b_most, to_b.count);
  }
  CHECK(b_most == 2);
}

TEST_CASE("a wish that nobody repeats ends with the promises of its time") {
  Node node(2);
  const auto a = node.ledger.join(node.now_ns);
  const auto b = node.ledger.join(node.now_ns);
  node.ledger.want(a, 2, 0, node.now_ns);
  int32_t to_b = 0;
  for (int beat = 0; beat < 20; ++beat, node.pass_ms(100)) {
    node.grant(a);
    to_b = node.grant(b).count;
    if (beat < 8) CHECK(to_b == 0);
  }
  CHECK(to_b == 1);
}

TEST_CASE("a loan goes with the session that had it") {
  Node node(2);
  const auto a = node.ledger.join(node.now_ns);
  const auto b = node.ledger.join(node.now_ns);
  node.ledger.want(a, 2, 0, node.now_ns);
  node.grant(a);
  node.ledger.leave(a);
  CHECK(node.grant(b).count == 2);
}

TEST_CASE("routers that all want the whole node, and one that wants little, all have their turns") {
  Node node(2);
  constexpr int kRouters = 3;
  std::vector<GrantLedger::LinkId> links;
  for (int i = 0; i < kRouters; ++i) links.push_back(node.ledger.join(node.now_ns));
  std::vector<int> taken(kRouters);
  std::vector<int> held(kRouters);
  for (int beat = 0; beat < 1200; ++beat, node.pass_ms(100)) {
    for (size_t i = 0; i < kRouters; ++i) {
      const int needed = i == 0 ? 1 : 2;
      if (held[i] > 0) node.ledger.give(links[i], std::exchange(held[i], 0));
      if (needed == 2) node.ledger.want(links[i], 2, 0, node.now_ns);
      if (node.grant(links[i]).count < needed) continue;
      REQUIRE(node.ledger.take(links[i], needed, node.now_ns));
      held[i] = needed;
      ++taken[i];
    }
  }
  for (const int count : taken) CHECK(count > 20);
}

TEST_CASE("no slot is ever inside two routers' grants, whatever they send and when") {
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto pick = [&](uint32_t n) { return static_cast<int32_t>(random() % n); };
    const int32_t slots = 1 + pick(9);
    Node node(slots);
    struct Router {
      GrantLedger::LinkId link = 0;
      int32_t held = 0;
    };
    std::vector<Router> routers(static_cast<size_t>(1 + pick(4)));
    for (Router& router : routers) router.link = node.ledger.join(node.now_ns);
    for (int step = 0; step < 2000; ++step) {
      Router& router = routers[static_cast<size_t>(pick(static_cast<uint32_t>(routers.size())))];
      switch (pick(7)) {
        case 0:
        case 1:
          node.grant(router.link);
          break;
        case 2: {
          const int32_t wanted = 1 + pick(2);
          if (node.ledger.take(router.link, wanted, node.now_ns)) router.held += wanted;
          break;
        }
        case 3:
          if (router.held > 0) {
            node.ledger.give(router.link, 1);
            --router.held;
          }
          break;
        case 4:
          node.now_ns += kStepNs * pick(20);
          break;
        case 6:
          node.ledger.want(router.link, pick(5), 1000 * pick(5), node.now_ns);
          break;
        case 5:
          if (pick(20) == 0) {
            // Its work goes on to be cancelled elsewhere; here its slots are free.
            node.ledger.leave(router.link);
            router.held = 0;
            router.link = node.ledger.join(node.now_ns);
          }
          break;
      }
      int32_t promised = 0;
      for (const Router& each : routers)
        promised += each.held + node.ledger.outstanding(each.link, node.now_ns);
      REQUIRE(promised <= slots);
    }
  }
}

TEST_CASE("a node that is short of memory grants nothing more, and keeps what it has granted") {
  Node node(4);
  const auto a = node.ledger.join(node.now_ns);
  REQUIRE(node.grant(a).count == 4);
  REQUIRE(node.ledger.take(a, 1, node.now_ns));
  node.ledger.set_memory(MemoryLevel::kShed);
  CHECK(node.grant(a).count == 0);
  CHECK(node.ledger.outstanding(a, node.now_ns) == 3);
  CHECK(node.ledger.take(a, 3, node.now_ns));
  node.ledger.give(a, 4);
  CHECK_FALSE(node.ledger.take(a, 1, node.now_ns));  // free, but nobody's
  node.ledger.set_memory(MemoryLevel::kNormal);
  CHECK(node.grant(a).count == 4);
  CHECK(node.ledger.take(a, 1, node.now_ns));
}
