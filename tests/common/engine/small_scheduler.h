// What the tests of the scheduler begin with.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

#include "common/engine/scheduler.h"

namespace updraft::testing {

inline SchedulerConfig small_config() {
  SchedulerConfig config;
  config.slots = 4;
  config.page_count = 16;
  config.page_tokens = 4;
  config.step_tokens_max = 8;
  config.logit_rows_max = 8;
  return config;
}

// [first, first + count).
inline std::vector<int32_t> numbers(int32_t first, int32_t count) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), first);
  return out;
}

}  // namespace updraft::testing
