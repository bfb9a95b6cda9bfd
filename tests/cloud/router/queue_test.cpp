// Waiting for a node: bounded, ordered, timed; what cannot wait is told when to come back.
#include "cloud/router/queue.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

namespace {

// One node with one slot, which is taken: everything after that waits.
struct BusyPool : PoolFixture {
  explicit BusyPool(RouterCoreConfig config = {}) : PoolFixture(std::move(config)) {
    join("cloud-1", Tier::kCloud, 4096, 1);
    settle();
    first = submit(chat("first", 30));
    node().beat.running = 1;
  }
  FakeNode& node() { return nodes.at("cloud-1"); }
  void finish_current() { serve(node(), node().work.back()); }
  ClientId first = 0;
};

Request with(Request request, Priority priority, int64_t deadline_ms = 0) {
  request.hints.priority = priority;
  request.hints.deadline_ms = deadline_ms;
  return request;
}

RouterCoreConfig small_queue(int32_t queue_max) {
  RouterCoreConfig config;
  config.queue_max = queue_max;
  return config;
}

}  // namespace

TEST_CASE("waiting requests are served in the order of class, then deadline, then arrival") {
  BusyPool pool;
  pool.submit(with(PoolFixture::chat("bulk", 30), Priority::kBulk));
  pool.submit(with(PoolFixture::chat("default-1", 30), Priority::kDefault));
  pool.submit(with(PoolFixture::chat("default-2", 30), Priority::kDefault));
  pool.submit(with(PoolFixture::chat("default-late", 30), Priority::kDefault, 20'000));
  pool.submit(with(PoolFixture::chat("default-soon", 30), Priority::kDefault, 10'000));
  pool.submit(with(PoolFixture::chat("interactive", 30), Priority::kInteractive));
  pool.submit(with(PoolFixture::chat("system", 30), Priority::kSystem));
  CHECK(pool.core.queued() == 7);
  std::vector<std::string> order;
  while (pool.core.queued() > 0) {
    pool.finish_current();
    order.push_back(pool.node().work.back().request.id);
  }
  CHECK(order == std::vector<std::string>{"system", "interactive", "default-soon", "default-late",
                                          "default-1", "default-2", "bulk"});
}

TEST_CASE("a full queue answers 429 with an honest time to come back (Ollama #7758)") {
  BusyPool pool(small_queue(2));
  pool.submit(PoolFixture::chat("a", 30));
  pool.submit(PoolFixture::chat("b", 30));
  const RequestError error = pool.error(pool.submit(PoolFixture::chat("c", 30)));
  CHECK(error.code == ErrorCode::kRateLimited);
  // Two waiting and itself, one slot, two seconds each until something better is known.
  CHECK(error.retry_after_ms == 6000);
  CHECK(pool.core.queued() == 2);
}

TEST_CASE("the time to come back follows how long requests have taken of late") {
  BusyPool pool(small_queue(1));
  for (int i = 0; i < 40; ++i) {
    pool.submit(PoolFixture::chat("q" + std::to_string(i), 30));
    pool.advance_ms(5000);
    pool.finish_current();
  }
  pool.submit(PoolFixture::chat("waiting", 30));
  const RequestError error = pool.error(pool.submit(PoolFixture::chat("refused", 30)));
  CHECK(error.retry_after_ms > 9000);
  CHECK(error.retry_after_ms < 11'000);
}

TEST_CASE("a more urgent class pushes the last of a full queue out, the same class does not") {
  BusyPool pool(small_queue(2));
  const ClientId a = pool.submit(with(PoolFixture::chat("a", 30), Priority::kBulk));
  const ClientId b = pool.submit(with(PoolFixture::chat("b", 30), Priority::kBulk));
  const ClientId c = pool.submit(with(PoolFixture::chat("c", 30), Priority::kBulk));
  CHECK(pool.error(c).code == ErrorCode::kRateLimited);
  const ClientId d = pool.submit(with(PoolFixture::chat("d", 30), Priority::kInteractive));
  CHECK(pool.error(b).code == ErrorCode::kRateLimited);
  CHECK(pool.ends(a) == 0);
  CHECK(pool.ends(d) == 0);
  CHECK(pool.core.queued() == 2);
}

TEST_CASE("waiting longer than the queue's limit is 503 with a time to come back") {
  BusyPool pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  pool.advance_ms(29'900);
  CHECK(pool.ends(client) == 0);
  pool.advance_ms(200);
  CHECK(pool.error(client).code == ErrorCode::kOverloaded);
  CHECK(pool.error(client).retry_after_ms > 0);
  CHECK(pool.core.queued() == 0);
}

TEST_CASE("a request whose deadline is over is 504 and never dispatched") {
  BusyPool pool;
  const ClientId client = pool.submit(with(PoolFixture::chat("a", 30), Priority::kDefault, 1000));
  pool.advance_ms(1050);
  CHECK(pool.error(client).code == ErrorCode::kDeadline);
  pool.finish_current();
  pool.advance_ms(500);
  CHECK(pool.node().work.size() == 1);
}

TEST_CASE("a deadline that passes between two ticks is not dispatched either") {
  BusyPool pool;
  const ClientId client = pool.submit(with(PoolFixture::chat("a", 30), Priority::kDefault, 1000));
  pool.advance_ms(990);
  pool.now_ns += 15 * kNsPerMs;  // over, but no tick has seen it
  pool.finish_current();
  CHECK(pool.node().work.size() == 1);
  pool.tick();
  CHECK(pool.error(client).code == ErrorCode::kDeadline);
}

TEST_CASE(
    "a running request that outlives its deadline ends within a second and is cancelled on its "
    "node") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 1);
  pool.settle();
  const ClientId client = pool.submit(with(PoolFixture::chat("a", 30), Priority::kDefault, 2000));
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1}));
  pool.advance_ms(2000);
  CHECK(pool.ends(client) == 0);  // the node's own answer has a moment to arrive
  pool.advance_ms(500);
  CHECK(pool.error(client).code == ErrorCode::kDeadline);
  REQUIRE(node.cancels.size() == 1);
  CHECK(node.cancels[0].id == "a");
}

TEST_CASE("the remaining time travels with the request") {
  BusyPool pool;
  pool.submit(with(PoolFixture::chat("a", 30), Priority::kDefault, 10'000));
  pool.advance_ms(4000);
  pool.finish_current();
  REQUIRE(pool.node().work.size() == 2);
  CHECK(pool.node().work[1].request.hints.deadline_ms == 6000);
}

TEST_CASE("cancel takes a waiting request out of the queue") {
  BusyPool pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  pool.cancel("a");
  CHECK(pool.error(client).code == ErrorCode::kCancelled);
  CHECK(pool.core.queued() == 0);
  pool.finish_current();
  CHECK(pool.node().work.size() == 1);
}

TEST_CASE("a big request that waits is not overtaken for ever by small ones on its node") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  node.beat.kv_tokens_total = node.beat.kv_tokens_free = 4096;
  pool.settle();
  pool.submit(PoolFixture::chat("running", 3000));  // about 1,000 of 4,096 tokens
  Request big = PoolFixture::chat("big", 9600);     // about 3,200
  pool.submit(big);
  CHECK(pool.core.queued() == 1);
  pool.submit(PoolFixture::chat("small", 30));  // would fit now
  CHECK(pool.core.queued() == 2);
  CHECK(node.work.size() == 1);
  pool.serve(node, node.work[0]);
  REQUIRE(node.work.size() >= 2);
  CHECK(node.work[1].request.id == "big");
}

TEST_CASE("a long request that waits for the cloud does not keep short ones from the edge") {
  PoolFixture pool;
  FakeNode& edge = pool.join("edge-1", Tier::kEdge, 512, 2);
  FakeNode& cloud = pool.join("cloud-1", Tier::kCloud, 4096, 1);
  pool.settle();
  pool.submit(PoolFixture::chat("long-1", 3000));
  pool.submit(PoolFixture::chat("long-2", 3000));
  CHECK(pool.core.queued() == 1);
  pool.submit(PoolFixture::chat("short", 30));
  CHECK(edge.work.size() == 1);
  CHECK(cloud.work.size() == 1);
}

TEST_CASE("a node that joins serves what waits") {
  BusyPool pool;
  pool.submit(PoolFixture::chat("a", 30));
  FakeNode& second = pool.join("cloud-2", Tier::kCloud, 4096, 1);
  CHECK(second.work.size() == 1);
  CHECK(pool.core.queued() == 0);
}

TEST_CASE(
    "a node that refuses as busy gets nothing before its next beat, and the request keeps its "
    "place") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.settle();
  const ClientId a = pool.submit(PoolFixture::chat("a", 30));
  pool.say(node, PoolFixture::rejected(node.work[0], ErrorCode::kRejectedBusy));
  CHECK(pool.core.queued() == 1);
  const ClientId b = pool.submit(PoolFixture::chat("b", 30));
  CHECK(node.work.size() == 1);
  pool.beat(node);
  REQUIRE(node.work.size() == 3);
  CHECK(node.work[1].request.id == "a");
  CHECK(node.work[2].request.id == "b");
  pool.serve(node, node.work[1]);
  pool.serve(node, node.work[2]);
  CHECK(pool.finished(a));
  CHECK(pool.finished(b));
}

// --- tenants ---

namespace {

Request of(const std::string& tenant, const std::string& id, size_t text_bytes = 30) {
  Request request = PoolFixture::chat(id, text_bytes);
  request.tenant = tenant;
  return request;
}

// The tenants of what the node is given, in order, until nothing waits.
std::string served(BusyPool& pool) {
  std::string order;
  while (pool.core.queued() > 0) {
    pool.finish_current();
    order += pool.node().work.back().request.tenant;
  }
  return order;
}

}  // namespace

TEST_CASE("a tenant with much waiting does not hold up one with little") {
  BusyPool pool;
  for (int i = 0; i < 100; ++i) pool.submit(of("a", "a" + std::to_string(i), 1800));
  for (int i = 0; i < 3; ++i) pool.submit(of("b", "b" + std::to_string(i), 1800));
  pool.submit(of("c", "c", 1800));
  const std::string order = served(pool);
  CHECK(order.size() == 104);
  // Each about 620 tokens: one or two in a turn.
  CHECK(order.find('c') < 6);
  CHECK(order.rfind('b') < 12);
}

TEST_CASE("tenants share by tokens, not by requests") {
  BusyPool pool;
  for (int i = 0; i < 60; ++i) pool.submit(of("a", "a" + std::to_string(i), 9000));  // 3,000 tokens
  for (int i = 0; i < 300; ++i) pool.submit(of("b", "b" + std::to_string(i), 800));  // 300
  const std::string order = served(pool).substr(0, 110);
  const auto a = std::count(order.begin(), order.end(), 'a');
  const auto b = std::count(order.begin(), order.end(), 'b');
  CHECK(a >= 8);
  CHECK(a <= 13);
  CHECK(b >= 97);
}

TEST_CASE("inside a tenant the earlier deadline is first, whoever came first") {
  BusyPool pool;
  Request late = of("a", "late");
  late.hints.deadline_ms = 20'000;
  Request soon = of("a", "soon");
  soon.hints.deadline_ms = 10'000;
  pool.submit(of("a", "never"));
  pool.submit(std::move(late));
  pool.submit(std::move(soon));
  std::vector<std::string> order;
  while (pool.core.queued() > 0) {
    pool.finish_current();
    order.push_back(pool.node().work.back().request.id);
  }
  CHECK(order == std::vector<std::string>{"soon", "late", "never"});
}

TEST_CASE("a more urgent class is served before every tenant of the next") {
  BusyPool pool;
  for (int i = 0; i < 4; ++i) pool.submit(of("a", "a" + std::to_string(i)));
  Request urgent = of("b", "b");
  urgent.hints.priority = Priority::kInteractive;
  pool.submit(std::move(urgent));
  CHECK(served(pool) == "baaaa");
}

TEST_CASE("one tenant's flood does not close the queue to another") {
  BusyPool pool(small_queue(10));
  std::vector<ClientId> flood;
  for (int i = 0; i < 30; ++i) flood.push_back(pool.submit(of("a", "a" + std::to_string(i))));
  CHECK(pool.core.queued() == 10);
  CHECK(pool.error(flood[10]).code == ErrorCode::kRateLimited);
  std::vector<ClientId> others;
  for (int i = 0; i < 8; ++i) others.push_back(pool.submit(of("b", "b" + std::to_string(i))));
  int waiting = 0;
  for (const ClientId client : others) waiting += pool.ends(client) == 0;
  CHECK(waiting == 5);  // half of it each
  CHECK(pool.core.queued() == 10);
  CHECK(pool.error(flood[9]).code == ErrorCode::kRateLimited);  // the last of the flood gave way
  CHECK(pool.ends(flood[0]) == 0);
}

TEST_CASE("the third of three requests at once waits and is served (llama-swap #887)") {
  BusyPool pool;
  std::vector<ClientId> clients;
  for (int i = 0; i < 3; ++i) clients.push_back(pool.submit(of("a", "r" + std::to_string(i))));
  served(pool);
  pool.finish_current();
  for (const ClientId client : clients) CHECK(pool.finished(client));
}

TEST_CASE("the time to come back is that of the asked model, not of a busier one") {
  BusyPool pool(small_queue(6));
  pool.join("cloud-2", Tier::kCloud, 4096, 1, "other");
  Request running = PoolFixture::chat("other-1", 30, "other");
  pool.submit(std::move(running));
  for (int i = 0; i < 6; ++i) pool.submit(PoolFixture::chat("q" + std::to_string(i), 30));
  Request other = PoolFixture::chat("other-2", 30, "other");
  CHECK(pool.error(pool.submit(std::move(other))).retry_after_ms == 2000);
  CHECK(pool.error(pool.submit(PoolFixture::chat("q", 30))).retry_after_ms == 14'000);
}

TEST_CASE("deficit round robin serves as if the rounds were played one by one") {
  // Tenants with requests of given costs; each turn adds the quantum, and what it affords is
  // served.
  const std::map<std::string, std::vector<int64_t>> waiting = {{"a", {5000, 100, 100, 3000}},
                                                               {"b", {1024, 1024, 1024}},
                                                               {"c", {1, 2, 3, 4000, 7}},
                                                               {"d", {2048, 10}}};
  WaitQueue queue(100);
  uint64_t order = 0;
  std::map<uint64_t, std::string> names;
  for (const auto& [tenant, costs] : waiting) {
    for (const int64_t cost : costs) {
      WaitQueue::Key key;
      key.order = ++order;
      names[key.order] = tenant + std::to_string(cost);
      queue.insert(key, tenant, cost);
    }
  }
  std::vector<std::string> expected;
  std::map<std::string, int64_t> deficit;
  std::map<std::string, size_t> next;
  while (expected.size() < names.size()) {
    for (const auto& [tenant, costs] : waiting) {
      if (next[tenant] == costs.size()) continue;
      deficit[tenant] += WaitQueue::kQuantumTokens;
      while (next[tenant] < costs.size() && costs[next[tenant]] <= deficit[tenant]) {
        deficit[tenant] -= costs[next[tenant]];
        expected.push_back(tenant + std::to_string(costs[next[tenant]++]));
      }
    }
  }
  std::vector<std::string> served;
  for (bool more = true; more;) {  // a walk per two entries, as nodes report
    WaitQueue::Walk walk(queue);
    for (int i = 0; i < 2; ++i) {
      const WaitQueue::Key* key = walk.next();
      more = key != nullptr;
      if (!more) break;
      served.push_back(names.at(key->order));
      walk.take();
    }
  }
  CHECK(served == expected);
  CHECK(queue.empty());
}

TEST_CASE("work whose time is over is never sent, however long it waited") {
  BusyPool pool;
  for (int i = 0; i < 5; ++i) {
    Request request = of(i % 2 == 0 ? "a" : "b", "r" + std::to_string(i));
    request.hints.deadline_ms = 1000 + i;
    pool.submit(std::move(request));
  }
  pool.now_ns += 1002 * kNsPerMs;  // no tick in between
  pool.finish_current();
  CHECK(pool.node().work.back().request.id == "r4");
}

TEST_CASE("how long each request waited for its first node is counted once") {
  RouterCoreConfig config = small_queue(3);
  config.queue_timeout_ms = 2000;
  BusyPool pool(config);
  const auto counted = [&](size_t bucket) { return pool.core.stats().waits.counts[bucket]; };
  const auto all = [&] {
    const auto& counts = pool.core.stats().waits.counts;
    return std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  };
  REQUIRE(all() == 1);  // the one that keeps it busy did not wait
  CHECK(counted(0) == 1);
  pool.submit(PoolFixture::chat("waits", 30));
  pool.submit(PoolFixture::chat("in-vain", 30));
  pool.submit(PoolFixture::chat("leaves", 30));
  pool.submit(PoolFixture::chat("refused", 30));  // the queue is full: it does not wait at all
  pool.submit(PoolFixture::chat("nobody", 30, "no-such-model"));
  CHECK(all() == 1);
  pool.advance_ms(300);
  pool.cancel("leaves");
  CHECK(counted(7) == 1);  // 250 to 500 ms
  pool.advance_ms(100);
  pool.finish_current();
  CHECK(pool.node().work.back().request.id == "waits");
  CHECK(counted(7) == 2);
  // Sent a second time, it has waited anew; that is no wait for its first node.
  pool.say(pool.node(), PoolFixture::rejected(pool.node().work.back(), ErrorCode::kRejectedBusy));
  pool.node().beat.slots_free = 1;
  pool.node().beat.running = 0;
  pool.beat(pool.node());
  REQUIRE(pool.node().work.back().request.id == "waits");
  REQUIRE(pool.node().work.back().epoch > 2);
  pool.node().beat.slots_free = 0;
  pool.node().beat.running = 1;
  pool.advance_ms(2000);
  CHECK(counted(9) == 1);  // "in-vain", 1 to 2.5 s
  CHECK(all() == 4);
  CHECK(pool.core.stats().waits.seconds == doctest::Approx(0.3 + 0.4 + 2.0).epsilon(0.02));
}
