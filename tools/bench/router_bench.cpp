// See router_bench.h.
#include "tools/bench/router_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <thread>

#include "common/base/clock.h"
#include "common/base/median.h"
#include "common/http/client.h"
#include "tools/bench/mock_nodes.h"
#include "tools/bench/process_cost.h"

namespace updraft {
namespace {

constexpr int64_t kSettleNs = 500 * kNsPerMs;
constexpr int64_t kPatienceNs = 120 * kNsPerSecond;
constexpr double kKiB = 1024.0;
constexpr double kMiB = 1024.0 * 1024.0;
constexpr int32_t kStreamTokens = 1'000'000;  // never reached: the client leaves first

std::string chat_body(const char* model, int tokens, bool stream) {
  return std::string("{\"model\":\"") + model + "\",\"max_tokens\":" + std::to_string(tokens) +
         ",\"stream\":" + (stream ? "true" : "false") +
         ",\"messages\":[{\"role\":\"user\",\"content\":\"Tap the blue button below the list.\"}]}";
}

double seconds(int64_t ns) { return static_cast<double>(ns) / 1e9; }

Result<std::string> scrape(const HttpEndpoint& router) {
  HttpUrl url;
  url.host = router.host;
  url.port = router.port;
  Result<HttpResponse> response = HttpClient(url).get("/metrics");
  if (!response) return response.error();
  return std::move(response->body);
}

// Until the router counts that many FRESH nodes; the time it took, an error after a minute.
Result<int64_t> wait_until_fresh(const HttpEndpoint& router, size_t nodes) {
  const int64_t begin_ns = monotonic_ns();
  double fresh = 0;
  while (monotonic_ns() - begin_ns < kPatienceNs) {
    const Result<std::string> text = scrape(router);
    if (!text) return text.error();
    fresh = metric_sum(*text, "updraft_router_nodes", "state=\"fresh\"").value_or(0);
    if (fresh >= static_cast<double>(nodes)) return monotonic_ns() - begin_ns;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return fail(std::to_string(static_cast<int>(fresh)) + " of " + std::to_string(nodes) +
              " nodes were FRESH within two minutes");
}

Result<double> beats_applied(const HttpEndpoint& router) {
  Result<std::string> text = scrape(router);
  if (!text) return text.error();
  return metric_sum(*text, "updraft_router_beats_total").value_or(0);
}

}  // namespace

std::optional<double> metric_sum(const std::string& text, const std::string& name,
                                 const std::string& label) {
  std::optional<double> sum;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(name, 0) != 0) continue;
    const char after = line.size() > name.size() ? line[name.size()] : '\0';
    const size_t space = line.rfind(' ');
    if ((after != '{' && after != ' ') || line.find(label) == std::string::npos) continue;
    sum = sum.value_or(0) + std::strtod(line.c_str() + space + 1, nullptr);
  }
  return sum;
}

Result<std::vector<LatencyLine>> measure_latency(const std::vector<NamedEndpoint>& endpoints,
                                                 const LatencyConfig& config) {
  std::vector<LatencyLine> lines(endpoints.size());
  std::vector<std::vector<double>> p50(endpoints.size());
  std::vector<std::vector<double>> p99(endpoints.size());
  for (int round = 0; round < config.rounds; ++round) {
    for (size_t i = 0; i < endpoints.size(); ++i) {
      HttpLoadPlan plan;
      plan.endpoint = endpoints[i].endpoint;
      plan.request = http_post_bytes(plan.endpoint, "/v1/chat/completions",
                                     chat_body(MockService::kInstantModel, 16, false));
      plan.rate_per_s = config.rate_per_s;
      plan.duration_ns = config.sample_ns;
      plan.connections = config.connections;
      plan.seed = static_cast<uint64_t>(round) + 1;
      const Result<HttpLoadResult> result = run_http_load(plan);
      if (!result) return fail(endpoints[i].by + ": " + result.message());
      lines[i].by = endpoints[i].by;
      lines[i].answered += result->answered;
      lines[i].failed += result->refused + result->broken;
      p50[i].push_back(result->p50_us);
      p99[i].push_back(result->p99_us);
    }
  }
  for (size_t i = 0; i < endpoints.size(); ++i) {
    lines[i].p50_us = median(p50[i]);
    lines[i].p99_us = median(p99[i]);
  }
  return lines;
}

