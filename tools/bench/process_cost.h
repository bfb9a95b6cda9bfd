// What another process of this machine has used so far.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "common/base/result.h"

namespace updraft {

struct ProcessCost {
  int64_t cpu_ns = 0;          // user and system time of all its threads
  int64_t resident_bytes = 0;  // now
};
// Errors: no such process.
Result<ProcessCost> read_process_cost(pid_t pid);

}  // namespace updraft
