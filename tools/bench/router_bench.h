// updraft bench router: what the router costs between a client and a node. Everything is measured
// from outside, on running processes; who starts them is tools/bench_router.cpp.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/net/pool_socket.h"
#include "tools/bench/http_load.h"

namespace updraft {

// The same requests to each endpoint, one endpoint after the other inside a round.
struct LatencyConfig {
  double rate_per_s = 1000;
  int rounds = 5;
  int64_t sample_ns = 2'000'000'000;  // of one endpoint in one round
  int connections = 64;
};
struct LatencyLine {
  std::string by;
  double p50_us = 0;  // medians of the rounds
  double p99_us = 0;
  uint64_t answered = 0;  // of all rounds
  uint64_t failed = 0;
};
struct NamedEndpoint {
  std::string by;
  HttpEndpoint endpoint;
};
Result<std::vector<LatencyLine>> measure_latency(const std::vector<NamedEndpoint>& endpoints,
                                                 const LatencyConfig& config);

// `count` streams of 20 tokens/s through the router, for `for_ns` once all have begun.
struct StreamsLine {
  int streams = 0;            // that began
  double tokens_per_s = 0;    // events that arrived, of all streams
  double core_share = 0;      // of one core, by the router
  double kib_per_stream = 0;  // growth of the router's memory
};
Result<StreamsLine> measure_streams(const HttpEndpoint& router, pid_t pid, int count,
                                    int64_t for_ns);

// `count` connections that say nothing, opened and closed twice.
struct IdleLine {
  int connections = 0;
  double before_mib = 0;  // the router's memory
  double first_mib = 0;   // after the first time
  double second_mib = 0;  // after the second
};
Result<IdleLine> measure_idle(const HttpEndpoint& router, pid_t pid, int count);

// Nodes that beat as fast as their connections take it.
struct PoolEndpoint {
  std::string endpoint;
  std::string router_public_key;
};
struct BeatsLine {
  int nodes = 0;
  double applied_per_s = 0;       // received, decrypted, verified, decoded and applied
  double applied_per_core_s = 0;  // by second of the router's processor time
};
Result<BeatsLine> measure_beats(const PoolEndpoint& pool, const HttpEndpoint& router, pid_t pid,
                                const std::vector<CurveKeys>& keys, int64_t for_ns);

// The router goes and comes back; all nodes dial it at once. `restart` ends it, starts it again at
// the same pool endpoint and returns its HTTP endpoint.
struct StormLine {
  int nodes = 0;
  double fresh_s = 0;  // from its return until every node is FRESH
};
Result<StormLine> measure_storm(const PoolEndpoint& pool, const HttpEndpoint& router,
                                const std::vector<CurveKeys>& keys,
                                const std::function<Result<HttpEndpoint>()>& restart);

// The sum over all labels of a metric in Prometheus' text whose labels contain `label` (all when
// empty); nothing when there is none.
std::optional<double> metric_sum(const std::string& text, const std::string& name,
                                 const std::string& label = {});

}  // namespace updraft
