// Open-loop clients: requests of all kinds at random times, some of which are given up again.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tools/sim/ledger.h"
#include "tools/sim/scenario.h"
#include "tools/sim/sim_node.h"
#include "tools/sim/sim_router.h"
#include "tools/sim/world.h"

namespace updraft::sim {

class Clients {
 public:
  Clients(World& world, Ledger& ledger, const Scenario& scenario,
          std::vector<std::unique_ptr<SimRouter>>& routers,
          std::vector<std::unique_ptr<SimNode>>& nodes);

  // Asks until then.
  void run_until(int64_t until_ns);
  // One plain request of this model to a router, for so many answers; its ticket.
  ClientId probe(int router, int model, int32_t choices = 1);

 private:
  void arrive(int64_t until_ns);
  Request make_request();
  std::string make_prompt(const Request& request);
  std::string text(size_t bytes);
  void submit(Request request);

  World& world_;
  Ledger& ledger_;
  const Scenario& scenario_;
  std::vector<std::unique_ptr<SimRouter>>& routers_;
  std::vector<std::unique_ptr<SimNode>>& nodes_;
  std::vector<int> edges_;                   // nodes that are gateways
  std::vector<std::string> system_prompts_;  // [tenant]
  std::vector<std::string> sessions_;        // [session] what was said so far
  uint64_t next_id_ = 1;
};

}  // namespace updraft::sim
