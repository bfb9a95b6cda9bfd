// How full memory is, as levels that load follows: below the first all is well, from the first on a
// daemon sheds what is not urgent, from the second on it takes nothing new. What runs goes on at
// every level. Pure: readings in, a level out; memory_watch.h reads and shares it.
//
// The one idea: a level is left only some points below where it was entered, because refusing work
// frees memory at once, and taking it again fills it at once.
#pragma once

#include <cstdint>

namespace updraft {

enum class MemoryLevel : uint8_t { kNormal, kShed, kRefuse };
const char* memory_level_name(MemoryLevel level);  // "normal", "shed", "refuse"

// What is in use and cannot be given back, of what there may be.
struct MemoryUse {
  uint64_t used_bytes = 0;
  uint64_t limit_bytes = 0;  // 0: not known
  uint64_t left_bytes() const { return used_bytes < limit_bytes ? limit_bytes - used_bytes : 0; }
  double ratio() const;  // 0..1; not known: 0
};

// Percent of the limit at which a level is entered. 100: never.
struct MemoryThresholds {
  int32_t shed_percent = 95;    // 50..100
  int32_t refuse_percent = 98;  // shed_percent..100
};

class MemoryScale {
 public:
  static constexpr int32_t kLeavePercent = 2;  // points below its threshold at which one is left

  explicit MemoryScale(MemoryThresholds thresholds) : thresholds_(thresholds) {}

  // The level from now on. A use that is not known changes nothing.
  MemoryLevel update(MemoryUse use);
  MemoryLevel level() const { return level_; }

 private:
  bool reached(MemoryUse use, int32_t percent) const;
  bool left(MemoryUse use, int32_t percent) const;

  const MemoryThresholds thresholds_;
  MemoryLevel level_ = MemoryLevel::kNormal;
};

}  // namespace updraft
