// The fork-join pool: every item exactly once, results visible, idle threads asleep.
#include "kernels/cpu/thread_pool.h"

#include <doctest/doctest.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <chrono>
#include <numeric>

using namespace updraft;

namespace {

std::unique_ptr<ThreadPool> open_pool(int threads) {
  ThreadPool::Config config;
  config.thread_count = threads;
  Result<std::unique_ptr<ThreadPool>> pool = ThreadPool::open(config);
  REQUIRE(pool.ok());
  return std::move(*pool);
}

double process_cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace

TEST_CASE("every item runs exactly once and its writes are seen after the join") {
  for (const int threads : {1, 2, 3, 8}) {
    CAPTURE(threads);
    const std::unique_ptr<ThreadPool> pool = open_pool(threads);
    int wrong = 0;
    for (int round = 0; round < 3000; ++round) {
      const int items = round % 37;
      std::vector<int> counts(static_cast<size_t>(items) + 1,
                              0);  // plain ints: a lost ordering is a data race
      pool->for_each(items, [&](int64_t item, int thread) {
        if (thread < 0 || thread >= threads) std::abort();
        ++counts[static_cast<size_t>(item)];
      });
      for (int i = 0; i < items; ++i) wrong += counts[static_cast<size_t>(i)] == 1 ? 0 : 1;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("more threads than cores finish uneven work") {
  const std::unique_ptr<ThreadPool> pool = open_pool(16);
  std::vector<int64_t> sums(200, 0);
  for (int round = 0; round < 20; ++round) {
    pool->for_each(200, [&](int64_t item, int) {
      int64_t sum = 0;
      for (int64_t i = 0; i < item * 50; ++i) sum += i % 7;
      sums[static_cast<size_t>(item)] += sum;
    });
  }
  for (int64_t item = 0; item < 200; ++item) {
    int64_t sum = 0;
    for (int64_t i = 0; i < item * 50; ++i) sum += i % 7;
    CHECK(sums[static_cast<size_t>(item)] == 20 * sum);
  }
}

TEST_CASE("an idle pool sleeps") {
  const std::unique_ptr<ThreadPool> pool = open_pool(4);
  pool->for_each(64, [](int64_t, int) {});
  // The workers may spin for some microseconds. Over 100 intervals of 5 ms of wall time the process
  // must come to use next to none of them; it is given ten seconds to be seen idle.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  bool idle = false;
  while (!idle && std::chrono::steady_clock::now() < deadline) {
    const double before = process_cpu_seconds();
    const timespec nap{0, 5'000'000};
    nanosleep(&nap, nullptr);
    idle = process_cpu_seconds() - before < 0.001;
  }
  CHECK(idle);
  std::vector<int> counts(64, 0);
  pool->for_each(
      64, [&](int64_t item, int) { ++counts[static_cast<size_t>(item)]; });  // and wakes up again
  CHECK(std::accumulate(counts.begin(), counts.end(), 0) == 64);
}

TEST_CASE("a core outside the process's mask is refused") {
  ThreadPool::Config config;
  config.thread_count = 2;
  config.cores = {1 << 20};
  const Result<std::unique_ptr<ThreadPool>> pool = ThreadPool::open(config);
  CHECK_FALSE(pool.ok());
  CHECK(pool.message().find("1048576") != std::string::npos);
}

TEST_CASE("the caller is pinned on demand and released with the pool") {
  const std::vector<int> cores = process_cores();
  REQUIRE_FALSE(cores.empty());
  const auto mask_size = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    REQUIRE(pthread_getaffinity_np(pthread_self(), sizeof set, &set) == 0);
    return CPU_COUNT(&set);
  };
  const int before = mask_size();
  {
    ThreadPool::Config config;
    config.thread_count = 2;
    config.cores = {cores.front()};
    config.pin_caller = true;
    Result<std::unique_ptr<ThreadPool>> pool = ThreadPool::open(config);
    REQUIRE(pool.ok());
    CHECK(mask_size() == before);
    (*pool)->pin_caller();
    CHECK(mask_size() == 1);
    int sum = 0;
    (*pool)->for_each(1, [&](int64_t, int) { ++sum; });
    CHECK(sum == 1);
  }
  CHECK(mask_size() == before);
}
