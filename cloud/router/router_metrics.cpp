// The router's metrics. See router_metrics.h.
#include "cloud/router/router_metrics.h"

#include <array>
#include <string>

#include "common/metrics/memory_metrics.h"

namespace updraft {
namespace {

// Indexed by 1 + ErrorCode.
constexpr std::array<const char*, RouterStats::kOutcomes> kOutcomes = {
    "ok",           "invalid_request", "context_length",    "unsupported",  "authentication",
    "forbidden",    "model_not_found", "payload_too_large", "rate_limited", "overloaded",
    "deadline",     "node_lost",       "cancelled",         "internal",     "rejected_too_long",
    "rejected_busy"};
static_assert(static_cast<size_t>(ErrorCode::kRejectedBusy) + 2 == kOutcomes.size(),
              "one name per error code");

const char* tier_label(size_t tier) {
  return tier == 0 ? "none" : tier_name(static_cast<Tier>(tier));
}

struct Plain {
  const char* name;
  const char* help;
  uint64_t (*count)(const RouterCore& core);
};
constexpr std::array<Plain, 13> kPlain = {{
    {"updraft_router_submitted_total", "requests taken in, from clients and from edges",
     [](const RouterCore& core) { return core.stats().submitted; }},
    {"updraft_router_retried_total",
     "requests placed anew after their node was lost, unseen by the client",
     [](const RouterCore& core) { return core.stats().retried; }},
    {"updraft_router_recounted_total",
     "requests placed anew because a node counted more tokens than it holds",
     [](const RouterCore& core) { return core.stats().recounted; }},
    {"updraft_router_bounced_total", "requests placed anew because a node was busy after all",
     [](const RouterCore& core) { return core.stats().bounced; }},
    {"updraft_router_protocol_faults_total", "streams of nodes that broke the protocol",
     [](const RouterCore& core) { return core.stats().protocol_faults; }},
    {"updraft_router_stale_messages_total",
     "messages about ended requests, older epochs or ended sessions, dropped",
     [](const RouterCore& core) { return core.stats().stale_messages; }},
    {"updraft_router_frames_refused_total", "frames of nodes that did not decode",
     [](const RouterCore& core) { return core.stats().frames_refused; }},
    {"updraft_router_connections_lost_total", "node connections found broken while sending",
     [](const RouterCore& core) { return core.stats().peers_gone; }},
    {"updraft_router_orphans_total", "streams that their node no longer knew",
     [](const RouterCore& core) { return core.stats().orphans; }},
    {"updraft_router_beats_total", "beats taken in",
     [](const RouterCore& core) { return core.registry().beats_taken(); }},
    {"updraft_router_beats_refused_total", "beats with figures that cannot be",
     [](const RouterCore& core) { return core.registry().beats_refused(); }},
    {"updraft_router_grants_refused_total", "grants of nodes, with figures that cannot be",
     [](const RouterCore& core) { return core.registry().credits_refused(); }},
    {"updraft_router_hellos_refused_total", "nodes that were not let into the pool",
     [](const RouterCore& core) { return core.registry().hellos_refused(); }},
}};

}  // namespace

const char* outcome_label(size_t outcome) { return kOutcomes[outcome]; }

void RouterMetrics::Follower::follow(uint64_t count) {
  if (count == shown) return;
  if (counter == nullptr) counter = &make();
  counter->add(static_cast<double>(count - shown));
  shown = count;
}

RouterMetrics::RouterMetrics(Metrics& metrics)
    : metrics_(metrics),
      queue_wait_(metrics.histogram(
          "updraft_router_queue_wait_seconds",
          "from a request's arrival to its first node, or to its end in the queue",
          {QueueWaits::kBounds.begin(), QueueWaits::kBounds.end()})),
      queue_depth_(metrics.gauge("updraft_router_queue_depth", "requests waiting for a node")),
      running_(metrics.gauge("updraft_router_requests_running",
                             "requests sent to a node and not ended")),
      breakers_open_(metrics.gauge("updraft_router_breakers_open",
                                   "nodes left alone for a while, per model, for failing")),
      evictions_frozen_(metrics.gauge(
          "updraft_router_evictions_frozen",
          "1 while many silent nodes are not given up, this router's own link being suspected")) {
  add_tables();
  for (const Plain& plain : kPlain) {
    Counter& counter = metrics_.counter(plain.name, plain.help);
    plain_.push_back({{}, &counter, 0});
  }
  Counter& keys = metrics_.counter("updraft_router_keys_refused_total",
                                   "connections and messages of keys that are not allowed");
  plain_.push_back({{}, &keys, 0});
  plain_.push_back({{}, &memory_refused(metrics_, "shed"), 0});
  plain_.push_back({{}, &memory_refused(metrics_, "refuse"), 0});
}

void RouterMetrics::add_tables() {
  for (size_t tier = 0; tier < RouterStats::kTiers; ++tier) {
    for (size_t outcome = 0; outcome < RouterStats::kOutcomes; ++outcome) {
      ended_.push_back({[this, tier, outcome]() -> Counter& {
                          return metrics_.counter(
                              "updraft_router_requests_total", "requests that have ended",
                              {{"tier", tier_label(tier)}, {"outcome", outcome_label(outcome)}});
                        },
                        nullptr, 0});
    }
    for (size_t reason = 0; reason < kReasonCount; ++reason) {
      dispatched_.push_back({[this, tier, reason]() -> Counter& {
                               return metrics_.counter(
                                   "updraft_router_dispatch_total",
                                   "requests sent to a node, and why there",
                                   {{"tier", tier_label(tier)},
                                    {"reason", reason_label(static_cast<Reason>(reason))}});
                             },
                             nullptr, 0});
    }
  }
  for (size_t outcome = 0; outcome < RouterStats::kOutcomes; ++outcome) {
    refused_.push_back({[this, outcome]() -> Counter& {
                          return metrics_.counter("updraft_router_rejected_total",
                                                  "requests ended before any node had started",
                                                  {{"code", outcome_label(outcome)}});
                        },
                        nullptr, 0});
  }
  for (const char* state : RouterCore::kNodeStates) {
    for (size_t tier = 0; tier < RouterStats::kTiers; ++tier) {
      Gauge* gauge = tier == 0 ? nullptr  // every node has a tier
                               : &metrics_.gauge("updraft_router_nodes", "nodes of the pool",
                                                 {{"state", state}, {"tier", tier_label(tier)}});
      nodes_.push_back(gauge);
    }
  }
}

void RouterMetrics::follow(const QueueWaits& waits) {
  std::vector<double> more(waits.counts.size());
  for (size_t i = 0; i < more.size(); ++i)
    more[i] = static_cast<double>(waits.counts[i] - waits_shown_.counts[i]);
  queue_wait_.add(more, waits.seconds - waits_shown_.seconds);
  waits_shown_ = waits;
}

void RouterMetrics::update(const RouterCore& core, uint64_t keys_refused) {
  const RouterStats& stats = core.stats();
  for (size_t tier = 0; tier < RouterStats::kTiers; ++tier) {
    for (size_t outcome = 0; outcome < RouterStats::kOutcomes; ++outcome) {
      ended_[tier * RouterStats::kOutcomes + outcome].follow(stats.ended[tier][outcome]);
    }
    for (size_t reason = 0; reason < kReasonCount; ++reason) {
      dispatched_[tier * kReasonCount + reason].follow(stats.dispatched[tier][reason]);
    }
  }
  for (size_t outcome = 0; outcome < RouterStats::kOutcomes; ++outcome)
    refused_[outcome].follow(stats.refused[outcome]);
  for (size_t i = 0; i < kPlain.size(); ++i) plain_[i].follow(kPlain[i].count(core));
  plain_[kPlain.size()].follow(keys_refused);
  for (const MemoryLevel level : {MemoryLevel::kShed, MemoryLevel::kRefuse}) {
    const auto at = static_cast<size_t>(level);
    plain_[kPlain.size() + at].follow(stats.memory_refused[at]);
  }
  const auto counts = core.count_nodes();
  for (size_t state = 0; state < counts.size(); ++state) {
    for (size_t tier = 1; tier < RouterStats::kTiers; ++tier) {
      nodes_[state * RouterStats::kTiers + tier]->set(static_cast<double>(counts[state][tier]));
    }
  }
  follow(stats.waits);
  queue_depth_.set(static_cast<double>(core.queued()));
  running_.set(static_cast<double>(core.dispatched()));
  breakers_open_.set(static_cast<double>(core.breakers_open()));
  evictions_frozen_.set(core.registry().frozen() ? 1.0 : 0.0);
}

}  // namespace updraft
