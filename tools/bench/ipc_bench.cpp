#include "tools/bench/ipc_bench.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <map>
#include <set>
#include <tuple>

#include "common/base/clock.h"
#include "common/base/median.h"
#include "common/ipc/unix_socket.h"
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
  pid_t pid() const { return pid_; }
  ~Server() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

 private:
  pid_t pid_;
};

double quantile_us(std::vector<int64_t>& sorted_ns, double share) {
  const auto index = static_cast<size_t>(share * static_cast<double>(sorted_ns.size() - 1));
  return static_cast<double>(sorted_ns[index]) / kNsPerUs;
}

// The share of a core that a process takes while this one sleeps.
Result<double> cpu_share_of(pid_t pid, int64_t for_ns) {
  clockid_t clock{};
  if (const int error = clock_getcpuclockid(pid, &clock); error != 0)
    return fail("processor time of process " + std::to_string(pid) + ": " + std::strerror(error));
  const auto used_ns = [clock] {
    timespec used{};
    clock_gettime(clock, &used);
    return used.tv_sec * kNsPerSecond + used.tv_nsec;
  };
  const int64_t before_ns = used_ns();
  const int64_t begin_ns = monotonic_ns();
  usleep(static_cast<useconds_t>(for_ns / kNsPerUs));
  return static_cast<double>(used_ns() - before_ns) /
         static_cast<double>(monotonic_ns() - begin_ns);
}

bool one_way(IpcTest test) { return test == IpcTest::kFill || test == IpcTest::kRate; }

IpcSample measure_one_way(IpcPair& pair, IpcTest test, uint64_t bytes, int64_t budget_ns) {
  pair.send_many(test, bytes, 4);  // the server is there and has touched its mapping
  uint64_t count = 8;
  for (;;) {
    const int64_t begin_ns = monotonic_ns();
    pair.send_many(test, bytes, count);
    const int64_t ns = monotonic_ns() - begin_ns;
    if (ns >= budget_ns / 2) {
      const double each_us = static_cast<double>(ns) / static_cast<double>(count) / kNsPerUs;
      return {each_us, 0, 1e6 / each_us, 0};
    }
    count *= 2;
  }
}

}  // namespace

IpcSample measure_round_trips(IpcPair& pair, IpcTest test, uint64_t bytes, int64_t budget_ns) {
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
          sparse ? 0 : static_cast<double>(ns.size()) / total_s, 0};
}

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
  std::map<Key, std::vector<IpcSample>> samples;
  std::set<std::string> left_out;
  if (auto pinned = pin_to(config.client_core); !pinned) return pinned.error();
  const auto measure = [&](IpcTest test, uint64_t bytes, size_t peer) -> Result<void> {
    if (peers[peer].measure) {
      if (left_out.count(peers[peer].name) != 0) return {};
      const Result<IpcSample> sample = peers[peer].measure(test, bytes, config);
      if (sample) {
        samples[{test, bytes, peer}].push_back(*sample);
      } else {
        left_out.insert(peers[peer].name);
        if (config.on_left_out) config.on_left_out(peers[peer].name, sample.message());
      }
      return {};
    }
    Result<std::unique_ptr<IpcPair>> pair = peers[peer].make(bytes);
    if (!pair) return pair.error(peers[peer].name);
    const Server server(**pair, test, config.server_core);
    (*pair)->start_client();
    if (test == IpcTest::kIdle) {
      (*pair)->round_trip(test, bytes);  // the server is up, and has been busy before
      usleep(2000);
      const Result<double> share = cpu_share_of(server.pid(), 4 * config.sample_ns);
      if (!share) return share.error(peers[peer].name);
      samples[{test, bytes, peer}].push_back({0, 0, 0, *share});
      return {};
    }
    samples[{test, bytes, peer}].push_back(
        one_way(test) ? measure_one_way(**pair, test, bytes, config.sample_ns)
                      : measure_round_trips(**pair, test, bytes, config.sample_ns));
    return {};
  };
  for (int round = 0; round < config.rounds; ++round) {
    for (const IpcTest test : {IpcTest::kHand, IpcTest::kSparse, IpcTest::kEcho, IpcTest::kFill,
                               IpcTest::kRate, IpcTest::kIdle}) {
      const bool small_only =
          test == IpcTest::kSparse || test == IpcTest::kRate || test == IpcTest::kIdle;
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
    if (left_out.count(peers[key.peer].name) != 0) continue;
    IpcLine line;
    line.test = key.test;
    line.peer = peers[key.peer].name;
    line.spins = peers[key.peer].spins;
    line.bytes = key.bytes;
    std::vector<double> p50, p99, rate, share;
    for (const IpcSample& run : runs) {
      p50.push_back(run.p50_us);
      p99.push_back(run.p99_us);
      rate.push_back(run.per_s);
      share.push_back(run.cpu_share);
    }
    line.p50_us = median(p50);
    line.p99_us = median(p99);
    line.per_s = median(rate);
    line.cpu_share = median(share);
    if (key.test == IpcTest::kEcho || key.test == IpcTest::kFill) {
      const double ways = key.test == IpcTest::kEcho ? 2 : 1;
      line.gb_per_s = ways * static_cast<double>(key.bytes) / line.p50_us / 1e3;
    }
    lines.push_back(line);
  }
  return lines;
}

