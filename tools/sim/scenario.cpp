// See the header.
#include "tools/sim/scenario.h"

#include <algorithm>

#include "common/base/clock.h"

namespace updraft::sim {
namespace {

class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed ^ 0x5CE7A210) {}

  Scenario scenario() {
    Scenario s;
    draw_size();
    draw_models(s);
    draw_nodes(s);
    draw_router(s);
    draw_network(s);
    draw_workload(s);
    draw_faults(s);
    s.name = std::to_string(s.nodes.size()) + " nodes, " + std::to_string(s.router_count) +
             " routers, " + name_;
    return s;
  }

 private:
  int32_t number(int64_t low, int64_t high) {
    return static_cast<int32_t>(random_.between(low, high));
  }
  // With this probability a value between, else 0.
  double maybe(double probability, double low, double high) {
    const bool on = random_.chance(probability);
    const double value = random_.uniform(low, high);
    return on ? value : 0.0;
  }

  void draw_size() {
    const double size = random_.uniform();
    node_count_ = size < 0.75 ? number(1, 4) : size < 0.97 ? number(5, 12) : number(20, 60);
    calm_ = random_.chance(0.15);
    rolling_ = random_.chance(0.1);
  }

  void draw_models(Scenario& s) {
    const int32_t count = random_.chance(0.3) ? 2 : 1;
    for (int32_t i = 0; i < count; ++i) {
      SimModel model;
      model.id = "model-" + std::to_string(i);
      model.digest = "digest-" + std::to_string(i);
      model.bytes_per_token = number(2, 6);
      model.answer_tokens_mean = number(3, 20);
      s.models.push_back(model);
    }
  }

