// What one key's overload does to another's requests: the door's limits (common/auth/rate_limit.h)
// and the core's fair queue together, on a virtual clock.
#include <doctest/doctest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "common/auth/rate_limit.h"
#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

namespace {

constexpr int64_t kStepMs = 10;
constexpr int64_t kServiceMs = 400;  // of a request in its slot, on average

// Two keys before one node. Returns the 95th percentile of the quiet key's times in ms.
int64_t quiet_p95_ms(int32_t slots, int64_t quiet_every_ms, bool flooded,
                     const KeyLimits& flood_limits) {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, slots);
  pool.settle();
  RateLimits door;
  struct Running {
    Submit work;
    int64_t until_ns;
  };
  std::vector<Running> running;
  struct Asked {
    int64_t at_ns = 0;
    std::optional<RateLimits::Ticket> ticket;
    bool quiet = false;
  };
  std::map<ClientId, Asked> asked;
  std::vector<int64_t> times_ms;
  // Twice what the node serves.
  const double flood_per_step =
      flooded ? 2.0 * slots * static_cast<double>(kStepMs) / kServiceMs : 0.0;
  double flood_due = 0.0;
  int next_id = 0;
  int64_t served = 0;
  const auto ask = [&](const char* tenant, bool quiet) {
    auto admitted = door.admit(tenant, quiet ? KeyLimits{} : flood_limits, 26, pool.now_ns);
    auto* ticket = std::get_if<RateLimits::Ticket>(&admitted);
    if (ticket == nullptr) return;
    Request request = PoolFixture::chat("r" + std::to_string(next_id++), 30);
    request.tenant = tenant;
    const ClientId client = pool.submit(std::move(request));
    asked[client] = {pool.now_ns, std::move(*ticket), quiet};
  };
  for (int64_t t_ms = 0; t_ms < 60'000; t_ms += kStepMs) {
    for (flood_due += flood_per_step; flood_due >= 1.0; flood_due -= 1.0) ask("flood", false);
    if (t_ms % quiet_every_ms == 0) ask("quiet", true);
    for (const Submit& work : std::exchange(node.work, {})) {
      // 200 to 600 ms, so that slots come free one by one.
      const int64_t service_ms = kServiceMs / 2 + kServiceMs * (37 * served++ % 41) / 41;
      running.push_back({work, pool.now_ns + service_ms * kNsPerMs});
    }
    node.beat.running = static_cast<int32_t>(running.size());
    node.beat.slots_free = slots - node.beat.running;
    pool.advance_ms(kStepMs);
    std::vector<Submit> done;
    std::erase_if(running, [&](const Running& each) {
      if (each.until_ns > pool.now_ns) return false;
      done.push_back(each.work);
      return true;
    });
    for (const Submit& work : done) pool.serve(node, work);
    for (auto at = asked.begin(); at != asked.end();) {
      if (pool.ends(at->first) == 0) {
        ++at;
        continue;
      }
      door.settle(*at->second.ticket, 26, pool.now_ns);
      if (at->second.quiet) {
        CHECK(pool.finished(at->first));
        times_ms.push_back((pool.now_ns - at->second.at_ns) / kNsPerMs);
      }
      at = asked.erase(at);
    }
  }
  REQUIRE(times_ms.size() > 50);
  std::sort(times_ms.begin(), times_ms.end());
  return times_ms[times_ms.size() * 95 / 100];
}

}  // namespace

TEST_CASE("a key at twice what the pool serves leaves another key's p95 within a fifth") {
  // Few slots: it is the key's limit of requests at once that keeps some free.
  KeyLimits limited;
  limited.concurrent = 2;
  const int64_t alone_ms = quiet_p95_ms(4, 400, false, {});
  CHECK(quiet_p95_ms(4, 400, true, limited) <= alone_ms * 12 / 10);
  // Many slots: one comes free soon, and the queue gives it to who has had less.
  const int64_t alone_wide_ms = quiet_p95_ms(16, 200, false, {});
  CHECK(quiet_p95_ms(16, 200, true, {}) <= alone_wide_ms * 12 / 10);
}

TEST_CASE(
    "a router short of memory takes interactive requests alone, then none, and keeps what it has") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.settle();
  const auto ask = [&](const std::string& id, Priority priority) {
    Request request = PoolFixture::chat(id, 30);
    request.hints.priority = priority;
    return pool.submit(std::move(request));
  };
  const auto refusal = [&](ClientId client) -> const RequestError* {
    const auto& events = pool.events[client];
    return events.empty() ? nullptr : std::get_if<RequestError>(&events.back());
  };
  const ClientId before = ask("before", Priority::kBulk);
  REQUIRE(node.work.size() == 1);
  pool.core.set_memory(MemoryLevel::kShed);
  CHECK(refusal(ask("s1", Priority::kSystem)) == nullptr);
  CHECK(refusal(ask("s2", Priority::kInteractive)) == nullptr);
  CHECK(node.work.size() == 3);
  for (const Priority low : {Priority::kDefault, Priority::kBulk}) {
    const RequestError* error = refusal(ask(low == Priority::kBulk ? "s4" : "s3", low));
    REQUIRE(error != nullptr);
    CHECK(error->code == ErrorCode::kOverloaded);
    CHECK(error->retry_after_ms > 0);
    CHECK(error->message.find("memory") != std::string::npos);
  }
  pool.core.set_memory(MemoryLevel::kRefuse);
  CHECK(refusal(ask("r1", Priority::kSystem)) != nullptr);
  CHECK(refusal(ask("r2", Priority::kInteractive)) != nullptr);
  CHECK(node.work.size() == 3);
  CHECK(pool.core.stats().memory_refused[static_cast<size_t>(MemoryLevel::kShed)] == 2);
  CHECK(pool.core.stats().memory_refused[static_cast<size_t>(MemoryLevel::kRefuse)] == 2);
  for (const Submit& work : std::exchange(node.work, {})) pool.serve(node, work);
  CHECK(pool.ends(before) == 1);
  CHECK(refusal(before) == nullptr);
  pool.core.set_memory(MemoryLevel::kNormal);
  CHECK(refusal(ask("after", Priority::kBulk)) == nullptr);
  CHECK(node.work.size() == 1);
}
