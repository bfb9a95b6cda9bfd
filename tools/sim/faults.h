// What goes wrong: crashes, pauses, partitions, drains, at random times, each undone after a while.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tools/sim/scenario.h"
#include "tools/sim/sim_node.h"
#include "tools/sim/sim_router.h"
#include "tools/sim/world.h"

namespace updraft::sim {

class Faults {
 public:
  Faults(World& world, Network& network, const Scenario& scenario,
         std::vector<std::unique_ptr<SimRouter>>& routers,
         std::vector<std::unique_ptr<SimNode>>& nodes);

  // Starts all processes, then breaks things until then.
  void start_all();
  void run_until(int64_t until_ns);
  // Undoes everything: what is down starts, what stands still goes on, what drains begins a new
  // life.
  void heal();

 private:
  void next(int64_t until_ns);
  void strike();
  ProcessClock clock();
  void start_node(size_t node);
  void start_router(size_t router);
  void start_after_end(size_t node, int64_t down_ns);
  void keep_up();
  int64_t down_ns();

  World& world_;
  Network& network_;
  const Scenario& scenario_;
  std::vector<std::unique_ptr<SimRouter>>& routers_;
  std::vector<std::unique_ptr<SimNode>>& nodes_;
  double rate_ = 0.0;  // faults per second
  bool healed_ = false;
  std::set<size_t> drained_;  // nodes that an operator drained and that have not begun anew
};

}  // namespace updraft::sim
