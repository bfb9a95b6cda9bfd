// updraft sim: the router, links, scheduler and placement that serve, on a virtual clock, against
// whatever can go wrong. A seed is a world; the same seed is the same world.
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "tools/command.h"
#include "tools/sim/capacity.h"
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

// What the run cost this machine; not part of the world, and another number each time.
void print_cost(std::vector<double> placements_us, double seconds) {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("took = %.1f s, memory = %.2f GiB\n", seconds,
              static_cast<double>(usage.ru_maxrss) / (1 << 20));
  if (placements_us.empty()) return;
  std::sort(placements_us.begin(), placements_us.end());
  const auto at = [&](double share) {
    return placements_us[static_cast<size_t>(share *
                                             static_cast<double>(placements_us.size() - 1))];
  };
  std::printf("placements = %zu, p50 = %.1f us, p99 = %.1f us, longest = %.1f us\n",
              placements_us.size(), at(0.5), at(0.99), at(1.0));
}

int run_one(const SimFlags& flags) {
  const auto start = std::chrono::steady_clock::now();
  sim::RunOptions options;
  options.measure_placements = flags.nodes > 0;
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
  if (flags.nodes > 0) {
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    print_cost(report.placements_us, took.count());
  }
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

struct CapacityFlags {
  std::string fleet;
  std::vector<double> loads;
  double seconds = 60.0;
  uint64_t seed = 1;
  std::string csv;
  std::string svg;
};

bool write_file(const std::string& path, const std::string& content) {
  std::ofstream out(path, std::ios::binary);
  out << content;
  return static_cast<bool>(out.flush());
}

int run_capacity(const CapacityFlags& flags) {
  Result<sim::Fleet> fleet = sim::load_fleet(flags.fleet);
  if (!fleet) return complain(fleet.message());
  const std::vector<double> loads = flags.loads.empty() ? sim::default_loads(*fleet) : flags.loads;
  const bool show = isatty(STDERR_FILENO) != 0;
  std::printf("%s\n", sim::capacity_header().c_str());
  std::vector<sim::CapacityPoint> points;
  for (const double load : loads) {
    const auto on_time = [&](int64_t now_ns) {
      if (show)
        std::fprintf(stderr, "\r%.4g requests/s: %.1f of %.0f s", load,
                     static_cast<double>(now_ns) / kNsPerSecond, flags.seconds);
    };
    Result<sim::CapacityPoint> point =
        sim::measure_capacity(*fleet, load, flags.seconds, flags.seed, on_time);
    if (show) std::fprintf(stderr, "\r\033[K");
    if (!point) return complain(point.message());
    std::printf("%s\n", sim::capacity_row(*point).c_str());
    std::fflush(stdout);
    points.push_back(*point);
  }
  if (!flags.csv.empty() && !write_file(flags.csv, sim::capacity_csv(points)))
    return complain(flags.csv + ": cannot be written");
  if (!flags.svg.empty() && !write_file(flags.svg, sim::capacity_svg(points)))
    return complain(flags.svg + ": cannot be written");
  return 0;
}

void add_capacity(CLI::App& sim, int& exit_status) {
  auto flags = std::make_shared<CapacityFlags>();
  CLI::App* command = sim.add_subcommand(
      "capacity", "Goodput, waiting times and the cloud's share of a fleet under rising load");
  command->add_option("--fleet", flags->fleet, "The fleet's description (configs/fleet.toml)")
      ->required()
      ->check(CLI::ExistingFile);
  command->add_option("--loads", flags->loads, "Requests per second, one or more")
      ->delimiter(',')
      ->check(CLI::Range(1e-3, 1e6));
  command->add_option("--seconds", flags->seconds, "Simulated seconds of each load")
      ->check(CLI::Range(1.0, 86'400.0));
  command->add_option("--seed", flags->seed, "Of the arrivals");
  command->add_option("--csv", flags->csv, "Write the figures into this file");
  command->add_option("--svg", flags->svg, "Draw the curves into this file");
  command->callback([flags, &exit_status] { exit_status = run_capacity(*flags); });
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
  add_capacity(*command, exit_status);
  command->callback([flags, seed, command, &exit_status] {
    if (!command->get_subcommands().empty()) return;
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
