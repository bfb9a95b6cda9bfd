// Memory's level and what was refused for it, under the same names in every daemon.
#pragma once

#include "common/base/memory_watch.h"
#include "common/metrics/metrics.h"

namespace updraft {

// updraft_memory_used_ratio (0 to 1, of the fullest limit) and updraft_memory_level (0 normal, 1
// shed, 2 refuse), read at each scrape. `watch` outlives the scrapes.
void export_memory_metrics(Metrics& metrics, MemoryWatch& watch);

// updraft_memory_refused_total: what was refused because memory is short. reason: "shed", "refuse"
// (requests), "connection".
Counter& memory_refused(Metrics& metrics, const char* reason);

}  // namespace updraft
