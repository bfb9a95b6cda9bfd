// See the header.
#include "tools/sim/simulation.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <memory>
#include <utility>

#include "common/base/clock.h"
#include "common/message/request_check.h"
#include "tools/sim/clients.h"
#include "tools/sim/faults.h"

namespace updraft::sim {
namespace {

constexpr int64_t kLookNs = 100 * kNsPerMs;
constexpr int64_t kRestNsMax = 60 * kNsPerSecond;
constexpr int64_t kProbeNsMax = 60 * kNsPerSecond;
constexpr int64_t kWideNsMax = 120 * kNsPerSecond;

// Of the running simulation, for report_aborts().
const World* g_world = nullptr;
uint64_t g_seed = 0;

class Simulation {
 public:
  Simulation(const Scenario& scenario, uint64_t seed, const RunOptions& options)
      : scenario_(scenario),
        options_(options),
        world_(seed, options.print_trace),
        ledger_(world_),
        network_(world_, scenario.network),
        faults_(world_, network_, scenario_, routers_, nodes_) {
    if (scenario.calm) ledger_.expect_calm();
    for (int router = 0; router < scenario.router_count; ++router) {
      RouterCoreConfig config = scenario.router;
      config.router_id = "router-" + std::to_string(router);
      routers_.push_back(std::make_unique<SimRouter>(world_, network_, ledger_, config, router));
      network_.add_router(*routers_.back());
      if (options.measure_placements) routers_.back()->measure_placements(placements_us_);
    }
    for (const NodeSpec& spec : scenario.nodes)
      nodes_.push_back(std::make_unique<SimNode>(world_, network_, ledger_, spec, scenario.models,
                                                 scenario.router_count));
    clients_ = std::make_unique<Clients>(world_, ledger_, scenario_, routers_, nodes_);
    g_world = &world_;
    g_seed = seed;
  }
  ~Simulation() { g_world = nullptr; }
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;

  Report run(uint64_t seed) {
    live();
    if (!world_.broken()) come_to_rest();
    if (!world_.broken()) probe();
    Report report;
    report.seed = seed;
    report.scenario = scenario_.name;
    report.hash = world_.trace.hash();
    report.event_count = world_.trace.event_count();
    report.simulated_ns = world_.now_ns();
    report.requests = ledger_.ticket_count();
    report.outcomes = ledger_.outcomes();
    for (const Outcome& outcome : report.outcomes) report.finished += outcome.finished ? 1 : 0;
    if (world_.broken()) {
      report.violation = world_.violations().front();
      report.last_events = world_.trace.last_events();
    }
    report.placements_us = std::move(placements_us_);
    report.cloud_busy_share = busy_share(Tier::kCloud);
    report.edge_busy_share = busy_share(Tier::kEdge);
    return report;
  }

 private:
  void live() {
    faults_.start_all();
    clients_->run_until(scenario_.busy_ns);
    faults_.run_until(scenario_.busy_ns);
    while (world_.now_ns() < scenario_.busy_ns && !world_.broken()) {
      world_.run_until(std::min(world_.now_ns() + kLookNs, scenario_.busy_ns));
      look();
    }
    busy_s_until_ = static_cast<double>(world_.now_ns()) / kNsPerSecond;
    remember_busy();
  }

  void come_to_rest() {
    faults_.heal();
    const int64_t until_ns = world_.now_ns() + scenario_.heal_ns_max;
    while (ledger_.open_count() > 0 && world_.now_ns() < until_ns && !world_.broken()) step();
    if (world_.broken()) return;
    if (ledger_.open_count() > 0) {
      world_.violate(invariant::kHeal, std::to_string(ledger_.open_count()) +
                                           " requests have no end " +
                                           std::to_string(scenario_.heal_ns_max / kNsPerSecond) +
                                           " s after the faults: " + ledger_.describe_open());
      return;
    }
    rest();
  }

  void rest() {
    const int64_t rest_ns = world_.now_ns() + kRestNsMax;
    std::string left = what_is_left();
    while (!left.empty() && world_.now_ns() < rest_ns && !world_.broken()) {
      step();
      left = what_is_left();
    }
    if (!left.empty())
      world_.violate(left.find("pages") == std::string::npos ? invariant::kRest : invariant::kPages,
                     "with nothing left to do: " + left);
  }

