// The ticket, the join and the sleep of the fork-join pool.
#include "kernels/cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "kernels/cpu/isa.h"

namespace updraft {
namespace {

constexpr int kCountBits = 20;
constexpr uint64_t kCountMask = (uint64_t{1} << kCountBits) - 1;
// Between the operations of a decode step lie a few microseconds; spinning that long saves a futex
// wake, spinning longer would take the core from other processes.
constexpr auto kSpin = std::chrono::microseconds(40);

// Spins until `ready()` or the time is over.
template <typename Ready>
bool spin_until(Ready ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause_core();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return ready();
}

std::vector<int> affinity_of_caller() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (pthread_getaffinity_np(pthread_self(), sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

bool set_affinity(const std::vector<int>& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(core, &set);
  return pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0;
}

// Taken before main(), when no thread has been pinned yet.
const std::vector<int> kStartCores = affinity_of_caller();

}  // namespace

std::vector<int> process_cores() { return kStartCores; }

Result<std::unique_ptr<ThreadPool>> ThreadPool::open(const Config& config) {
  UPDRAFT_CHECK(config.thread_count >= 1, "at least the caller");
  for (const int core : config.cores) {
    if (std::find(kStartCores.begin(), kStartCores.end(), core) == kStartCores.end()) {
      return fail("core " + std::to_string(core) + " is not among the " +
                  std::to_string(kStartCores.size()) + " cores this process may use");
    }
  }
  return std::unique_ptr<ThreadPool>(new ThreadPool(config));
}

ThreadPool::ThreadPool(const Config& config) : thread_count_(config.thread_count), config_(config) {
  for (int thread = 1; thread < thread_count_; ++thread) {
    workers_.emplace_back([this, thread] { work(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);  // published by the release below
  wake_.fetch_add(1, std::memory_order_seq_cst);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  if (!caller_cores_.empty() && pinned_caller_ == std::this_thread::get_id()) {
    set_affinity(caller_cores_);
  }
}

void ThreadPool::pin_caller() {
  if (!config_.pin_caller || config_.cores.empty()) return;
  const std::thread::id self = std::this_thread::get_id();
  if (pinned_caller_ == self) return;
  caller_cores_ = affinity_of_caller();
  pinned_caller_ = self;
  set_affinity({config_.cores[0]});
}

void ThreadPool::run(int64_t item_count, Invoke invoke, void* context) {
  UPDRAFT_CHECK(item_count >= 0 && item_count < static_cast<int64_t>(kCountMask / 2),
                "items per job");
  if (thread_count_ == 1 || item_count <= 1) {
    for (int64_t item = 0; item < item_count; ++item) invoke(context, item, 0);
    return;
  }
  invoke_ = invoke;
  context_ = context;
  done_count_.store(0, std::memory_order_relaxed);
  round_ = (round_ + 1) & 0xFFFFFF;
  // Pairs with the fetch_add in claim_and_run(): whoever claims an item of this round sees the job
  // and the reset count.
  ticket_.store(static_cast<uint64_t>(round_) << (2 * kCountBits) |
                    static_cast<uint64_t>(item_count) << kCountBits,
                std::memory_order_release);
  // Pairs with sleeper_count_ in await_wake(): both sides write first and read the other's word
  // after, in one total order, so either the sleeper sees this bump or we see the sleeper.
  wake_.fetch_add(1, std::memory_order_seq_cst);
  if (sleeper_count_.load(std::memory_order_seq_cst) != 0) wake_.notify_all();

  while (claim_and_run(0)) {
  }
  const auto all_done = [&] {
    // Pairs with the release in claim_and_run(): the items' results are visible.
    return done_count_.load(std::memory_order_acquire) == static_cast<uint32_t>(item_count);
  };
  while (!spin_until(all_done))
    sched_yield();  // a worker was taken off its core in the middle of an item
}

bool ThreadPool::claim_and_run(int thread) {
  // A look first: an exhausted ticket is not counted up by every passer-by.
  uint64_t ticket = ticket_.load(std::memory_order_relaxed);
  if ((ticket & kCountMask) >= ((ticket >> kCountBits) & kCountMask)) return false;
  ticket = ticket_.fetch_add(1, std::memory_order_acquire);  // pairs with the store in run()
  const uint64_t item = ticket & kCountMask;
  if (item >= ((ticket >> kCountBits) & kCountMask)) return false;
  invoke_(context_, static_cast<int64_t>(item), thread);
  done_count_.fetch_add(1, std::memory_order_release);  // pairs with the acquire in run()
  return true;
}

void ThreadPool::await_wake(uint32_t seen) {
  const auto changed = [&] { return wake_.load(std::memory_order_acquire) != seen; };
  if (spin_until(changed)) return;
  sleeper_count_.fetch_add(1, std::memory_order_seq_cst);  // see run()
  while (wake_.load(std::memory_order_seq_cst) == seen) wake_.wait(seen);
  sleeper_count_.fetch_sub(1, std::memory_order_relaxed);
}

void ThreadPool::work(int thread) {
  if (!config_.cores.empty()) {
    set_affinity({config_.cores[static_cast<size_t>(thread) % config_.cores.size()]});
  }
  uint32_t seen = 0;
  while (true) {
    while (claim_and_run(thread)) {
    }
    if (stopping_.load(std::memory_order_acquire)) return;
    await_wake(seen);
    seen = wake_.load(std::memory_order_acquire);
  }
}

}  // namespace updraft
