// See the header.
#include "tools/sim/faults.h"

#include <array>
#include <functional>
#include <utility>

#include "common/base/clock.h"

namespace updraft::sim {
namespace {

constexpr int64_t kWallStartMs = 1'800'000'000'000;
constexpr int64_t kClockStepMsMax = 3'600'000;
constexpr int64_t kKeepUpNs = 200 * kNsPerMs;
constexpr int64_t kClogNsMax = 5 * kNsPerSecond;

double sum(const FaultRates& f) {
  return f.clog + f.cut + f.one_way_cut + f.reset + f.node_crash + f.node_pause + f.router_crash +
         f.router_pause + f.operator_drain + f.node_drain + f.slowness + f.memory;
}

}  // namespace

Faults::Faults(World& world, Network& network, const Scenario& scenario,
               std::vector<std::unique_ptr<SimRouter>>& routers,
               std::vector<std::unique_ptr<SimNode>>& nodes)
    : world_(world),
      network_(network),
      scenario_(scenario),
      routers_(routers),
      nodes_(nodes),
      rate_(sum(scenario.faults)) {}

ProcessClock Faults::clock() {
  const int64_t ppm = scenario_.drift_ppm_max;
  return {world_.random.between(1, 1'000'000) * kNsPerSecond, world_.random.between(-ppm, ppm)};
}

void Faults::start_router(size_t router) {
  if (!routers_[router]->running()) routers_[router]->start(clock());
}

void Faults::start_node(size_t node) {
  if (nodes_[node]->running()) return;
  drained_.erase(node);
  int64_t wall_ms = kWallStartMs + world_.now_ns() / kNsPerMs;
  const int64_t before_ms = nodes_[node]->last_wall_ms();
  // A gateway without a battery for its clock comes up in the past.
  if (before_ms > 0 && world_.random.chance(scenario_.faults.clock_step_share))
    wall_ms = before_ms - world_.random.between(1, kClockStepMsMax);
  if (wall_ms == before_ms) ++wall_ms;
  nodes_[node]->start(clock(), wall_ms);
}

void Faults::start_all() {
  for (size_t router = 0; router < routers_.size(); ++router) start_router(router);
  for (size_t node = 0; node < nodes_.size(); ++node) {
    const int64_t wait_ns = world_.random.between(0, scenario_.start_spread_ns);
    world_.after(wait_ns, [this, node] { start_node(node); });
  }
}

void Faults::run_until(int64_t until_ns) {
  if (rate_ > 0.0) next(until_ns);
}

void Faults::next(int64_t until_ns) {
  const double wait_s = world_.random.exponential(1.0 / rate_);
  const int64_t at_ns = world_.now_ns() + static_cast<int64_t>(wait_s * 1e9);
  if (at_ns >= until_ns) return;
  world_.at(at_ns, [this, until_ns] {
    next(until_ns);
    strike();
  });
}

int64_t Faults::down_ns() {
  return world_.random.between(1, scenario_.faults.down_ms_max) * kNsPerMs;
}

// Its process ends when it has drained.
void Faults::start_after_end(size_t node, int64_t down_ns) {
  world_.after(down_ns, [this, node, down_ns] {
    if (healed_) return;
    if (nodes_[node]->running() && nodes_[node]->ends_by_itself())
      return start_after_end(node, down_ns);
    start_node(node);
  });
}

// After the faults: whoever is down comes up.
void Faults::keep_up() {
  for (size_t node = 0; node < nodes_.size(); ++node) start_node(node);
  world_.after(kKeepUpNs, [this] { keep_up(); });
}

void Faults::strike() {
  const FaultRates& f = scenario_.faults;
  Random& random = world_.random;
  const auto node = static_cast<size_t>(random.below(nodes_.size()));
  const auto router = static_cast<size_t>(random.below(routers_.size()));
  const auto n = static_cast<int>(node);
  const auto r = static_cast<int>(router);
  const Direction direction = random.chance(0.5) ? Direction::kUp : Direction::kDown;
  const int64_t down = down_ns();
  const std::string& id = nodes_[node]->spec().id;
  const auto unless_healed = [this](std::function<void()> undo) {
    return [this, undo = std::move(undo)] {
      if (!healed_) undo();
    };
  };
  const std::array<std::pair<double, std::function<void()>>, 12> kinds = {{
      {f.clog,
       [&] {
         const int64_t for_ns = random.between(1, kClogNsMax);
         world_.note("fault: clog", id, static_cast<uint64_t>(direction),
                     static_cast<uint64_t>(for_ns / kNsPerMs));
         network_.clog(n, r, direction, for_ns);
       }},
      {f.cut,
       [&] {
         world_.note("fault: partition", id, static_cast<uint64_t>(down / kNsPerMs));
         network_.cut(n, r, Direction::kUp);
         network_.cut(n, r, Direction::kDown);
         world_.after(down, [this, n, r] { network_.mend(n, r); });
       }},
      {f.one_way_cut,
       [&] {
         world_.note("fault: one way only", id, static_cast<uint64_t>(direction),
                     static_cast<uint64_t>(down / kNsPerMs));
         network_.cut(n, r, direction);
         world_.after(down, [this, n, r] { network_.mend(n, r); });
       }},
      {f.reset,
       [&] {
         world_.note("fault: reset", id, router);
         network_.reset(n, r);
       }},
      {f.node_crash,
       [&] {
         nodes_[node]->crash(random.chance(0.3) ? Farewell::kSilent : Farewell::kReset);
         world_.after(down, unless_healed([this, node] { start_node(node); }));
       }},
      {f.node_pause,
       [&] {
         nodes_[node]->pause();
         world_.after(down, [this, node] { nodes_[node]->resume(); });
       }},
      {f.router_crash,
       [&] {
         routers_[router]->crash(random.chance(0.3) ? Farewell::kSilent : Farewell::kReset);
         world_.after(down, unless_healed([this, router] { start_router(router); }));
       }},
      {f.router_pause,
       [&] {
         routers_[router]->pause();
         world_.after(down, [this, router] { routers_[router]->resume(); });
       }},
      {f.operator_drain,
       [&] {
         routers_[router]->drain(id, f.drain_grace_ms);
         drained_.insert(node);
         world_.after(down + f.drain_grace_ms * kNsPerMs, unless_healed([this, node] {
                        nodes_[node]->crash(Farewell::kReset);
                        start_node(node);
                      }));
       }},
      {f.node_drain,
       [&] {
         nodes_[node]->drain(f.drain_grace_ms);
         start_after_end(node, down);
       }},
      {f.slowness,
       [&] {
         world_.note("fault: slow", id);
         nodes_[node]->set_slowness(random.uniform(2.0, 20.0));
         world_.after(down, [this, node] { nodes_[node]->set_slowness(1.0); });
       }},
      {f.memory,
       [&] {
         nodes_[node]->set_memory(random.chance(0.5) ? MemoryLevel::kShed : MemoryLevel::kRefuse);
         world_.after(down, [this, node] { nodes_[node]->set_memory(MemoryLevel::kNormal); });
       }},
  }};
  double at = random.uniform() * rate_;
  for (const auto& [rate, happen] : kinds) {
    at -= rate;
    if (at >= 0.0 || rate == 0.0) continue;
    happen();
    return;
  }
}

void Faults::heal() {
  healed_ = true;
  world_.note("everything heals", "world");
  network_.heal();
  for (size_t router = 0; router < routers_.size(); ++router) {
    routers_[router]->resume();
    start_router(router);
  }
  for (size_t node = 0; node < nodes_.size(); ++node) {
    nodes_[node]->resume();
    const bool drains = nodes_[node]->draining() || drained_.contains(node);
    if (drains && !scenario_.calm) nodes_[node]->crash(Farewell::kReset);
  }
  keep_up();
  for (size_t node = 0; node < nodes_.size(); ++node) nodes_[node]->heal();
}

}  // namespace updraft::sim
