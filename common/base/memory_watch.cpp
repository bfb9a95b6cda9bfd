// See the header.
#include "common/base/memory_watch.h"

#include <utility>

#include "common/base/clock.h"
#include "common/base/memory_reading.h"

namespace updraft {

MemoryWatch::MemoryWatch(MemoryThresholds thresholds, std::string root,
                         std::function<void(const MemoryChange&)> on_change)
    : root_(std::move(root)), on_change_(std::move(on_change)), scale_(thresholds) {}

// The atomics order nothing else: a level is a hint of a moment, and what it is made of is under
// the mutexes.
MemoryLevel MemoryWatch::level() {
  const int64_t now_ns = monotonic_ns();
  if (now_ns < read_due_ns_.load(std::memory_order_relaxed))
    return level_.load(std::memory_order_relaxed);
  const std::unique_lock lock(reading_, std::try_to_lock);
  if (!lock.owns_lock()) return level_.load(std::memory_order_relaxed);
  if (now_ns < read_due_ns_.load(std::memory_order_relaxed))
    return level_.load(std::memory_order_relaxed);
  const MemoryUse use = read_fullest_memory(root_);
  {
    const std::lock_guard use_lock(use_mutex_);
    use_ = use;
  }
  const MemoryLevel before = scale_.level();
  const MemoryLevel level = scale_.update(use);
  level_.store(level, std::memory_order_relaxed);
  read_due_ns_.store(now_ns + kReadEveryMs * kNsPerMs, std::memory_order_relaxed);
  if (level != before && on_change_) on_change_({before, level, use});
  return level;
}

MemoryUse MemoryWatch::use() const {
  const std::lock_guard lock(use_mutex_);
  return use_;
}

}  // namespace updraft