  // The healed pool answers at every router, for every model. A refusal for want of room is an
  // answer that may come while another router has the node's grant, not the last one.
  void probe() {
    const int64_t until_ns = world_.now_ns() + kProbeNsMax;
    for (int router = 0; router < scenario_.router_count; ++router) {
      for (size_t model = 0; model < scenario_.models.size(); ++model) {
        if (!served(static_cast<int32_t>(model))) continue;
        while (!answers(router, static_cast<int>(model), until_ns)) {
          if (world_.broken()) return;
        }
      }
    }
    rest();
    for (int router = 0; router < scenario_.router_count && !world_.broken(); ++router) {
      for (size_t model = 0; model < scenario_.models.size() && !world_.broken(); ++model)
        ask_wide(router, static_cast<int>(model));
    }
    if (!world_.broken()) rest();
  }

  // A request that takes all slots of a node at once has its turn, while every other router keeps
  // the model busy with small ones. It may be refused for want of room, but not for ever.
  void ask_wide(int router, int model) {
    int32_t slots = 0;
    for (const NodeSpec& node : scenario_.nodes) {
      const int32_t reserved = node.tier == Tier::kEdge ? scenario_.router.edge_reserve_slots : 0;
      if (node.model == model) slots = std::max(slots, node.engine.slots - reserved);
    }
    if (slots < 2) return;
    slots = std::min({slots, scenario_.router.choices_max, RequestLimits::kChoices});
    const int64_t until_ns = world_.now_ns() + kWideNsMax;
    std::vector<ClientId> small(routers_.size());
    ClientId wide = clients_->probe(router, model, slots);
    while (!world_.broken()) {
      for (int other = 0; other < scenario_.router_count; ++other) {
        ClientId& one = small[static_cast<size_t>(other)];
        if (other != router && !ledger_.is_open(one)) one = clients_->probe(other, model);
      }
      step();
      if (ledger_.is_open(wide)) continue;
      const auto outcome = std::find_if(ledger_.outcomes().rbegin(), ledger_.outcomes().rend(),
                                        [&](const Outcome& o) { return o.client == wide; });
      if (outcome->finished) break;
      const bool for_room =
          outcome->error == ErrorCode::kOverloaded || outcome->error == ErrorCode::kRateLimited;
      if (!for_room || world_.now_ns() > until_ns) {
        world_.violate(invariant::kWide, "a request for " + std::to_string(slots) +
                                             " answers of model " + std::to_string(model) +
                                             " at router " + std::to_string(router) +
                                             " is refused for ever, at last with code " +
                                             std::to_string(static_cast<int>(outcome->error)));
        return;
      }
      wide = clients_->probe(router, model, slots);
    }
    while (ledger_.open_count() > 0 && !world_.broken() && world_.now_ns() <= until_ns) step();
  }

  bool served(int32_t model) const {
    return std::any_of(scenario_.nodes.begin(), scenario_.nodes.end(), [&](const NodeSpec& node) {
      const int32_t reserved = node.tier == Tier::kEdge ? scenario_.router.edge_reserve_slots : 0;
      return node.model == model && node.engine.slots > reserved;
    });
  }

  bool answers(int router, int model, int64_t until_ns) {
    clients_->probe(router, model);
    while (ledger_.open_count() > 0 && world_.now_ns() <= until_ns && !world_.broken()) step();
    if (world_.broken()) return false;
    if (ledger_.open_count() > 0) {
      world_.violate(invariant::kHeal, "a probe has no end: " + ledger_.describe_open());
      return false;
    }
    const Outcome& outcome = ledger_.outcomes().back();
    if (outcome.finished) return true;
    if (outcome.error != ErrorCode::kOverloaded || world_.now_ns() > until_ns)
      world_.violate(invariant::kHeal, "the healed pool refused a request for model " +
                                           std::to_string(model) + " at router " +
                                           std::to_string(router) + " with code " +
                                           std::to_string(static_cast<int>(outcome.error)));
    return false;
  }

  void step() {
    world_.run_until(world_.now_ns() + kLookNs);
    look();
  }

