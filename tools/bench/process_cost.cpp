// See proc(5): /proc/PID/stat and statm.
#include "tools/bench/process_cost.h"

#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>

#include "common/base/clock.h"

namespace updraft {

Result<ProcessCost> read_process_cost(pid_t pid) {
  const std::string folder = "/proc/" + std::to_string(pid);
  std::ifstream stat(folder + "/stat");
  std::string line;
  // The second field is the program's name in parentheses and may contain anything.
  const bool read = static_cast<bool>(std::getline(stat, line));
  const size_t name_end = line.rfind(')');
  if (!read || name_end == std::string::npos) return fail(folder + ": no such process");
  std::istringstream fields(line.substr(name_end + 1));
  std::string skipped;
  for (int field = 3; field < 14; ++field) fields >> skipped;
  int64_t user_ticks = 0;
  int64_t system_ticks = 0;
  fields >> user_ticks >> system_ticks;
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  std::ifstream(folder + "/statm") >> total_pages >> resident_pages;
  ProcessCost cost;
  cost.cpu_ns = (user_ticks + system_ticks) * (kNsPerSecond / sysconf(_SC_CLK_TCK));
  cost.resident_bytes = resident_pages * sysconf(_SC_PAGESIZE);
  return cost;
}

}  // namespace updraft
