// What the handoff is held to, and whether one run of `updraft bench ipc` met it. Each target is a
// line with its limit, the measured figure, and the floor under it where the same run measured one:
// a figure near its floor cannot be improved here.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tools/bench/ipc_bench.h"

namespace updraft {

struct IpcTarget {
  std::string name;
  double limit = 0;
  bool at_least = false;  // else at most
  double measured = 0;
  std::string unit;
  std::optional<double> floor;  // in the same unit; of a rate: none
  std::string floor_name;
  bool met() const { return at_least ? measured >= limit : measured <= limit; }
};

// The targets that the run has figures for: the channel's from `lines`, the daemon's from `daemon`
// (empty without one) and from the idle daemon's share of a core. Pure.
std::vector<IpcTarget> ipc_targets(const std::vector<IpcLine>& lines,
                                   const std::vector<DaemonLine>& daemon,
                                   std::optional<double> idle_daemon_share);

// The line of one test by one peer; null when it was not measured.
const IpcLine* find_ipc_line(const std::vector<IpcLine>& lines, IpcTest test, uint64_t bytes,
                             const std::string& peer, bool spins);

}  // namespace updraft