  // Between two events: what is not seen at any one message.
  void look() {
    if (options_.on_time) options_.on_time(world_.now_ns());
    // Looking at every page of a large pool each time would take longer than all else.
    const size_t stride = 1 + nodes_.size() / 64;
    for (size_t node = looks_++ % stride; node < nodes_.size(); node += stride) {
      if (!nodes_[node]->running()) continue;
      const std::string pages = nodes_[node]->engine()->check_pages();
      if (!pages.empty()) world_.violate(invariant::kPages, pages);
      const std::string caps = nodes_[node]->check_caps();
      if (!caps.empty()) world_.violate(invariant::kCaps, caps);
    }
  }

  std::string what_is_left() const {
    for (const auto& node : nodes_) {
      if (!node->welcomed_by_all()) return node->spec().id + " has not joined";
      const std::string left = node->what_is_left();
      if (!left.empty()) return node->spec().id + ": " + left;
    }
    for (const auto& router : routers_) {
      const std::string left = left_at(*router);
      if (!left.empty()) return "router-" + std::to_string(router->number()) + ": " + left;
    }
    return {};
  }

  std::string left_at(const SimRouter& router) const {
    if (!router.running()) return "is not running";
    const RouterCore& core = router.core();
    if (core.live() > 0 || core.queued() > 0 || core.dispatched() > 0)
      return std::to_string(core.live()) + " live requests, " + std::to_string(core.queued()) +
             " in the queue, " + std::to_string(core.dispatched()) + " on nodes";
    const Registry& registry = core.registry();
    size_t fresh = 0;
    for (NodeIndex index = 0; index < registry.node_slots(); ++index) {
      const NodeLoad& load = registry.load(index);
      if (!load.used || load.freshness != Freshness::kFresh) continue;
      ++fresh;
      const std::string& id = registry.node(index).hello.node_id;
      if (!load.takes_work()) return id + " takes no work";
      if (load.live_slots != 0 || load.assigned_slots != 0 || load.assigned_kv_tokens != 0 ||
          load.assigned_prefill_tokens != 0)
        return id + " still has " + std::to_string(load.live_slots) + " live and " +
               std::to_string(load.assigned_slots) + " uncounted slots, " +
               std::to_string(load.assigned_kv_tokens) + " KV tokens assigned";
    }
    return fresh == nodes_.size() ? std::string()
                                  : std::to_string(fresh) + " of " + std::to_string(nodes_.size()) +
                                        " nodes are fresh";
  }

  void remember_busy() {
    for (const auto& node : nodes_) {
      if (!node->running()) continue;
      auto& [busy_s, count] = node->spec().tier == Tier::kCloud ? cloud_busy_ : edge_busy_;
      busy_s += node->engine()->busy_s();
      ++count;
    }
  }
  double busy_share(Tier tier) const {
    const auto& [busy_s, count] = tier == Tier::kCloud ? cloud_busy_ : edge_busy_;
    return count == 0 || busy_s_until_ <= 0.0 ? 0.0 : busy_s / count / busy_s_until_;
  }

  const Scenario& scenario_;
  const RunOptions& options_;
  World world_;
  Ledger ledger_;
  Network network_;
  std::vector<std::unique_ptr<SimRouter>> routers_;
  std::vector<std::unique_ptr<SimNode>> nodes_;
  Faults faults_;
  std::unique_ptr<Clients> clients_;
  std::vector<double> placements_us_;
  uint64_t looks_ = 0;
  double busy_s_until_ = 0.0;
  std::pair<double, int> cloud_busy_;
  std::pair<double, int> edge_busy_;
};

void on_abort(int) {
  if (g_world == nullptr) return;
  std::fprintf(stderr, "the program under test gave up in seed %llu at %.6f s; the last events:\n",
               static_cast<unsigned long long>(g_seed),
               static_cast<double>(g_world->now_ns()) / kNsPerSecond);
  for (const std::string& line : g_world->trace.last_events())
    std::fprintf(stderr, "%s\n", line.c_str());
}

}  // namespace

Report simulate(const Scenario& scenario, uint64_t seed, const RunOptions& options) {
  Simulation simulation(scenario, seed, options);
  return simulation.run(seed);
}

// The handler runs on the thread that failed a check, at a place where nothing is half-written
// that it reads; abort() ends the process when it returns.
void report_aborts() { std::signal(SIGABRT, on_abort); }

}  // namespace updraft::sim
