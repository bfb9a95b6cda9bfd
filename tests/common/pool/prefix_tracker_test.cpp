// What a node says of its prefix cache.
#include "common/pool/prefix_tracker.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <set>

#include "common/message/prefix_chain.h"

using namespace updraft;

namespace {

// A router that hears deltas as they come.
struct Heard {
  std::set<uint64_t> hashes;
  uint64_t generation = 0;
  void hear(const PrefixDelta& delta) {
    if (delta.since == 0) hashes.clear();
    REQUIRE((delta.since == 0 || (generation >= delta.since && generation <= delta.generation)));
    for (const uint64_t hash : delta.dropped) hashes.erase(hash);
    for (const uint64_t hash : delta.added) hashes.insert(hash);
    generation = delta.generation;
  }
};

}  // namespace

TEST_CASE("a delta tells what is new, then nothing until something changes") {
  PrefixTracker tracker;
  CHECK_FALSE(tracker.delta(true));
  tracker.note({1, 2, 3});
  const auto first = tracker.delta(true);
  REQUIRE(first);
  CHECK(first->since == 0);
  CHECK(first->added.size() == 3);
  CHECK(first->dropped.empty());
  CHECK_FALSE(tracker.delta(true));
  tracker.note({1, 2, 3});  // used again
  CHECK_FALSE(tracker.delta(true));
  tracker.note({1, 2, 9});
  const auto second = tracker.delta(true);
  REQUIRE(second);
  CHECK(second->since == first->generation);
  CHECK(second->added == std::vector<uint64_t>{9});
}

TEST_CASE("what a beat said that never left is said again by the next") {
  PrefixTracker tracker;
  tracker.note({1});
  REQUIRE(tracker.delta(true));
  tracker.note({2});
  const auto again = tracker.delta(false);
  REQUIRE(again);
  CHECK(again->since == 0);
  CHECK(std::set<uint64_t>(again->added.begin(), again->added.end()) == std::set<uint64_t>{1, 2});
}

TEST_CASE("the least recently used go first, the ends of chains before their beginnings") {
  PrefixTracker tracker;
  tracker.note({1, 2, 3, 4});
  tracker.note({10, 11});
  tracker.shrink_to(4 * 512);
  CHECK(tracker.size() == 4);
  CHECK(tracker.holds(1));
  CHECK(tracker.holds(2));
  CHECK_FALSE(tracker.holds(3));
  CHECK(tracker.holds(10));
  CHECK(tracker.holds(11));
  tracker.shrink_to(0);
  CHECK(tracker.size() == 0);
}

TEST_CASE("the number of names is bounded") {
  PrefixTracker tracker(100);
  for (uint64_t i = 1; i <= 1000; ++i) tracker.note({i});
  CHECK(tracker.size() == 100);
  CHECK(tracker.holds(1000));
  CHECK_FALSE(tracker.holds(900));
}

TEST_CASE("a router that hears what left knows what is there, whatever beats were replaced") {
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    PrefixTracker tracker(60);
    Heard router;
    std::optional<PrefixDelta> waiting;  // a beat that has not left
    for (int step = 0; step < 1500; ++step) {
      switch (random() % 5) {
        case 0: {
          std::vector<uint64_t> chain;
          for (uint64_t i = 0; i < 1 + random() % 6; ++i)
            chain.push_back(1 + random() % 3 + 10 * i);
          tracker.note(chain);
          break;
        }
        case 1:
          tracker.shrink_to(512 * static_cast<int64_t>(random() % 40));
          break;
        case 2:
          if (waiting) router.hear(*waiting);
          waiting.reset();
          break;
        case 3:
          waiting = tracker.delta(!waiting);
          break;
        case 4:
          if (random() % 30 == 0) {  // a new connection
            waiting.reset();
            router = {};
            tracker.restart();
          }
          break;
      }
    }
    if (waiting) router.hear(*waiting);
    if (const auto last = tracker.delta(true)) router.hear(*last);
    CHECK(router.hashes.size() == tracker.size());
    for (const uint64_t hash : router.hashes) CHECK(tracker.holds(hash));
  }
}
