// updraft sim: the router, links, scheduler and placement that serve, on a virtual clock, against
// whatever can go wrong. A seed is a world; the same seed is the same world.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <memory>
#include <string>

#include "common/base/clock.h"
#include "tools/command.h"
#include "tools/sim/simulation.h"

namespace updraft {
namespace {

struct SimFlags {
  uint64_t seeds = 0;
  uint64_t first = 1;
  uint64_t seed = 0;
  int32_t nodes = 0;
  bool trace = false;
};

void print_violation(const sim::Report& report) {
  std::printf("seed %" PRIu64 " (%s) breaks '%s' at %.6f s:\n  %s\nits last events:\n", report.seed,
              report.scenario.c_str(), report.violation->invariant.c_str(),
              static_cast<double>(report.violation->at_ns) / kNsPerSecond,
              report.violation->what.c_str());
  for (const std::string& line : report.last_events) std::printf("%s\n", line.c_str());
  std::printf("see it again: updraft sim --seed %" PRIu64 " --trace\n", report.seed);
}

void print_summary(const sim::Report& report) {
  std::printf("seed = %" PRIu64 " (%s)\n", report.seed, report.scenario.c_str());
  std::printf("requests = %" PRIu64 ", finished = %" PRIu64 ", events = %" PRIu64
              ", simulated = %.1f s\n",
              report.requests, report.finished, report.event_count,
              static_cast<double>(report.simulated_ns) / kNsPerSecond);
  std::printf("hash = %016" PRIx64 "\n", report.hash);
}

int run_one(const SimFlags& flags) {
  sim::RunOptions options;
  options.print_trace = flags.trace;
  sim::Scenario scenario =
      flags.nodes > 0 ? sim::scenario_of_size(flags.nodes) : sim::scenario_of_seed(flags.seed);
  const bool show = isatty(STDERR_FILENO) != 0 && flags.nodes > 0;
  if (show) {
    options.on_time = [](int64_t now_ns) {
      std::fprintf(stderr, "\r%.1f s simulated", static_cast<double>(now_ns) / kNsPerSecond);
    };
  }
  const sim::Report report = sim::simulate(scenario, flags.seed, options);
  if (show) std::fprintf(stderr, "\r\033[K");
  print_summary(report);
  if (!report.violation) return 0;
  print_violation(report);
  return 1;
}

int run_many(const SimFlags& flags) {
  const auto start = std::chrono::steady_clock::now();
  const bool show = isatty(STDERR_FILENO) != 0;
  uint64_t requests = 0;
  uint64_t finished = 0;
  uint64_t events = 0;
  uint64_t hash = 0;
  double simulated_s = 0.0;
  for (uint64_t seed = flags.first; seed < flags.first + flags.seeds; ++seed) {
    const sim::Report report = sim::simulate_seed(seed, {});
    if (report.violation) {
      if (show) std::fprintf(stderr, "\r\033[K");
      print_violation(report);
      return 1;
    }
    requests += report.requests;
    finished += report.finished;
    events += report.event_count;
    simulated_s += static_cast<double>(report.simulated_ns) / kNsPerSecond;
    hash = sim::mix(hash ^ report.hash);
    const uint64_t done = seed - flags.first + 1;
    if (show && done % 10 == 0)
      std::fprintf(stderr, "\r%" PRIu64 " of %" PRIu64 " seeds", done, flags.seeds);
  }
  if (show) std::fprintf(stderr, "\r\033[K");
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%" PRIu64 " seeds from %" PRIu64 ": every invariant held\n", flags.seeds,
              flags.first);
  std::printf("requests = %" PRIu64 ", finished = %" PRIu64 ", events = %" PRIu64
              ", simulated = %.0f s in %.1f s\n",
              requests, finished, events, simulated_s, took.count());
  std::printf("hash = %016" PRIx64 "\n", hash);
  return 0;
}

}  // namespace

void add_sim(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<SimFlags>();
  CLI::App* command = app.add_subcommand(
      "sim", "Run the router's code in simulated worlds full of faults; plan a pool's capacity");
  command->add_option("--seeds", flags->seeds, "Run so many worlds, stop at the first that breaks");
  command->add_option("--first", flags->first, "The first of them");
  CLI::Option* seed = command->add_option("--seed", flags->seed, "Run this one world");
  command->add_option("--nodes", flags->nodes, "One large world with so many nodes")
      ->check(CLI::Range(1, 1'000'000));
  command->add_flag("--trace", flags->trace, "Print every event of that world");
  command->callback([flags, seed, &exit_status] {
    sim::report_aborts();
    if (seed->count() > 0 || flags->nodes > 0) {
      exit_status = run_one(*flags);
      return;
    }
    if (flags->seeds == 0) flags->seeds = 100;
    exit_status = run_many(*flags);
  });
}

}  // namespace updraft
