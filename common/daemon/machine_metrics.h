// The machine under a node, for Prometheus: processor load, memory, temperature, read from /proc
// and /sys at each scrape.
#pragma once

#include <optional>
#include <string>

#include "common/metrics/metrics.h"

namespace updraft {

// updraft_machine_cpu_ratio, updraft_machine_memory_available_ratio (0 to 1) and, where the machine
// tells one, updraft_machine_temperature_celsius (of its hottest zone).
void export_machine_metrics(Metrics& metrics);

// The hottest zone under a folder like /sys/class/thermal, in degrees Celsius; nothing when there
// is none that can be read.
std::optional<double> hottest_zone_celsius(const std::string& folder);

}  // namespace updraft
