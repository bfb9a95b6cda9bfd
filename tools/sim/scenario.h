// What is simulated: who is there, what is asked, what goes wrong. Drawn from a seed (for proofs)
// or described by a fleet file (for capacity, fleet.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cloud/router/core.h"
#include "tools/sim/content.h"
#include "tools/sim/network.h"
#include "tools/sim/sim_node.h"

namespace updraft::sim {

// What clients ask. Shares are of all requests, 0..1.
struct Workload {
  double requests_per_s = 1.0;  // open loop: nobody waits for an answer before asking again
  double edge_share = 0.0;      // come in at a gateway's daemon, not at a router
  double cancel_share = 0.0;
  int64_t cancel_after_ms_max = 5000;
  double deadline_share = 0.0;
  int64_t deadline_ms_min = 200;
  int64_t deadline_ms_max = 20'000;
  double session_share = 0.0;
  int32_t session_count = 8;
  int32_t tenant_count = 3;
  double tier_share = 0.0;  // name a tier
  double local_only_share = 0.0;
  double priority_share = 0.0;  // other than default
  double seed_share = 0.7;      // want the same answer each time
  double choices_share = 0.0;   // want 2 or 3 answers
  double ids_share = 0.0;       // prompts given as token ids
  double ignore_end_share = 0.0;
  double limit_share = 0.8;  // give max_tokens
  int32_t max_tokens_max = 64;
  double unknown_model_share = 0.0;
  double long_share = 0.1;  // of prompts
  int32_t short_bytes_mean = 200;
  int32_t long_bytes_max = 8000;
  double huge_share = 0.0;  // prompts that do not fit one frame
};

// Faults per second of the whole world, by kind; 0: none.
struct FaultRates {
  double clog = 0.0;
  double cut = 0.0;
  double one_way_cut = 0.0;
  double reset = 0.0;
  double node_crash = 0.0;
  double node_pause = 0.0;
  double router_crash = 0.0;
  double router_pause = 0.0;
  double operator_drain = 0.0;
  double node_drain = 0.0;  // SIGTERM, then a new life
  double slowness = 0.0;
  double memory = 0.0;         // a node's is short, or almost full
  int64_t down_ms_max = 5000;  // of crashes, pauses, cuts
  int32_t drain_grace_ms = 3000;
  double clock_step_share = 0.0;  // of new lives, with the time of day set back
};

struct Scenario {
  std::string name;
  std::vector<SimModel> models;
  std::vector<NodeSpec> nodes;
  int router_count = 1;
  RouterCoreConfig router;
  NetworkConfig network;
  Workload workload;
  FaultRates faults;
  bool calm = false;  // no fault that could cost a request
  int64_t drift_ppm_max = 0;
  int64_t busy_ns = 10'000'000'000;       // requests and faults
  int64_t heal_ns_max = 300'000'000'000;  // then everything has to end
  int64_t start_spread_ns = 500'000'000;  // within which the nodes start
};

// Most are small; some have tens of nodes or several routers.
Scenario scenario_of_seed(uint64_t seed);
// A pool of so many nodes, one in a thousand of them in the cloud, for a few seconds.
Scenario scenario_of_size(int32_t node_count);

}  // namespace updraft::sim
