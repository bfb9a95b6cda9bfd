// What a described fleet gives under rising load: goodput, waiting times, the cloud's share; as a
// table, a CSV file and a picture.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "tools/sim/fleet.h"

namespace updraft::sim {

struct CapacityPoint {
  double requests_per_s = 0.0;  // asked
  double finished_per_s = 0.0;
  double goodput_tokens_per_s = 0.0;  // of answers that came whole and in time
  double ttft_p50_s = 0.0;
  double ttft_p99_s = 0.0;
  double total_p50_s = 0.0;
  double total_p99_s = 0.0;
  double refused_share = 0.0;  // of what was asked: turned away or too late
  double cloud_share = 0.0;    // of what finished
  double edge_busy_share = 0.0;
  double cloud_busy_share = 0.0;
};

// One load, so many simulated seconds, of which the first fifth only fills the pool. An error names
// the invariant that broke.
Result<CapacityPoint> measure_capacity(const Fleet& fleet, double requests_per_s, double seconds,
                                       uint64_t seed, const std::function<void(int64_t)>& on_time);

// A tenth of what the slots could give at best, up to twice that.
std::vector<double> default_loads(const Fleet& fleet);

std::string capacity_header();
std::string capacity_row(const CapacityPoint& point);
std::string capacity_csv(const std::vector<CapacityPoint>& points);
// Three curves over the load, a page wide.
std::string capacity_svg(const std::vector<CapacityPoint>& points);

}  // namespace updraft::sim
