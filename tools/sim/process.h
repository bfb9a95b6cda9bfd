// What routers and nodes have in common as processes: a monotonic clock of their own, which starts
// anywhere and runs a little fast or slow, and standing still (SIGSTOP, a suspended machine).
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "tools/sim/world.h"

namespace updraft::sim {

class ProcessClock {
 public:
  ProcessClock() = default;
  // drift_ppm: millionths that it runs too fast.
  ProcessClock(int64_t offset_ns, int64_t drift_ppm)
      : offset_ns_(offset_ns), drift_ppm_(drift_ppm) {}
  int64_t local_ns(int64_t world_ns) const {
    return offset_ns_ + world_ns + world_ns / 1'000'000 * drift_ppm_;
  }
  // Not before the local time is reached.
  int64_t world_ns(int64_t local_ns) const {
    const int64_t passed_ns = local_ns - offset_ns_;
    return passed_ns - passed_ns / 1'000'000 * drift_ppm_ + 1000;
  }

 private:
  int64_t offset_ns_ = 0;
  int64_t drift_ppm_ = 0;
};

// Calls that come while a process stands still; the kernel keeps them for it.
class Deferred {
 public:
  bool paused() const { return paused_; }
  void run(std::function<void()> call) {
    if (paused_) {
      calls_.push_back(std::move(call));
    } else {
      call();
    }
  }
  void pause() { paused_ = true; }
  void resume() {
    paused_ = false;
    for (const std::function<void()>& call : std::exchange(calls_, {})) call();
  }
  void clear() {
    paused_ = false;
    calls_.clear();
  }

 private:
  bool paused_ = false;
  std::vector<std::function<void()>> calls_;
};

}  // namespace updraft::sim
