// The core's counts as Prometheus sees them.
#include "cloud/router/router_metrics.h"

#include <doctest/doctest.h>

#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

TEST_CASE("waits in the queue are a histogram that grows by what came since the last update") {
  const auto metrics = Metrics::create();
  RouterMetrics shown(*metrics);
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 1);
  pool.settle();
  const auto has = [&](const std::string& line) {
    shown.update(pool.core, 0);
    const std::string text = metrics->text();
    CAPTURE(text);
    return text.find("\nupdraft_router_queue_wait_seconds" + line + "\n") != std::string::npos;
  };
  CHECK(has("_count 0"));
  pool.submit(PoolFixture::chat("a", 30));
  pool.submit(PoolFixture::chat("b", 30));
  CHECK(has("_count 1"));
  CHECK(has("_bucket{le=\"0.001\"} 1"));
  pool.advance_ms(700);
  pool.serve(node, Submit(node.work[0]));
  REQUIRE(node.work.size() == 2);
  CHECK(has("_count 2"));
  CHECK(has("_bucket{le=\"0.5\"} 1"));
  CHECK(has("_bucket{le=\"1\"} 2"));
  CHECK(has("_sum 0.7"));
  CHECK(has("_count 2"));  // nothing new
}
