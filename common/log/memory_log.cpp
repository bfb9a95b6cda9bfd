// See the header.
#include "common/log/memory_log.h"

#include <cmath>

#include "common/log/log.h"

namespace updraft {

void log_memory_change(const MemoryChange& change) {
  const bool worse = change.to > change.from;
  log(worse ? LogLevel::kWarn : LogLevel::kInfo, "memory level",
      {{"from", memory_level_name(change.from)},
       {"to", memory_level_name(change.to)},
       {"used_percent", std::round(change.use.ratio() * 1000.0) / 10.0},
       {"limit_mib", static_cast<int64_t>(change.use.limit_bytes >> 20)}});
}

}  // namespace updraft
