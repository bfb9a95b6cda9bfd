// The CPU backend's threads: one fork-join at a time over numbered items. The caller's thread works
// too; a worker spins for some microseconds after its last item and then sleeps, so an idle engine
// burns nothing.
//
// The one idea: items are claimed one by one from a ticket, and the join waits for items, not for
// workers. A worker that the OS has not scheduled yet delays nobody; it finds the ticket exhausted
// when it comes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "common/base/result.h"

namespace updraft {

class ThreadPool {
 public:
  struct Config {
    int thread_count = 1;     // the caller included; 1 runs everything inline
    std::vector<int> cores;   // worker i runs on cores[i % size]; empty: wherever the OS likes
    bool pin_caller = false;  // pin_caller() puts the calling thread on cores[0]
  };
  // Errors: a core that this process may not use.
  static Result<std::unique_ptr<ThreadPool>> open(const Config& config);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int thread_count() const { return thread_count_; }

  // Calls job(item, thread) for every item in [0, item_count), in any order, on any thread of the
  // pool; `thread` is in [0, thread_count). Returns when all have returned. Only one thread calls
  // for_each, and never from inside a job.
  template <typename Job>
  void for_each(int64_t item_count, Job&& job) {
    using Plain = std::remove_reference_t<Job>;
    run(
        item_count,
        [](void* context, int64_t item, int thread) {
          (*static_cast<Plain*>(context))(item, thread);
        },
        const_cast<void*>(static_cast<const void*>(&job)));
  }

  // Moves the calling thread to its core when the configuration says so; undone by the destructor
  // if the same thread runs it. Cheap when already done.
  void pin_caller();

 private:
  using Invoke = void (*)(void* context, int64_t item, int thread);
  explicit ThreadPool(const Config& config);
  void run(int64_t item_count, Invoke invoke, void* context);
  void work(int thread);
  bool claim_and_run(int thread);
  void await_wake(uint32_t seen);

  int thread_count_;
  Config config_;
  // The job: written by the caller before the ticket that announces it, and stable until its last
  // item is done.
  Invoke invoke_ = nullptr;
  void* context_ = nullptr;
  // Round (24 bits) | item count (20 bits) | next item (20 bits): one atomic, so that a claim knows
  // its round's limits.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> done_count_{0};
  alignas(64) std::atomic<uint32_t> wake_{0};  // bumped per job; sleepers wait on it
  std::atomic<uint32_t> sleeper_count_{0};
  std::atomic<bool> stopping_{false};
  uint32_t round_ = 0;  // owner: the caller
  std::vector<std::thread> workers_;
  std::vector<int> caller_cores_;  // the affinity to restore; empty: not pinned
  std::thread::id pinned_caller_;
};

// Cores in the affinity mask that this process started with, ascending.
std::vector<int> process_cores();

}  // namespace updraft
