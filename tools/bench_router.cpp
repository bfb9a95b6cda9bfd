// updraft bench router: starts a router, nodes without a model and, where there is one, nginx, each
// a process of its own, and measures what the router costs.
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include "common/base/clock.h"
#include "common/http/json_text.h"
#include "common/http/server.h"
#include "common/pool/pool_link.h"
#include "tools/bench/mock_nodes.h"
#include "tools/bench/plain_beats.h"
#include "tools/bench/router_bench.h"
#include "tools/command.h"
#include "tools/daemon.h"
#include "tools/process.h"

namespace updraft {
namespace {

namespace fs = std::filesystem;

constexpr int kStartTimeoutMs = 20'000;
constexpr int kStopGraceMs = 3'000;
constexpr int kNodes = 3;
constexpr rlim_t kDescriptors = 131'072;
constexpr int32_t kNodeSlots = 20'000;

struct RouterBenchFlags {
  LatencyConfig latency;
  int streams = 5000;
  int idle = 10'000;
  std::vector<int> beat_nodes = {1000, 5000};
  int storm_nodes = 2000;
  double seconds = 5;  // of streams and beats
  std::vector<int> cores = {0, 1};
  std::string nginx = "nginx";
  bool json = false;
  bool smoke = false;
  // The side with the mock nodes; not for people.
  std::string serve_nodes;  // the folder
  std::string pool;
};

// A folder with keys, configurations and logs, gone with the object.
class WorkFolder {
 public:
  static Result<std::unique_ptr<WorkFolder>> make() {
    std::string pattern = (fs::temp_directory_path() / "updraft-bench-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) return fail(pattern + ": cannot be made");
    auto folder = std::make_unique<WorkFolder>();
    folder->path_ = pattern;
    fs::create_directory(folder->path_ / "nodes");
    return folder;
  }
  WorkFolder() = default;
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;
  ~WorkFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  std::string file(const std::string& name) const { return (path_ / name).string(); }

  // A key pair that the router lets in.
  Result<CurveKeys> add_node(const std::string& name) {
    const CurveKeys keys = new_curve_keys();
    if (auto saved = save_curve_keys(keys, file(name)); !saved) return saved.error();
    std::error_code error;
    fs::rename(file(name + ".pub"), path_ / "nodes" / (name + ".pub"), error);
    if (error) return fail(name + ".pub: " + error.message());
    return keys;
  }

 private:
  fs::path path_;
};

Result<std::map<std::string, std::string>> wait_until_ready(ChildProcess& child,
                                                            const std::string& ready_file) {
  const int64_t deadline_ns = monotonic_ns() + kStartTimeoutMs * kNsPerMs;
  while (!fs::exists(ready_file)) {
    if (!child.running())
      return fail(child.name() + " ended: " + child.how_it_ended() + ": " + child.last_log_line());
    if (monotonic_ns() > deadline_ns) return fail(child.name() + " was not ready within 20 s");
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  std::map<std::string, std::string> facts = read_ready_file(ready_file);
  std::error_code ignored;
  fs::remove(ready_file, ignored);
  return facts;
}

uint16_t port_of(const std::map<std::string, std::string>& facts, const char* key) {
  const auto at = facts.find(key);
  return at == facts.end() ? 0 : static_cast<uint16_t>(std::atoi(at->second.c_str()));
}

struct RunningRouter {
  ChildProcess process;
  HttpEndpoint http;
  PoolEndpoint pool;
};

// core: the one it runs on; nothing: all. pool: where nodes dial in.
Result<RunningRouter> start_router(const WorkFolder& folder, const std::string& router_key,
                                   std::optional<int> core, const std::string& pool) {
  std::ofstream(folder.file("router.toml"))
      << "[http]\nport = 0\n[pool]\nlisten = \"" << pool
      << "\"\nkey = \"router\"\nnodes = \"nodes\"\n[log]\nlevel = \"warn\"\n";
  const std::string ready = folder.file("router.ready");
  std::vector<std::string> arguments = {"router", "--config", folder.file("router.toml"),
                                        "--ready-file", ready};
  std::string program = program_path();
  if (core) {
    arguments.insert(arguments.begin(), {"-c", std::to_string(*core), program});
    program = "taskset";
  }
  Result<ChildProcess> process =
      ChildProcess::start_program("router", program, arguments, folder.file("router.log"));
  if (!process) return process.error();
  const auto facts = wait_until_ready(*process, ready);
  if (!facts) return facts.error();
  RunningRouter router{std::move(*process), {}, {}};
  router.http.port = port_of(*facts, "http_port");
  router.pool = {facts->at("pool"), router_key};
  return router;
}

struct RunningNodes {
  ChildProcess process;
  HttpEndpoint http;  // of one of them, without a router
};

Result<RunningNodes> start_nodes(const WorkFolder& folder, const PoolEndpoint& pool,
                                 std::optional<int> core) {
  std::vector<std::string> arguments = {"bench",         "router", "--serve-nodes",
                                        folder.file(""), "--pool", pool.endpoint};
  std::string program = program_path();
  if (core) {
    arguments.insert(arguments.begin(), {"-c", std::to_string(*core), program});
    program = "taskset";
  }
  Result<ChildProcess> process =
      ChildProcess::start_program("nodes", program, arguments, folder.file("nodes.log"));
  if (!process) return process.error();
  const auto facts = wait_until_ready(*process, folder.file("nodes.ready"));
  if (!facts) return facts.error();
  RunningNodes nodes{std::move(*process), {}};
  nodes.http.port = port_of(*facts, "http_port");
  return nodes;
}

// What start_nodes() runs: three nodes on one service, which also answers HTTP by itself.
int serve_nodes(const RouterBenchFlags& flags) {
  block_stop_signals();
  const std::string folder = flags.serve_nodes;
  const Result<std::string> router_key = load_public_key(folder + "router.pub");
  if (!router_key) return complain("bench router: " + router_key.message());
  MockService service("mock");
  std::vector<std::unique_ptr<PoolLink>> links;
  for (int i = 0; i < kNodes; ++i) {
    const std::string name = "mock-" + std::to_string(i);
    const Result<CurveKeys> keys = load_curve_keys(folder + name);
    if (!keys) return complain("bench router: " + keys.message());
    PoolLinkConfig config;
    config.router_endpoint = flags.pool;
    config.router_public_key = *router_key;
    config.keys = *keys;
    NodeHello hello;
    hello.node_id = name;
    hello.boot_epoch = static_cast<uint64_t>(monotonic_ns());
    hello.models = service.models();
    hello.device = "none";
    Result<std::unique_ptr<PoolLink>> link = PoolLink::start(
        config, hello, service, [&](NodeBeat& beat) { service.fill_beat(beat, kNodeSlots); });
    if (!link) return complain("bench router: " + link.message());
    (*link)->set_state(NodeState::kReady);
    links.push_back(std::move(*link));
  }
  std::unique_ptr<Metrics> metrics = Metrics::create();
  Result<std::unique_ptr<HttpServer>> server =
      HttpServer::start({}, service, *metrics, [](const AccessRecord&) {});
  if (!server) return complain("bench router: " + server.message());
  for (const auto& link : links) {
    while (!link->connected()) {
      if (poll_stop_signal(10) != 0) return 0;
    }
  }
  const Result<void> ready =
      write_ready_file(folder + "nodes.ready", {{"http_port", std::to_string((*server)->port())}});
  if (!ready) return complain("bench router: " + ready.message());
  wait_for_stop_signal();
  return 0;
}

// nginx as a plain reverse proxy in front of one node, the floor of any proxy; nothing when it
// cannot be started.
struct RunningNginx {
  ChildProcess process;
  HttpEndpoint http;
};
Result<RunningNginx> start_nginx(const RouterBenchFlags& flags, const WorkFolder& folder,
                                 const HttpEndpoint& node) {
  const uint16_t port = static_cast<uint16_t>(20'000 + getpid() % 12'000);
  std::ofstream(folder.file("nginx.conf"))
      << "daemon off;\nmaster_process off;\npid " << folder.file("nginx.pid") << ";\nerror_log "
      << folder.file("nginx.error")
      << ";\nevents { worker_connections 4096; }\nhttp {\n  access_log off;\n  "
         "client_body_temp_path "
      << folder.file("body") << ";\n  proxy_temp_path " << folder.file("proxy")
      << ";\n  fastcgi_temp_path " << folder.file("fastcgi") << ";\n  uwsgi_temp_path "
      << folder.file("uwsgi") << ";\n  scgi_temp_path " << folder.file("scgi")
      << ";\n  keepalive_requests 1000000;\n  upstream node {\n    server " << node.host << ":"
      << node.port
      << ";\n    keepalive 64;\n    keepalive_requests 1000000;\n  }\n  server {\n    listen "
         "127.0.0.1:"
      << port
      << ";\n    location / {\n      proxy_pass http://node;\n      proxy_http_version 1.1;\n      "
         "proxy_set_header Connection \"\";\n      proxy_set_header Host 127.0.0.1:"
      << node.port << ";\n      proxy_buffering off;\n    }\n  }\n}\n";
  Result<ChildProcess> process = ChildProcess::start_program(
      "nginx", flags.nginx, {"-p", folder.file(""), "-c", folder.file("nginx.conf")},
      folder.file("nginx.log"));
  if (!process) return process.error();
  RunningNginx nginx{std::move(*process), {}};
  nginx.http.port = port;
  const int64_t deadline_ns = monotonic_ns() + 5 * kNsPerSecond;
  while (!HttpStreams::open(nginx.http, "", 1)) {
    if (!nginx.process.running()) return fail(flags.nginx + ": " + nginx.process.last_log_line());
    if (monotonic_ns() > deadline_ns) return fail("nginx does not listen");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return nginx;
}

// This process and those it starts later; what is not there changes nothing.
void run_on(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(static_cast<size_t>(core), &cores);
  sched_setaffinity(0, sizeof cores, &cores);
}

// One line of the report: what, its figure, the limit that it is held to.
struct Report {
  explicit Report(bool print_json) : json(print_json) {}
  void add(const std::string& name, double value, const char* unit, std::optional<double> limit,
           bool at_least, const std::string& note = {}) {
    const bool met = !limit || (at_least ? value >= *limit : value <= *limit);
    if (limit) {
      ++targets;
      met_count += met ? 1 : 0;
    }
    if (json) {
      std::printf(
          "{\"name\": %s, \"value\": %.6g, \"unit\": %s, \"limit\": %s, \"at_least\": %s, \"met\": "
          "%s, \"note\": %s}\n",
          json_string(name).c_str(), value, json_string(unit).c_str(),
          limit ? std::to_string(*limit).c_str() : "null", at_least ? "true" : "false",
          met ? "true" : "false", json_string(note).c_str());
    } else {
      std::printf("%-44s %10.4g %-14s", name.c_str(), value, unit);
      if (limit)
        std::printf(" at %-5s %8.6g  %s", at_least ? "least" : "most", *limit,
                    met ? "met" : "MISSED");
      std::printf("%s%s\n", note.empty() ? "" : "  ", note.c_str());
    }
    std::fflush(stdout);
  }
  void finish() const {
    std::printf(json ? "{\"name\": \"summary\", \"targets\": %d, \"met\": %d}\n"
                     : "\n%d targets measured, %d met\n",
                targets, met_count);
  }
  bool json = false;
  int targets = 0;
  int met_count = 0;
};

Result<void> report_latency(const RouterBenchFlags& flags, WorkFolder& folder,
                            const std::string& router_key, Report& report) {
  Result<RunningRouter> router =
      start_router(folder, router_key, std::nullopt, "tcp://127.0.0.1:0");
  if (!router) return router.error();
  Result<RunningNodes> nodes = start_nodes(folder, router->pool, std::nullopt);
  if (!nodes) return nodes.error();
  std::vector<NamedEndpoint> endpoints = {{"a node directly", nodes->http},
                                          {"through the router", router->http}};
  Result<RunningNginx> nginx = start_nginx(flags, folder, nodes->http);
  if (nginx) {
    endpoints.push_back({"through nginx", nginx->http});
  } else {
    std::fprintf(stderr, "nginx is left out: %s\n", nginx.message().c_str());
  }
  const Result<std::vector<LatencyLine>> lines = measure_latency(endpoints, flags.latency);
  if (!lines) return lines.error();
  for (const LatencyLine& line : *lines) {
    const std::string note =
        std::to_string(line.answered) + " answered, " + std::to_string(line.failed) + " failed";
    report.add(line.by + ", p50", line.p50_us / 1e3, "ms", {}, false, note);
    report.add(line.by + ", p99", line.p99_us / 1e3, "ms", {}, false);
  }
  const double added = (*lines)[1].p50_us - (*lines)[0].p50_us;
  report.add("added by the router, p50", added / 1e3, "ms", 0.5, false);
  report.add("added by the router, p99", ((*lines)[1].p99_us - (*lines)[0].p99_us) / 1e3, "ms", 3,
             false);
  if (lines->size() > 2) {
    const double floor = (*lines)[2].p50_us - (*lines)[0].p50_us;
    report.add("added, as a multiple of nginx's", added / floor, "times", 3, false);
  }
  return {};
}

Result<void> report_streams(const RouterBenchFlags& flags, WorkFolder& folder,
                            const std::string& router_key, Report& report) {
  Result<RunningRouter> router =
      start_router(folder, router_key, flags.cores[0], "tcp://127.0.0.1:0");
  if (!router) return router.error();
  Result<RunningNodes> nodes = start_nodes(folder, router->pool, flags.cores[1]);
  if (!nodes) return nodes.error();
  if (flags.streams > 0) {
    const Result<StreamsLine> line =
        measure_streams(router->http, router->process.pid(), flags.streams,
                        static_cast<int64_t>(flags.seconds * 1e9));
    if (!line) return line.error();
    const double wanted = 20.0 * flags.streams;
    report.add("streams of 20 tokens/s, open", line->streams, "streams", flags.streams, true);
    report.add("tokens relayed, of those due", line->tokens_per_s / wanted, "share", 0.99, true,
               std::to_string(static_cast<int64_t>(line->tokens_per_s)) + " tokens/s");
    report.add("by the router", line->core_share, "of a core", 1, false);
    report.add("memory of a stream", line->kib_per_stream, "KiB", 32, false);
  }
  return {};
}

Result<void> report_idle(const RouterBenchFlags& flags, WorkFolder& folder,
                         const std::string& router_key, Report& report) {
  Result<RunningRouter> router =
      start_router(folder, router_key, flags.cores[0], "tcp://127.0.0.1:0");
  if (!router) return router.error();
  const Result<IdleLine> line = measure_idle(router->http, router->process.pid(), flags.idle);
  if (!line) return line.error();
  report.add(std::to_string(flags.idle) + " idle connections, memory after", line->first_mib, "MiB",
             {}, false, "before " + std::to_string(line->before_mib));
  report.add("the same again, growth", line->second_mib - line->first_mib, "MiB", 1, false);
  return {};
}

Result<void> report_beats(const RouterBenchFlags& flags, WorkFolder& folder,
                          const std::string& router_key, const std::vector<CurveKeys>& keys,
                          Report& report) {
  for (const int count : flags.beat_nodes) {
    run_on(flags.cores[0]);
    const Result<PlainBeats> plain =
        measure_plain_beats(count, static_cast<int64_t>(flags.seconds * 1e9), flags.cores[1]);
    run_on(flags.cores[1]);
    if (!plain) return plain.error();
    report.add("beats of " + std::to_string(count) + " nodes, plain", plain->applied_per_core_s,
               "per core and s", 100'000, true,
               std::to_string(static_cast<int64_t>(plain->applied_per_s)) + " per s here");
    Result<RunningRouter> router =
        start_router(folder, router_key, flags.cores[0], "tcp://127.0.0.1:0");
    if (!router) return router.error();
    const Result<BeatsLine> line = measure_beats(router->pool, router->http, router->process.pid(),
                                                 {keys.begin(), keys.begin() + count},
                                                 static_cast<int64_t>(flags.seconds * 1e9));
    if (!line) return line.error();
    report.add("beats of " + std::to_string(count) + " nodes under CURVE", line->applied_per_core_s,
               "per core and s", 60'000, true,
               std::to_string(static_cast<int64_t>(line->applied_per_s)) + " per s here");
  }
  return {};
}

Result<void> report_storm(const RouterBenchFlags& flags, WorkFolder& folder,
                          const std::string& router_key, const std::vector<CurveKeys>& keys,
                          Report& report) {
  Result<RunningRouter> router =
      start_router(folder, router_key, flags.cores[0], "tcp://127.0.0.1:0");
  if (!router) return router.error();
  const std::string endpoint = router->pool.endpoint;  // with the port it was given
  const auto restart = [&]() -> Result<HttpEndpoint> {
    router->process.stop(kStopGraceMs);
    Result<RunningRouter> again = start_router(folder, router_key, flags.cores[0], endpoint);
    if (!again) return again.error();
    *router = std::move(*again);
    return router->http;
  };
  const Result<StormLine> line = measure_storm(
      router->pool, router->http, {keys.begin(), keys.begin() + flags.storm_nodes}, restart);
  if (!line) return line.error();
  report.add(std::to_string(flags.storm_nodes) + " nodes FRESH after a restart", line->fresh_s, "s",
             5, false);
  return {};
}

// Thousands of sockets on both sides: as many descriptors as the system lets this user have.
void raise_descriptor_limit() {
  rlimit limit{kDescriptors, kDescriptors};
  if (setrlimit(RLIMIT_NOFILE, &limit) == 0) return;  // root alone may raise the hard limit
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);  // as it was, if refused: opening then says what is missing
}

int bench_router(RouterBenchFlags flags) {
  raise_descriptor_limit();
  if (!flags.serve_nodes.empty()) return serve_nodes(flags);
  if (flags.cores.size() != 2) return complain("bench router: --cores needs two cores");
  if (flags.smoke) {
    flags.latency.rate_per_s = 100;
    flags.latency.rounds = 1;
    flags.latency.sample_ns = 300 * kNsPerMs;
    flags.streams = 20;
    flags.idle = 50;
    flags.beat_nodes = {10};
    flags.storm_nodes = 10;
    flags.seconds = 0.5;
  }
  Result<std::unique_ptr<WorkFolder>> folder = WorkFolder::make();
  if (!folder) return complain("bench router: " + folder.message());
  const CurveKeys router_keys = new_curve_keys();
  if (auto saved = save_curve_keys(router_keys, (*folder)->file("router")); !saved)
    return complain("bench router: " + saved.message());
  int swarm = flags.storm_nodes;
  for (const int count : flags.beat_nodes) swarm = std::max(swarm, count);
  std::vector<CurveKeys> keys;
  for (int i = 0; i < kNodes + swarm; ++i) {
    const std::string name =
        (i < kNodes ? "mock-" : "swarm-") + std::to_string(i < kNodes ? i : i - kNodes);
    const Result<CurveKeys> node = (*folder)->add_node(name);
    if (!node) return complain("bench router: " + node.message());
    if (i >= kNodes) keys.push_back(*node);
  }
  Report report(flags.json);
  const std::string& key = router_keys.public_key;
  const std::pair<bool, std::function<Result<void>()>> parts[] = {
      {flags.latency.rounds > 0, [&] { return report_latency(flags, **folder, key, report); }},
      {true,
       [&]() -> Result<void> {
         run_on(flags.cores[1]);
         return {};
       }},
      {flags.streams > 0, [&] { return report_streams(flags, **folder, key, report); }},
      {flags.idle > 0, [&] { return report_idle(flags, **folder, key, report); }},
      {!flags.beat_nodes.empty(), [&] { return report_beats(flags, **folder, key, keys, report); }},
      {flags.storm_nodes > 0, [&] { return report_storm(flags, **folder, key, keys, report); }}};
  for (const auto& [wanted, part] : parts) {
    if (!wanted) continue;
    if (const Result<void> done = part(); !done) return complain("bench router: " + done.message());
  }
  report.finish();
  return 0;
}

}  // namespace

void add_bench_router(CLI::App& bench, int& exit_status) {
  auto flags = std::make_shared<RouterBenchFlags>();
  CLI::App* command =
      bench.add_subcommand("router", "measure what the router adds between a client and a node");
  command->footer(
      "Nodes without a model answer at once or 20 tokens/s; the load does not wait for answers. "
      "nginx in front of one node is the floor of a proxy.\n"
      "Latency runs on all cores; for the rest the router has the first of --cores to itself and "
      "everything else the second.");
  command->add_option("--rate", flags->latency.rate_per_s, "requests/s")
      ->check(CLI::Range(1.0, 1e6));
  command->add_option("-r,--rounds", flags->latency.rounds, "rounds of the latency; 0: none")
      ->check(CLI::Range(0, 1000));
  command->add_option("--streams", flags->streams, "streams at once; 0: none")
      ->check(CLI::Range(0, 60'000));
  command->add_option("--idle", flags->idle, "idle connections; 0: none")
      ->check(CLI::Range(0, 60'000));
  command->add_option("--beats", flags->beat_nodes, "nodes that beat, comma separated")
      ->delimiter(',')
      ->check(CLI::Range(1, 20'000));
  command->add_option("--storm", flags->storm_nodes, "nodes that reconnect at once; 0: none")
      ->check(CLI::Range(0, 20'000));
  command->add_option("--seconds", flags->seconds, "for streams and beats, each")
      ->check(CLI::Range(0.1, 3600.0));
  command->add_option("--cores", flags->cores, "the router's core, and the others'")
      ->delimiter(',');
  command->add_option("--nginx", flags->nginx, "nginx's program");
  command->add_option("--serve-nodes", flags->serve_nodes)->group("");
  command->add_option("--pool", flags->pool)->group("");
  command->add_flag("--json", flags->json, "one JSON object a line");
  command->add_flag("--smoke", flags->smoke, "seconds: checks that every line works");
  command->callback([flags, &exit_status] { exit_status = bench_router(*flags); });
}

}  // namespace updraft
