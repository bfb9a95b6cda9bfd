// The line that a daemon writes when memory becomes short, and when it no longer is.
#pragma once

#include "common/base/memory_watch.h"

namespace updraft {

// Any thread. `memory level from=normal to=shed used_percent=95.3 limit_mib=7851`
void log_memory_change(const MemoryChange& change);

}  // namespace updraft
