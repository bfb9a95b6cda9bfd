// The router's numbers for Prometheus: differences of the core's counts, and gauges of what is
// there now. Labels come from fixed tables, never from requests.
//
// Owner: the loop's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cloud/router/core.h"
#include "common/metrics/metrics.h"

namespace updraft {

class RouterMetrics {
 public:
  explicit RouterMetrics(Metrics& metrics);
  RouterMetrics(const RouterMetrics&) = delete;
  RouterMetrics& operator=(const RouterMetrics&) = delete;
  void update(const RouterCore& core, uint64_t keys_refused);

 private:
  // A counter that follows a count. One of a table appears with its first increment, so that rows
  // of zeros stay away.
  struct Follower {
    std::function<Counter&()> make;
    Counter* counter = nullptr;
    uint64_t shown = 0;
    void follow(uint64_t count);
  };
  void add_tables();
  void follow(const QueueWaits& waits);

  Metrics& metrics_;
  std::vector<Follower> ended_;       // [tier * kOutcomes + outcome]
  std::vector<Follower> dispatched_;  // [tier * kReasonCount + reason]
  std::vector<Follower> refused_;     // [outcome]
  std::vector<Gauge*> nodes_;         // [state * kTiers + tier]
  std::vector<Follower> plain_;       // in the order of update()
  Histogram& queue_wait_;
  QueueWaits waits_shown_;
  Gauge& queue_depth_;
  Gauge& running_;
  Gauge& breakers_open_;
  Gauge& evictions_frozen_;
};

// "ok" for 0, else the error code's name for 1 + ErrorCode.
const char* outcome_label(size_t outcome);

}  // namespace updraft
