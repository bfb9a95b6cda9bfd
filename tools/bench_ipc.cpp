// updraft bench ipc: the handoff between processes, beside what else there is, and through a
// daemon.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "common/base/clock.h"
#include "common/http/json_text.h"
#include "tools/bench/ipc_bench.h"
#include "tools/bench/ipc_peer_iceoryx.h"
#include "tools/bench/ipc_targets.h"
#include "tools/command.h"

namespace updraft {
namespace {

struct IpcFlags {
  IpcBenchConfig bench;
  std::vector<int> cores = {0, 1};
  std::string socket;
  std::string iceoryx_side;
  bool json = false;
  bool smoke = false;
};

// Its time as a multiple of Updraft's in the same test: spinning, or blocking where the peer is
// slow anyway.
double ratio(const std::vector<IpcLine>& lines, const IpcLine& line) {
  const IpcLine* ours = find_ipc_line(lines, line.test, line.bytes, "updraft", line.spins);
  return ours == nullptr || ours->p50_us == 0 ? 0 : line.p50_us / ours->p50_us;
}

std::string size_text(uint64_t bytes) {
  if (bytes >= 1 << 20) return std::to_string(bytes >> 20) + " MiB";
  if (bytes >= 1 << 10) return std::to_string(bytes >> 10) + " KiB";
  return std::to_string(bytes) + " B";
}

void print_text(const std::vector<IpcLine>& lines) {
  std::printf("%-7s %-8s %-12s %-9s %12s %12s %12s %9s %8s\n", "test", "payload", "by", "waiting",
              "p50 us", "p99 us", "per second", "GB/s", "ratio");
  for (const IpcLine& line : lines) {
    std::printf("%-7s %-8s %-12s %-9s %12.3f %12.3f %12.0f %9.2f %8.2f\n", ipc_test_name(line.test),
                size_text(line.bytes).c_str(), line.peer.c_str(),
                line.spins ? "spinning" : "blocking", line.p50_us, line.p99_us, line.per_s,
                line.gb_per_s, ratio(lines, line));
  }
}

void print_json(const std::vector<IpcLine>& lines) {
  for (const IpcLine& line : lines) {
    std::printf(
        "{\"test\": %s, \"bytes\": %llu, \"by\": %s, \"spins\": %s, \"p50_us\": %.6g, \"p99_us\": "
        "%.6g, "
        "\"per_s\": %.6g, \"gb_per_s\": %.6g, \"cpu_share\": %.6g, \"ratio\": %.6g}\n",
        json_string(ipc_test_name(line.test)).c_str(), static_cast<unsigned long long>(line.bytes),
        json_string(line.peer).c_str(), line.spins ? "true" : "false", line.p50_us, line.p99_us,
        line.per_s, line.gb_per_s, line.cpu_share, ratio(lines, line));
  }
}

void print_daemon(const DaemonLine& line, bool json) {
  const char* format =
      json ? "{\"test\": \"daemon\", \"pace\": \"%s\", \"requests\": %d, "
             "\"first_step_p50_us\": %.6g, \"first_step_p99_us\": %.6g, "
             "\"first_token_p50_us\": %.6g, \"first_token_p99_us\": %.6g, "
             "\"token_back_p50_us\": %.6g, \"token_back_p99_us\": %.6g}\n"
           : "daemon  %-9s %d requests, submit to first step p50 %.1f us, p99 %.1f us; to first "
             "token p50 %.1f us, p99 %.1f us; token to client p50 %.1f us, p99 %.1f us\n";
  std::printf(format, daemon_pace_name(line.pace), line.requests, line.first_step_p50_us,
              line.first_step_p99_us, line.first_token_p50_us, line.first_token_p99_us,
              line.token_back_p50_us, line.token_back_p99_us);
}

void print_target(const IpcTarget& target, bool json) {
  if (json) {
    std::printf(
        "{\"test\": \"target\", \"name\": %s, \"at_least\": %s, \"limit\": %.6g, "
        "\"measured\": %.6g, \"unit\": %s, \"floor\": %s, \"met\": %s}\n",
        json_string(target.name).c_str(), target.at_least ? "true" : "false", target.limit,
        target.measured, json_string(target.unit).c_str(),
        target.floor ? std::to_string(*target.floor).c_str() : "null",
        target.met() ? "true" : "false");
    return;
  }
  std::printf("target  %-40s at %-5s %7.4g %-9s  measured %8.4g  %s", target.name.c_str(),
              target.at_least ? "least" : "most", target.limit, target.unit.c_str(),
              target.measured, target.met() ? "met" : "MISSED");
  if (target.floor) std::printf("  (floor: %.4g, %s)", *target.floor, target.floor_name.c_str());
  std::printf("\n");
}

void print_summary(const std::vector<IpcTarget>& targets, bool json) {
  const auto met = static_cast<size_t>(std::count_if(
      targets.begin(), targets.end(), [](const IpcTarget& target) { return target.met(); }));
  std::printf(json ? "{\"test\": \"summary\", \"targets\": %zu, \"met\": %zu}\n"
                   : "\n%zu targets measured, %zu met\n",
              targets.size(), met);
}

int bench_ipc(IpcFlags flags) {
  if (!flags.iceoryx_side.empty()) return run_iceoryx_side(flags.iceoryx_side);
  if (flags.cores.size() != 2) return complain("bench ipc: --cores needs two cores");
  flags.bench.client_core = flags.cores[0];
  flags.bench.server_core = flags.cores[1];
  if (flags.smoke) {
    flags.bench.bytes = {64, 1 << 20};
    flags.bench.rounds = std::min(flags.bench.rounds, 1);
    flags.bench.sample_ns = 2'000'000;
  }
  flags.bench.on_left_out = [](const std::string& peer, const std::string& why) {
    std::fprintf(stderr, "%s is left out: %s\n", peer.c_str(), why.c_str());
  };
  const Result<std::vector<IpcLine>> lines = run_ipc_bench(flags.bench);
  if (!lines) return complain("bench ipc: " + lines.message());
  flags.json ? print_json(*lines) : print_text(*lines);
  std::vector<DaemonLine> daemon;
  std::optional<double> idle_share;
  if (!flags.socket.empty()) {
    for (const DaemonPace pace : {DaemonPace::kSparse, DaemonPace::kBlocking, DaemonPace::kBusy}) {
      const Result<DaemonLine> line = run_daemon_bench(flags.socket, pace, flags.smoke ? 50 : 500);
      if (!line) return complain("bench ipc: " + line.message());
      print_daemon(*line, flags.json);
      daemon.push_back(*line);
    }
    const Result<double> share =
        measure_idle_daemon(flags.socket, flags.smoke ? kNsPerSecond / 10 : kNsPerSecond);
    if (!share) return complain("bench ipc: " + share.message());
    idle_share = *share;
  }
  const std::vector<IpcTarget> targets = ipc_targets(*lines, daemon, idle_share);
  for (const IpcTarget& target : targets) print_target(target, flags.json);
  print_summary(targets, flags.json);
  return 0;
}

}  // namespace

void add_bench_ipc(CLI::App& bench, int& exit_status) {
  auto flags = std::make_shared<IpcFlags>();
  CLI::App* command = bench.add_subcommand("ipc", "measure handing payloads to another process");
  command->footer(
      "hand: round trip, the payload stays where it lies; sparse: the same after 1 ms of silence; "
      "echo: written, "
      "returned, read;\n"
      "fill: one way, written and read; rate: one way, descriptors alone; idle: nothing comes. Two "
      "processes on two "
      "cores; medians of "
      "the rounds.\n"
      "ratio: time as a multiple of Updraft's with the same kind of waiting.\n"
      "target: what the handoff is held to; floor: what the same run measured of the machine.");
  command->add_option("--cores", flags->cores, "the client's and the server's core")
      ->delimiter(',');
  command
      ->add_option("-r,--rounds", flags->bench.rounds, "rounds of all lines; 0: the daemon alone")
      ->check(CLI::Range(0, 1000));
  command->add_option("--socket", flags->socket,
                      "also measure through the edge daemon that listens there");
  // What the bench starts itself with; not for people.
  command->add_option("--iceoryx-side", flags->iceoryx_side)->group("");
  command->add_flag("--json", flags->json, "one JSON object a line");
  command->add_flag("--smoke", flags->smoke,
                    "a second instead of a minute: checks that every line works");
  command->callback([flags, &exit_status] { exit_status = bench_ipc(*flags); });
}

}  // namespace updraft
