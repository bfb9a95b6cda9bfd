#include "tools/bench/ipc_bench.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <map>
#include <tuple>

#include "common/base/clock.h"
#include "edge/client/local_client.h"

namespace updraft {
namespace {

constexpr int64_t kSparsePauseNs = kNsPerMs;
constexpr size_t kSamplesMax = 200'000;

Result<void> pin_to(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0)
    return fail("core " + std::to_string(core) + ": " + std::strerror(errno));
  return {};
}

// The server's process for as long as the object lives.
class Server {
 public:
  Server(IpcPair& pair, IpcTest test, int core) : pid_(fork()) {
    UPDRAFT_CHECK(pid_ >= 0, "fork");
    if (pid_ > 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!pin_to(core).ok()) _exit(1);
    pair.serve(test);
    _exit(0);
  }
  ~Server() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

 private:
  pid_t pid_;
};

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double quantile_us(std::vector<int64_t>& sorted_ns, double share) {
  const auto index = static_cast<size_t>(share * static_cast<double>(sorted_ns.size() - 1));
  return static_cast<double>(sorted_ns[index]) / kNsPerUs;
}

bool one_way(IpcTest test) { return test == IpcTest::kFill || test == IpcTest::kRate; }

struct Sample {
  double p50_us = 0;
  double p99_us = 0;
  double per_s = 0;
};

Sample measure_round_trips(IpcPair& pair, IpcTest test, uint64_t bytes, int64_t budget_ns) {
  for (int i = 0; i < 3; ++i) pair.round_trip(test, bytes);
  std::vector<int64_t> ns;
  ns.reserve(kSamplesMax);
  const bool sparse = test == IpcTest::kSparse;
  const int64_t begin_ns = monotonic_ns();
  const int64_t end_ns = begin_ns + budget_ns * (sparse ? 4 : 1);
  int64_t before_ns = begin_ns;
  while ((before_ns < end_ns || ns.size() < 5) && ns.size() < kSamplesMax) {
    if (sparse) {
      usleep(static_cast<useconds_t>(kSparsePauseNs / kNsPerUs));
      before_ns = monotonic_ns();
    }
    pair.round_trip(test, bytes);
    const int64_t after_ns = monotonic_ns();
    ns.push_back(after_ns - before_ns);
    before_ns = after_ns;
  }
  const double total_s = static_cast<double>(before_ns - begin_ns) / kNsPerSecond;
  std::sort(ns.begin(), ns.end());
  return {quantile_us(ns, 0.5), quantile_us(ns, 0.99),
          sparse ? 0 : static_cast<double>(ns.size()) / total_s};
}

Sample measure_one_way(IpcPair& pair, IpcTest test, uint64_t bytes, int64_t budget_ns) {
  pair.send_many(test, bytes, 4);  // the server is there and has touched its mapping
  uint64_t count = 8;
  for (;;) {
    const int64_t begin_ns = monotonic_ns();
    pair.send_many(test, bytes, count);
    const int64_t ns = monotonic_ns() - begin_ns;
    if (ns >= budget_ns / 2) {
      const double each_us = static_cast<double>(ns) / static_cast<double>(count) / kNsPerUs;
      return {each_us, 0, 1e6 / each_us};
    }
    count *= 2;
  }
}

}  // namespace