  void draw_nodes(Scenario& s) {
    const double edge_share = random_.uniform();
    for (int32_t i = 0; i < node_count_; ++i) {
      const bool edge = random_.chance(edge_share);
      NodeSpec node;
      node.id = (edge ? "edge-" : "cloud-") + std::to_string(i);
      node.tier = edge ? Tier::kEdge : Tier::kCloud;
      node.model = number(0, static_cast<int64_t>(s.models.size()) - 1);
      node.beat_interval_ms = number(100, edge ? 500 : 300);
      node.lease_ttl_ms = number(4 * node.beat_interval_ms, 3000);
      node.answer_timeout_ms = number(3000, 15'000);
      if (!calm_) node.silence_timeout_ms = number(20'000, 60'000);
      node.upward_max = random_.chance(0.1) ? number(1, 4) : 256;
      node.load_ns = number(0, 500) * kNsPerMs;
      EngineSpec& engine = node.engine;
      engine.slots = edge ? number(1, 3) : number(1, 8);
      engine.queue_max = random_.chance(0.2) ? number(0, 4) : 16;
      engine.context_tokens = edge ? number(128, 512) : number(256, 4096);
      engine.page_tokens = random_.chance(0.5) ? 16 : 32;
      engine.kv_tokens = static_cast<int32_t>(engine.context_tokens *
                                              (1.0 + random_.uniform() * (engine.slots - 1)));
      if (!edge && random_.chance(0.4)) engine.kv_swap_tokens = number(1, 2) * engine.kv_tokens;
      engine.prefill_tokens_per_s = edge ? number(60, 1500) : number(1000, 20'000);
      engine.decode_tokens_per_s = edge ? number(8, 60) : number(20, 150);
      engine.decode_tokens_per_s_full =
          engine.decode_tokens_per_s * random_.uniform(1.0, std::max(1.1, 0.9 * engine.slots));
      engine.step_tokens_max = std::max(
          engine.slots + 16, std::min(512, static_cast<int32_t>(engine.prefill_tokens_per_s / 3)));
      engine.draft_share = maybe(0.3, 0.05, 0.5);
      if (!calm_ && random_.chance(0.25)) {
        engine.fail_first = maybe(0.6, 0.05, 1.0);
        engine.fail_midway = maybe(0.3, 0.05, 0.5);
        engine.refuse = maybe(0.3, 0.05, 0.8);
      }
      s.nodes.push_back(node);
    }
  }

  void draw_router(Scenario& s) {
    const double many = random_.uniform();
    s.router_count = many < 0.85 ? 1 : many < 0.95 ? 2 : 3;
    RouterCoreConfig& config = s.router;
    config.queue_max = random_.chance(0.3) ? number(1, 8) : number(16, 256);
    config.queue_timeout_ms = number(1000, 8000);
    config.edge_reserve_slots = random_.chance(0.2) ? 1 : 0;
    config.answer_tokens_assumed = number(8, 64);
    config.streams_max = random_.chance(0.1) ? number(4, 30) : 4096;
    config.retries_max = random_.chance(0.2) ? number(0, 3) : 2;
    config.orphan_grace_ms = number(1000, 5000);
    config.arrival_grace_ms = number(3000, 10'000);
    config.sessions_max = random_.chance(0.2) ? 2 : 1024;
    config.registry.lease_ms_max = number(1500, 3000);
  }

  void draw_network(Scenario& s) {
    NetworkConfig& network = s.network;
    const bool slow = random_.chance(0.5);
    network.delay_min_ns = (slow ? number(5, 30) : 0) * kNsPerMs + number(50, 500) * kNsPerUs;
    network.delay_max_ns = network.delay_min_ns + number(0, slow ? 70 : 2) * kNsPerMs;
    network.detect_ns = random_.chance(0.2) ? 0 : 3 * kNsPerSecond;
    network.pipe_bytes_max = static_cast<size_t>(number(64, 4096)) << 10;
    if (!calm_) {
      // A relay in between that loses and repeats frames is a harsher world than TCP.
      network.loss = maybe(0.3, 0.0, 0.3);
      network.replay = maybe(0.3, 0.0, 0.5);
    }
    s.drift_ppm_max = calm_ ? 0 : number(0, 500);
  }

  void draw_workload(Scenario& s) {
    Workload& w = s.workload;
    double capacity = 0.0;  // answers per second
    for (const NodeSpec& node : s.nodes) {
      const SimModel& model = s.models[static_cast<size_t>(node.model)];
      capacity += node.engine.decode_tokens_per_s_full / model.answer_tokens_mean;
    }
    w.requests_per_s = std::clamp(capacity * random_.uniform(0.1, 2.5), 0.5, 30.0);
    s.busy_ns = number(3000, 12'000) * kNsPerMs;
    w.edge_share = maybe(0.5, 0.1, 0.9);
    w.cancel_share = maybe(0.4, 0.05, 0.4);
    w.cancel_after_ms_max = number(50, 4000);
    w.deadline_share = maybe(0.6, 0.2, 1.0);
    w.deadline_ms_min = number(50, 500);
    w.deadline_ms_max = w.deadline_ms_min + number(100, 8000);
    w.session_share = maybe(0.5, 0.2, 1.0);
    w.session_count = number(1, 10);
    w.tenant_count = number(1, 5);
    w.tier_share = maybe(0.3, 0.05, 0.5);
    w.local_only_share = maybe(0.2, 0.05, 0.3);
    w.priority_share = maybe(0.5, 0.1, 0.8);
    w.seed_share = random_.uniform();
    w.choices_share = maybe(0.3, 0.05, 0.4);
    w.ids_share = maybe(0.3, 0.05, 0.5);
    w.ignore_end_share = maybe(0.3, 0.05, 0.3);
    w.limit_share = random_.uniform(0.3, 1.0);
    w.max_tokens_max = number(4, 60);
    w.unknown_model_share = maybe(0.1, 0.02, 0.1);
    w.long_share = maybe(0.6, 0.05, 0.4);
    w.short_bytes_mean = number(30, 400);
    w.long_bytes_max = number(1000, 12'000);
    w.huge_share = random_.chance(0.04) ? 0.05 : 0.0;
  }

  void draw_faults(Scenario& s) {
    FaultRates& f = s.faults;
    f.down_ms_max = number(300, 6000);
    f.drain_grace_ms = number(200, 4000);
    if (calm_) {
      s.calm = true;
      name_ = "calm";
      if (rolling_) {
        // A drain with enough time for what runs costs nobody anything.
        name_ = "calm, rolling restarts";
        f.node_drain = 0.4;
        f.drain_grace_ms = 120'000;
      }
      return;
    }
    name_ = s.network.loss > 0 || s.network.replay > 0 ? "faults, lossy" : "faults";
    f.clog = maybe(0.4, 0.1, 1.0);
    f.cut = maybe(0.3, 0.05, 0.5);
    f.one_way_cut = maybe(0.3, 0.05, 0.5);
    f.reset = maybe(0.3, 0.05, 0.7);
    f.node_crash = maybe(0.4, 0.05, 0.5);
    f.node_pause = maybe(0.3, 0.05, 0.5);
    f.router_crash = maybe(0.15, 0.02, 0.2);
    f.router_pause = maybe(0.2, 0.05, 0.3);
    f.operator_drain = maybe(0.2, 0.05, 0.3);
    f.node_drain = maybe(0.2, 0.05, 0.3);
    f.slowness = maybe(0.3, 0.1, 0.5);
    f.clock_step_share = maybe(0.3, 0.2, 0.8);
    f.memory = maybe(0.25, 0.1, 0.6);
  }

  Random random_;
  int32_t node_count_ = 1;
  bool calm_ = false;
  bool rolling_ = false;
  std::string name_;
};

}  // namespace

Scenario scenario_of_seed(uint64_t seed) { return Draw(seed).scenario(); }

Scenario scenario_of_size(int32_t node_count) {
  Scenario s;
  s.models.push_back({"model-0", "digest-0", 4, 24});
  const int32_t cloud_count = std::max(1, node_count / 1000);
  for (int32_t i = 0; i < node_count; ++i) {
    const bool edge = i >= cloud_count;
    NodeSpec node;
    node.id = (edge ? "edge-" : "cloud-") + std::to_string(i);
    node.tier = edge ? Tier::kEdge : Tier::kCloud;
    node.beat_interval_ms = edge ? 250 : 100;
    EngineSpec& engine = node.engine;
    engine.slots = edge ? 2 : 64;
    engine.context_tokens = edge ? 1024 : 32'768;
    engine.page_tokens = 128;
    engine.kv_tokens = engine.context_tokens * 2;
    engine.prefill_tokens_per_s = edge ? 600 : 20'000;
    engine.decode_tokens_per_s = edge ? 30 : 120;
    engine.decode_tokens_per_s_full = edge ? 45 : 5000;
    s.nodes.push_back(std::move(node));
  }
  s.router.queue_max = 16'384;
  s.network.delay_min_ns = 5 * kNsPerMs;
  s.network.delay_max_ns = 30 * kNsPerMs;
  s.workload.requests_per_s = 200.0;
  s.workload.edge_share = 0.3;
  s.workload.session_share = 0.3;
  s.workload.session_count = 1000;
  s.workload.deadline_share = 0.2;
  s.workload.deadline_ms_min = 2000;
  s.faults.node_crash = static_cast<double>(node_count) / 10'000.0;
  s.faults.reset = static_cast<double>(node_count) / 5'000.0;
  s.faults.clog = static_cast<double>(node_count) / 5'000.0;
  s.busy_ns = 8 * kNsPerSecond;
  s.start_spread_ns = 2 * kNsPerSecond;
  s.name = std::to_string(node_count) + " nodes";
  return s;
}

}  // namespace updraft::sim
