// A fleet as its operator describes it, in a TOML file: kinds of nodes with their measured rates,
// how many of each, and what will be asked of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "tools/sim/scenario.h"

namespace updraft::sim {

struct NodeKind {
  std::string name;
  int32_t count = 1;
  Tier tier = Tier::kCloud;
  EngineSpec engine;
  int32_t beat_interval_ms = 100;
};

struct Fleet {
  std::vector<NodeKind> kinds;
  int32_t router_count = 1;
  int32_t queue_max = 1024;
  int32_t queue_timeout_ms = 30'000;
  int32_t delay_ms = 5;  // one way, between nodes and routers
  // What is asked.
  int32_t prompt_bytes = 1200;  // mean of a short prompt
  int32_t long_percent = 10;
  int32_t long_bytes_max = 20'000;
  int32_t answer_tokens = 150;  // mean
  int32_t edge_percent = 50;    // of the requests come in at gateways
  int32_t session_percent = 50;
  int32_t session_count = 100;
  int32_t deadline_ms = 0;  // 0: none

  // Answers per second that all slots together can give at best.
  double answers_per_s() const;
  Scenario scenario(double requests_per_s, int64_t busy_ns) const;
};

// Errors name file, line and key.
Result<Fleet> load_fleet(const std::string& path);

}  // namespace updraft::sim
