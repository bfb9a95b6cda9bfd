// See the header.
#include "common/metrics/memory_metrics.h"

namespace updraft {

void export_memory_metrics(Metrics& metrics, MemoryWatch& watch) {
  Gauge& used = metrics.gauge(
      "updraft_memory_used_ratio",
      "Used share of memory, 0 to 1: of the machine's or a control group's, whichever is fuller.");
  Gauge& level = metrics.gauge(
      "updraft_memory_level",
      "0: all is well, 1: only urgent requests are taken, 2: no new request is taken.");
  metrics.on_scrape([&used, &level, &watch] {
    level.set(static_cast<double>(watch.level()));
    used.set(watch.use().ratio());
  });
  // There from the start, so that a rate over them has a beginning.
  for (const char* reason : {"shed", "refuse", "connection"}) memory_refused(metrics, reason);
}

Counter& memory_refused(Metrics& metrics, const char* reason) {
  return metrics.counter("updraft_memory_refused_total",
                         "Requests and connections refused because memory is short.",
                         {{"reason", reason}});
}

}  // namespace updraft
