// Prompts go where their beginning is cached, as long as that is the faster place.
#include "cloud/router/affinity.h"

#include <doctest/doctest.h>

#include <map>

#include "common/message/prefix_chain.h"
#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

namespace {

std::string text_of(size_t bytes, uint32_t seed) {
  std::string text(bytes, ' ');
  for (char& c : text) c = static_cast<char>('a' + (seed = seed * 1664525 + 1013904223) % 26);
  return text;
}

Request ask(const std::string& id, const std::string& text, const std::string& tenant = "t") {
  Request request = PoolFixture::chat(id, 1);
  request.messages[0].parts[0].text = text;
  request.tenant = tenant;
  return request;
}

// Four GPU nodes of equal speed.
struct CachingPool : PoolFixture {
  explicit CachingPool(int count = 4, int32_t slots = 64) {
    for (int i = 0; i < count; ++i) {
      FakeNode& node = join("cloud-" + std::to_string(i), Tier::kCloud, 32768, slots);
      node.beat.prefill_tokens_per_s = 2000;
      node.beat.decode_tokens_per_s = 50;
    }
    settle();
  }
  FakeNode& node(int i) { return nodes.at("cloud-" + std::to_string(i)); }
  void hold(FakeNode& holder, const Request& request) {
    holder.beat.prefixes = PrefixDelta{1, 0, prefix_chain(request), {}};
    beat(holder);
    holder.beat.prefixes.reset();
  }
  // How many of `requests` each node is given.
  std::map<std::string, int> given() {
    std::map<std::string, int> counts;
    for (auto& [id, each] : nodes) counts[id] = static_cast<int>(each.work.size());
    return counts;
  }
};

}  // namespace

TEST_CASE("a prompt goes to the node that holds its beginning") {
  CachingPool pool;
  const std::string system = text_of(12'000, 1);
  pool.hold(pool.node(2), ask("x", system));
  for (int i = 0; i < 8; ++i)
    pool.submit(
        ask("r" + std::to_string(i), system + text_of(200, 100 + static_cast<uint32_t>(i))));
  CHECK(pool.node(2).work.size() == 8);
}

TEST_CASE("another tenant's cache is nobody's reason") {
  CachingPool pool;
  const std::string system = text_of(12'000, 1);
  pool.hold(pool.node(2), ask("x", system, "a"));
  for (int i = 0; i < 40; ++i) pool.submit(ask("r" + std::to_string(i), system, "b"));
  CHECK(pool.node(2).work.size() < 20);
}

TEST_CASE("the fuller match wins, a longer queue outweighs it") {
  CachingPool pool;
  const std::string shared = text_of(30'000, 1);
  pool.hold(pool.node(0), ask("x", shared.substr(0, 9000)));
  pool.hold(pool.node(1), ask("x", shared));
  pool.submit(ask("a", shared));
  CHECK(pool.node(1).work.size() == 1);
  pool.node(1).beat.prefill_tokens_queued = 100'000;
  pool.beat(pool.node(1));
  pool.submit(ask("b", shared));
  CHECK(pool.node(0).work.size() == 1);
}

TEST_CASE("a popular prompt is capped: at most so many requests more than the idlest node") {
  CachingPool pool(4, 400);
  const std::string system = text_of(60'000, 1);  // ten seconds of prefill saved
  pool.hold(pool.node(0), ask("x", system));
  for (int i = 0; i < 60; ++i) pool.submit(ask("r" + std::to_string(i), system));
  // Half as many again as the idlest, from eight on.
  CHECK(pool.node(0).work.size() >= 8);
  CHECK(pool.node(0).work.size() <= 30);
  for (int i = 1; i < 4; ++i) CHECK(pool.node(i).work.size() >= 8);
}

TEST_CASE("prompts that nobody holds go to the least load (SGLang PR 14532 death spiral)") {
  CachingPool pool;
  // Three nodes hold much, one is new and holds nothing: it is no magnet for misses.
  for (int i = 0; i < 3; ++i) {
    pool.node(i).beat.prefixes = PrefixDelta{1, 0, {}, {}};
    for (uint64_t hash = 1; hash <= 1000; ++hash)
      pool.node(i).beat.prefixes->added.push_back(hash * 1000 + static_cast<uint64_t>(i));
    pool.beat(pool.node(i));
    pool.node(i).beat.prefixes.reset();
  }
  for (int i = 0; i < 100; ++i)
    pool.submit(ask("r" + std::to_string(i), text_of(3000, 1000 + static_cast<uint32_t>(i))));
  for (const auto& [id, count] : pool.given()) {
    CAPTURE(id);
    CHECK(count >= 18);
    CHECK(count <= 32);
  }
}

TEST_CASE("a restart or a new connection empties what a node held") {
  CachingPool pool;
  const Request request = ask("x", text_of(12'000, 1));
  pool.hold(pool.node(2), request);
  FakeNode& node = pool.node(2);
  node.hello.boot_epoch = ++node.beat.boot_epoch;
  node.peer.peer = "again";
  pool.say(node, node.hello);
  pool.advance_ms(200);
  for (int i = 0; i < 40; ++i) {
    Request each = request;
    each.id = "r" + std::to_string(i);
    pool.submit(std::move(each));
  }
  CHECK(node.work.size() < 20);
}

// --- the index ---

TEST_CASE("the index follows deltas and drops one that does not go on from what it knows") {
  AffinityIndex index;
  CHECK(index.empty());
  index.apply(1, {1, 0, {10, 11, 12}, {}});
  index.apply(2, {5, 0, {10}, {}});
  auto matches = index.match({10, 11, 12, 13});
  REQUIRE(matches.size() == 2);
  CHECK(matches[0].node == 1);
  CHECK(matches[0].bytes == prefix_block_end(2));
  CHECK(matches[1].node == 2);
  CHECK(matches[1].bytes == prefix_block_end(0));
  index.apply(1, {2, 1, {}, {12}});
  CHECK(index.match({10, 11, 12})[0].bytes == prefix_block_end(1));
  index.apply(1, {2, 1, {}, {12}});  // the same again
  CHECK(index.match({10, 11, 12})[0].bytes == prefix_block_end(1));
  index.apply(1, {9, 7, {20}, {}});  // something was missed
  CHECK(index.match({10, 11, 12}).size() == 1);
  CHECK(index.match({20}).empty());
  index.apply(1, {10, 0, {20}, {}});
  CHECK(index.match({20}).size() == 1);
  index.drop(1);
  index.drop(2);
  CHECK(index.empty());
}

TEST_CASE("what a node may claim to hold, and how many holders are looked at, is bounded") {
  AffinityIndex index;
  for (uint64_t i = 0; i < 5; ++i) {
    PrefixDelta delta{i + 1, i, {}, {}};
    for (uint64_t j = 0; j < kPrefixesReported; ++j)
      delta.added.push_back(1 + i * kPrefixesReported + j);
    index.apply(3, delta);
  }
  CHECK(index.hashes() == kPrefixesReported);
  for (NodeIndex node = 10; node < 300; ++node) index.apply(node, {1, 0, {77777}, {}});
  CHECK(index.match({77777}).size() == AffinityIndex::kMatchesMax);
}
