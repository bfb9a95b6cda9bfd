// The level of memory (memory_level.h) for a whole daemon: any thread asks, and whoever asks when
// the last reading is old reads again, a few small files of the kernel. So it needs no thread of
// its own, and whoever has work to refuse knows the level of now.
//
// Threads: any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "common/base/memory_level.h"

namespace updraft {

struct MemoryChange {
  MemoryLevel from = MemoryLevel::kNormal;
  MemoryLevel to = MemoryLevel::kNormal;
  MemoryUse use;
};

class MemoryWatch {
 public:
  static constexpr int64_t kReadEveryMs = 200;

  // root: stands before /proc and /sys, for tests. on_change: called for each change of level, by
  // the thread that read it; must not ask this watch.
  explicit MemoryWatch(MemoryThresholds thresholds, std::string root = "",
                       std::function<void(const MemoryChange&)> on_change = {});

  // At most kReadEveryMs old, unless nobody asked for longer and another thread reads just now.
  MemoryLevel level();
  // As last read.
  MemoryUse use() const;

 private:
  const std::string root_;
  const std::function<void(const MemoryChange&)> on_change_;
  std::atomic<int64_t> read_due_ns_{0};
  std::atomic<MemoryLevel> level_{MemoryLevel::kNormal};
  std::mutex reading_;  // held by the one thread that reads; guards scale_
  MemoryScale scale_;
  mutable std::mutex use_mutex_;  // guards use_
  MemoryUse use_;
};

}  // namespace updraft