const char* daemon_pace_name(DaemonPace pace) {
  switch (pace) {
    case DaemonPace::kBusy:
      return "busy";
    case DaemonPace::kSparse:
      return "sparse";
    case DaemonPace::kBlocking:
      return "blocking";
  }
  return "?";
}

Result<DaemonLine> run_daemon_bench(const std::string& socket_path, DaemonPace pace, int requests) {
  LocalClientOptions options;
  options.socket_path = socket_path;
  options.client_name = "updraft bench ipc";
  Result<std::unique_ptr<LocalClient>> client = LocalClient::connect(options);
  if (!client) return client.error();
  if ((*client)->welcome().models.empty()) return fail("the edge daemon serves no model");
  std::vector<int64_t> step_ns, token_ns, back_ns;
  for (int i = 0; i < requests; ++i) {
    Request request;
    request.model = (*client)->welcome().models.front().id;
    request.sampling.temperature = 0;
    request.sampling.max_tokens = 1;
    ContentPart part;
    part.text = "Go back.";
    request.messages.push_back({"user", {part}});
    if (pace != DaemonPace::kBusy) usleep(static_cast<useconds_t>(kSparsePauseNs / kNsPerUs));
    const int64_t begin_ns = monotonic_ns();
    const Result<uint32_t> handle = (*client)->submit(std::move(request));
    if (!handle) return handle.error();
    int64_t first_ns = 0;
    for (bool ended = false; !ended;) {
      auto next = (*client)->next(pace == DaemonPace::kBlocking ? 10'000 : 0);
      if (!next) return next.error();
      if (!*next) continue;
      const Event& event = (*next)->second;
      const int64_t now_ns = monotonic_ns();
      if (std::holds_alternative<TokenChunk>(event) && first_ns == 0) first_ns = now_ns;
      if (const auto* error = std::get_if<RequestError>(&event)) return fail(error->message);
      if (const auto* finished = std::get_if<Finished>(&event)) {
        ended = true;
        const Timings& node = finished->timings;
        if (node.received_at_ns < begin_ns || node.received_at_ns > now_ns)
          return fail("the edge daemon does not say when it received a request");
        step_ns.push_back(node.received_at_ns + node.queued_ns - begin_ns);
        token_ns.push_back(first_ns - begin_ns);
        back_ns.push_back(first_ns - (node.received_at_ns + node.first_token_ns));
      }
    }
  }
  for (auto* all : {&step_ns, &token_ns, &back_ns}) std::sort(all->begin(), all->end());
  return DaemonLine{pace,
                    requests,
                    quantile_us(step_ns, 0.5),
                    quantile_us(step_ns, 0.99),
                    quantile_us(token_ns, 0.5),
                    quantile_us(token_ns, 0.99),
                    quantile_us(back_ns, 0.5),
                    quantile_us(back_ns, 0.99)};
}

Result<double> measure_idle_daemon(const std::string& socket_path, int64_t for_ns) {
  LocalClientOptions options;
  options.socket_path = socket_path;
  options.client_name = "updraft bench ipc";
  Result<std::unique_ptr<LocalClient>> client = LocalClient::connect(options);
  if (!client) return client.error();
  // A connection of its own tells who listens.
  const Result<ipc::UniqueFd> socket = ipc::connect_unix(socket_path);
  if (!socket) return socket.error();
  const Result<ipc::PeerCredentials> daemon = ipc::peer_credentials(*socket);
  if (!daemon) return daemon.error();
  usleep(100'000);  // what the handshakes left to do is done
  return cpu_share_of(daemon->pid, for_ns);
}

}  // namespace updraft
