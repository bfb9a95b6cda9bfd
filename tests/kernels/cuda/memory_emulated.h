// What kernels' tests run on beside the emulator: its memory, and the schedules in which each
// kernel must give the same bits. memory_gpu.h has the same names for a GPU.
#pragma once

#include <vector>

#include "common/base/result.h"
#include "kernels/simt/launch.h"
#include "kernels/simt/memory.h"

namespace updraft::cuda::testing {

using simt::Buffer;
using simt::Landing;
using simt::Schedule;
using simt::ScheduleScope;

inline std::vector<Schedule> schedules() {
  return {{1, Landing::kAtWait}, {2, Landing::kAtIssue}, {3, Landing::kAtWait}};
}

// Until what was launched is done: it is when launch() returns.
inline Result<void> finish() { return {}; }

}  // namespace updraft::cuda::testing
