// One run: a scenario lives for a while, heals, and has to come to rest; then everything that must
// hold is looked at once more.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tools/sim/ledger.h"
#include "tools/sim/scenario.h"

namespace updraft::sim {

struct RunOptions {
  bool print_trace = false;
  // Measures by this machine's clock how long the routers take over each request that comes in.
  bool measure_placements = false;
  // Called about once per simulated 100 ms with the simulated time; empty: nobody asks.
  std::function<void(int64_t now_ns)> on_time;
};

struct Report {
  uint64_t seed = 0;
  std::string scenario;
  uint64_t hash = 0;
  uint64_t event_count = 0;
  int64_t simulated_ns = 0;
  uint64_t requests = 0;
  uint64_t finished = 0;
  std::optional<Violation> violation;
  std::vector<std::string> last_events;  // of a run with a violation
  std::vector<Outcome> outcomes;
  std::vector<double> placements_us;  // if measured
  double cloud_busy_share = 0.0;      // of the cloud nodes' time
  double edge_busy_share = 0.0;
};

// Runs it to its end or to the first violation.
Report simulate(const Scenario& scenario, uint64_t seed, const RunOptions& options);
inline Report simulate_seed(uint64_t seed, const RunOptions& options) {
  return simulate(scenario_of_seed(seed), seed, options);
}

// A check inside the programs under test aborts the process: from now on the seed, the time and the
// last events of the running simulation are written to standard error first.
void report_aborts();

}  // namespace updraft::sim
