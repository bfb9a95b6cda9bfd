// Waiting for a node: bounded, ordered, timed; what cannot wait is told when to come back.
#include "cloud/router/queue.h"

#include <doctest/doctest.h>

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

TEST_CASE("a full queue answers 429 with an honest time to come back") {
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
