// The level of memory as a whole daemon sees it.
#include "common/base/memory_watch.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "tests/support/fake_memory.h"

using namespace updraft;
using updraft::testing::FakeMemory;

namespace {

bool comes_to(MemoryWatch& watch, MemoryLevel level) {
  const int64_t until_ns = monotonic_ns() + 10 * kNsPerSecond;
  while (watch.level() != level) {
    if (monotonic_ns() > until_ns) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

}  // namespace

TEST_CASE("whoever asks learns the level of now, and each change is told once") {
  const FakeMemory fake(50.0);
  std::vector<MemoryChange> changes;
  MemoryWatch watch({95, 98}, fake.root(), [&](const MemoryChange& c) { changes.push_back(c); });
  CHECK(watch.use().limit_bytes == 0);  // nobody has asked
  CHECK(watch.level() == MemoryLevel::kNormal);
  CHECK(watch.use().ratio() == doctest::Approx(0.5));
  fake.set(96.0);
  CHECK(comes_to(watch, MemoryLevel::kShed));
  fake.set(99.0);
  CHECK(comes_to(watch, MemoryLevel::kRefuse));
  fake.set(20.0);
  CHECK(comes_to(watch, MemoryLevel::kNormal));
  REQUIRE(changes.size() == 3);
  CHECK(changes[0].from == MemoryLevel::kNormal);
  CHECK(changes[0].to == MemoryLevel::kShed);
  CHECK(changes[0].use.ratio() == doctest::Approx(0.96));
  CHECK(changes[1].to == MemoryLevel::kRefuse);
  CHECK(changes[2].from == MemoryLevel::kRefuse);
  CHECK(changes[2].to == MemoryLevel::kNormal);
}

TEST_CASE("many threads that ask at once agree, and read seldom") {
  const FakeMemory fake(99.0);
  std::atomic<int> changes{0};
  MemoryWatch watch({95, 98}, fake.root(), [&](const MemoryChange&) { ++changes; });
  CHECK(watch.level() == MemoryLevel::kRefuse);
  fake.set(10.0);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      while (!stop.load()) {
        (void)watch.level();
        (void)watch.use();
      }
    });
  }
  CHECK(comes_to(watch, MemoryLevel::kNormal));
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  CHECK(changes.load() == 2);
}