Result<std::vector<IpcLine>> run_ipc_bench(const IpcBenchConfig& config) {
  cpu_set_t before;
  sched_getaffinity(0, sizeof before, &before);
  const std::vector<IpcPeer> peers = ipc_peers();
  struct Key {
    IpcTest test;
    uint64_t bytes;
    size_t peer;
    bool operator<(const Key& o) const {
      return std::tie(test, bytes, peer) < std::tie(o.test, o.bytes, o.peer);
    }
  };
  std::map<Key, std::vector<Sample>> samples;
  if (auto pinned = pin_to(config.client_core); !pinned) return pinned.error();
  const auto measure = [&](IpcTest test, uint64_t bytes, size_t peer) -> Result<void> {
    Result<std::unique_ptr<IpcPair>> pair = peers[peer].make(bytes);
    if (!pair) return pair.error(peers[peer].name);
    const Server server(**pair, test, config.server_core);
    (*pair)->start_client();
    samples[{test, bytes, peer}].push_back(
        one_way(test) ? measure_one_way(**pair, test, bytes, config.sample_ns)
                      : measure_round_trips(**pair, test, bytes, config.sample_ns));
    return {};
  };
  for (int round = 0; round < config.rounds; ++round) {
    for (const IpcTest test :
         {IpcTest::kHand, IpcTest::kSparse, IpcTest::kEcho, IpcTest::kFill, IpcTest::kRate}) {
      const bool small_only = test == IpcTest::kSparse || test == IpcTest::kRate;
      for (const uint64_t bytes : small_only ? std::vector<uint64_t>{64} : config.bytes) {
        for (size_t peer = 0; peer < peers.size(); ++peer) {
          const auto& tests = peers[peer].tests;
          if (std::find(tests.begin(), tests.end(), test) == tests.end()) continue;
          if (auto done = measure(test, bytes, peer); !done) return done.error();
        }
      }
    }
  }
  sched_setaffinity(0, sizeof before, &before);
  std::vector<IpcLine> lines;
  for (const auto& [key, runs] : samples) {
    IpcLine line;
    line.test = key.test;
    line.peer = peers[key.peer].name;
    line.spins = peers[key.peer].spins;
    line.bytes = key.bytes;
    std::vector<double> p50, p99, rate;
    for (const Sample& run : runs) {
      p50.push_back(run.p50_us);
      p99.push_back(run.p99_us);
      rate.push_back(run.per_s);
    }
    line.p50_us = median(p50);
    line.p99_us = median(p99);
    line.per_s = median(rate);
    if (key.test == IpcTest::kEcho || key.test == IpcTest::kFill) {
      const double ways = key.test == IpcTest::kEcho ? 2 : 1;
      line.gb_per_s = ways * static_cast<double>(key.bytes) / line.p50_us / 1e3;
    }
    lines.push_back(line);
  }
  return lines;
}

Result<DaemonLine> run_daemon_bench(const std::string& socket_path, bool spins, int requests) {
  LocalClientOptions options;
  options.socket_path = socket_path;
  options.client_name = "updraft bench ipc";
  Result<std::unique_ptr<LocalClient>> client = LocalClient::connect(options);
  if (!client) return client.error();
  if ((*client)->welcome().models.empty()) return fail("the edge daemon serves no model");
  std::vector<int64_t> first_ns, handoff_ns;
  for (int i = 0; i < requests; ++i) {
    Request request;
    request.model = (*client)->welcome().models.front().id;
    request.sampling.temperature = 0;
    request.sampling.max_tokens = 1;
    ContentPart part;
    part.text = "Go back.";
    request.messages.push_back({"user", {part}});
    if (!spins) usleep(static_cast<useconds_t>(kSparsePauseNs / kNsPerUs));
    const int64_t begin_ns = monotonic_ns();
    const Result<uint32_t> handle = (*client)->submit(std::move(request));
    if (!handle) return handle.error();
    int64_t token_ns = 0;
    for (bool ended = false; !ended;) {
      auto next = (*client)->next(spins ? 0 : 10'000);
      if (!next) return next.error();
      if (!*next) continue;
      const Event& event = (*next)->second;
      if (std::holds_alternative<TokenChunk>(event) && token_ns == 0)
        token_ns = monotonic_ns() - begin_ns;
      if (const auto* error = std::get_if<RequestError>(&event)) return fail(error->message);
      if (const auto* finished = std::get_if<Finished>(&event)) {
        ended = true;
        first_ns.push_back(token_ns);
        handoff_ns.push_back(token_ns - finished->timings.first_token_ns);
      }
    }
  }
  std::sort(first_ns.begin(), first_ns.end());
  std::sort(handoff_ns.begin(), handoff_ns.end());
  return DaemonLine{spins,
                    requests,
                    quantile_us(first_ns, 0.5),
                    quantile_us(first_ns, 0.99),
                    quantile_us(handoff_ns, 0.5),
                    quantile_us(handoff_ns, 0.99)};
}

}  // namespace updraft
