// See the header.
#include "common/base/memory_level.h"

#include <algorithm>

namespace updraft {

const char* memory_level_name(MemoryLevel level) {
  switch (level) {
    case MemoryLevel::kNormal:
      return "normal";
    case MemoryLevel::kShed:
      return "shed";
    case MemoryLevel::kRefuse:
      return "refuse";
  }
  return "unknown";
}

double MemoryUse::ratio() const {
  if (limit_bytes == 0) return 0.0;
  return std::min(1.0, static_cast<double>(used_bytes) / static_cast<double>(limit_bytes));
}

bool MemoryScale::reached(MemoryUse use, int32_t percent) const {
  return percent < 100 && use.ratio() * 100.0 >= percent;
}

bool MemoryScale::left(MemoryUse use, int32_t percent) const {
  return use.ratio() * 100.0 < percent - kLeavePercent;
}

MemoryLevel MemoryScale::update(MemoryUse use) {
  if (use.limit_bytes == 0) return level_;
  if (level_ == MemoryLevel::kRefuse && left(use, thresholds_.refuse_percent))
    level_ = MemoryLevel::kShed;
  if (level_ == MemoryLevel::kShed && left(use, thresholds_.shed_percent))
    level_ = MemoryLevel::kNormal;
  if (level_ == MemoryLevel::kNormal && reached(use, thresholds_.shed_percent))
    level_ = MemoryLevel::kShed;
  if (reached(use, thresholds_.refuse_percent)) level_ = MemoryLevel::kRefuse;
  return level_;
}

}  // namespace updraft