Result<StreamsLine> measure_streams(const HttpEndpoint& router, pid_t pid, int count,
                                    int64_t for_ns) {
  const Result<ProcessCost> before = read_process_cost(pid);
  if (!before) return before.error();
  Result<std::unique_ptr<HttpStreams>> streams =
      HttpStreams::open(router,
                        http_post_bytes(router, "/v1/chat/completions",
                                        chat_body(MockService::kPacedModel, kStreamTokens, true)),
                        count);
  if (!streams) return streams.error();
  HttpStreams& open = **streams;
  const int64_t give_up_ns = monotonic_ns() + kPatienceNs;
  while (open.started() + open.ended() < count && monotonic_ns() < give_up_ns)
    open.pump(50 * kNsPerMs);
  const Result<ProcessCost> begin = read_process_cost(pid);
  if (!begin) return begin.error();
  const uint64_t events = open.events();
  const int64_t begin_ns = monotonic_ns();
  open.pump(for_ns);
  const double wall_s = seconds(monotonic_ns() - begin_ns);
  const Result<ProcessCost> end = read_process_cost(pid);
  if (!end) return end.error();
  StreamsLine line;
  line.streams = open.started() - open.ended();
  line.tokens_per_s = static_cast<double>(open.events() - events) / wall_s;
  line.core_share = seconds(end->cpu_ns - begin->cpu_ns) / wall_s;
  line.kib_per_stream =
      static_cast<double>(end->resident_bytes - before->resident_bytes) / kKiB / count;
  return line;
}

Result<IdleLine> measure_idle(const HttpEndpoint& router, pid_t pid, int count) {
  IdleLine line;
  line.connections = count;
  double* const after[] = {&line.first_mib, &line.second_mib};
  Result<ProcessCost> cost = read_process_cost(pid);
  if (!cost) return cost.error();
  line.before_mib = static_cast<double>(cost->resident_bytes) / kMiB;
  for (double* mib : after) {
    Result<std::unique_ptr<HttpStreams>> idle = HttpStreams::open(router, "", count);
    if (!idle) return idle.error();
    (*idle)->pump(kSettleNs);
    if ((*idle)->ended() > 0)
      return fail(std::to_string((*idle)->ended()) + " of " + std::to_string(count) +
                  " idle connections were closed");
    idle->reset();
    std::this_thread::sleep_for(std::chrono::nanoseconds(kSettleNs));
    cost = read_process_cost(pid);
    if (!cost) return cost.error();
    *mib = static_cast<double>(cost->resident_bytes) / kMiB;
  }
  return line;
}

Result<BeatsLine> measure_beats(const PoolEndpoint& pool, const HttpEndpoint& router, pid_t pid,
                                const std::vector<CurveKeys>& keys, int64_t for_ns) {
  const Result<BeatSwarm> swarm = BeatSwarm::start(pool.endpoint, pool.router_public_key, keys);
  if (!swarm) return swarm.error();
  if (const Result<int64_t> fresh = wait_until_fresh(router, keys.size()); !fresh)
    return fresh.error();
  swarm->flood();
  std::this_thread::sleep_for(std::chrono::nanoseconds(kSettleNs));
  const Result<ProcessCost> begin = read_process_cost(pid);
  const Result<double> before = beats_applied(router);
  const int64_t begin_ns = monotonic_ns();
  std::this_thread::sleep_for(std::chrono::nanoseconds(for_ns));
  const Result<double> after = beats_applied(router);
  const double wall_s = seconds(monotonic_ns() - begin_ns);
  const Result<ProcessCost> end = read_process_cost(pid);
  if (!begin || !end) return fail("beats: the router has gone");
  if (!before) return before.error();
  if (!after) return after.error();
  BeatsLine line;
  line.nodes = static_cast<int>(keys.size());
  line.applied_per_s = (*after - *before) / wall_s;
  const double core_s = seconds(end->cpu_ns - begin->cpu_ns);
  line.applied_per_core_s = core_s > 0 ? (*after - *before) / core_s : 0;
  return line;
}

Result<StormLine> measure_storm(const PoolEndpoint& pool, const HttpEndpoint& router,
                                const std::vector<CurveKeys>& keys,
                                const std::function<Result<HttpEndpoint>()>& restart) {
  const Result<BeatSwarm> swarm = BeatSwarm::start(pool.endpoint, pool.router_public_key, keys);
  if (!swarm) return swarm.error();
  if (const Result<int64_t> fresh = wait_until_fresh(router, keys.size()); !fresh)
    return fresh.error();
  const Result<HttpEndpoint> again = restart();
  if (!again) return again.error();
  const Result<int64_t> fresh = wait_until_fresh(*again, keys.size());
  if (!fresh) return fresh.error();
  StormLine line;
  line.nodes = static_cast<int>(keys.size());
  line.fresh_s = seconds(*fresh);
  return line;
}

}  // namespace updraft
