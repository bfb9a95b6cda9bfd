// See process_cost.h. The clock is exact where /proc/PID/stat counts ticks: short turns of work
// between two ticks would not show there.
#include "tools/bench/process_cost.h"

#include <time.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "common/base/clock.h"

namespace updraft {

Result<ProcessCost> read_process_cost(pid_t pid) {
  clockid_t clock{};
  timespec used{};
  if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &used) != 0)
    return fail("process " + std::to_string(pid) + ": there is none");
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  std::ifstream("/proc/" + std::to_string(pid) + "/statm") >> total_pages >> resident_pages;
  ProcessCost cost;
  cost.cpu_ns = used.tv_sec * kNsPerSecond + used.tv_nsec;
  cost.resident_bytes = resident_pages * sysconf(_SC_PAGESIZE);
  return cost;
}

}  // namespace updraft
