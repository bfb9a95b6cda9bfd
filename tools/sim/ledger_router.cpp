// What a router was told, and whether what it does is right by that.
#include <algorithm>

#include "common/base/clock.h"
#include "tools/sim/ledger.h"

namespace updraft::sim {
namespace {

// A node's silence is noticed by a sweep; the sweep comes with a tick.
constexpr int64_t kLeaseSlackNs = 200 * kNsPerMs;
constexpr int64_t kDispatchSlackNs = 60 * kNsPerMs;
// What the retries after a failure may add to the load: a tenth, after a first few.
constexpr double kRetryShare = 0.1;
constexpr double kRetriesFirst = 10.0;

std::string number(int64_t value) { return std::to_string(value); }

}  // namespace

void Ledger::on_router_start(int router, const RouterCoreConfig& config) {
  if (routers_.size() <= static_cast<size_t>(router))
    routers_.resize(static_cast<size_t>(router) + 1);
  routers_[static_cast<size_t>(router)] = Router{};
  routers_[static_cast<size_t>(router)].config = config;
}

void Ledger::note_live(Router& router, const Request& request, const std::string& origin) {
  ++router.submitted;
  Live live;
  live.model = request.model;
  live.origin = origin;
  live.local_only = request.hints.local_only;
  live.tier = request.hints.tier;
  live.choices = total_choices(request);
  if (request.hints.deadline_ms > 0)
    live.deadline_ns = world_.now_ns() + request.hints.deadline_ms * kNsPerMs;
  forget(router, request.id);
  router.live.emplace(request.id, std::move(live));
}

void Ledger::on_router_request(int router, const Request& request) {
  note_live(routers_[static_cast<size_t>(router)], request, {});
}

void Ledger::take_from_node(Router& router, Live& live) {
  if (live.node.empty()) return;
  if (const auto at = router.nodes.find(live.node); at != router.nodes.end())
    at->second.live_slots -= live.slots;
  live.node.clear();
}

void Ledger::forget(Router& router, const RequestId& id) {
  const auto found = router.live.find(id);
  if (found == router.live.end()) return;
  take_from_node(router, found->second);
  router.live.erase(found);
}

void Ledger::on_router_in(int number_of_router, const PeerInfo& from, const PoolMessage& message,
                          const RouterCore& core, uint64_t beat_seq_before, bool new_session) {
  Router& router = routers_[static_cast<size_t>(number_of_router)];
  router.in_node.clear();
  router.in_id.clear();
  router.in_epoch = 0;
  const Registry& registry = core.registry();
  const NodeIndex index = registry.find_peer(from.peer);
  if (const auto* hello = std::get_if<NodeHello>(&message)) {
    if (index == kNoNode || registry.node(index).hello.boot_epoch != hello->boot_epoch) return;
    NodeView& view = router.nodes[hello->node_id];
    const bool restarted = view.hello.boot_epoch != hello->boot_epoch;
    if (restarted) {
      view.draining = view.ready = false;
      router.drained.erase(hello->node_id);
    }
    router.by_peer.erase(view.peer);
    router.by_peer[from.peer] = hello->node_id;
    view.peer = from.peer;
    view.hello = *hello;
    if (new_session) {
      view.lease_ms = router.config.registry.lease_ms_max;
      view.live_slots = 0;  // whatever it had before is lost
      view.grants = false;
      view.credit_epoch = 0;
    }
    for (auto live = router.live.begin(); new_session && live != router.live.end();) {
      if (live->second.node == hello->node_id) live->second.node.clear();
      // What had risen from it has nobody left to hear its end.
      const auto at = live++;
      if (at->second.origin == hello->node_id) {
        take_from_node(router, at->second);
        router.live.erase(at);
      }
    }
  }
  const auto peer = router.by_peer.find(from.peer);
  if (peer == router.by_peer.end() || index == kNoNode) return;
  NodeView& view = router.nodes.at(peer->second);
  view.heard_ns = world_.now_ns();
  view.heard_paused_ns = paused_ns({false, number_of_router});
  router.in_node = peer->second;
  take_credit(view, message);
  if (const auto* beat = std::get_if<NodeBeat>(&message)) {
    if (beat->boot_epoch != view.hello.boot_epoch) return;
    if (registry.node(index).beat_seq < beat_seq_before) {
      world_.violate(invariant::kNewestBeat, "beat " + number(static_cast<int64_t>(beat->seq)) +
                                                 " of " + peer->second + " replaced beat " +
                                                 number(static_cast<int64_t>(beat_seq_before)));
    }
    if (registry.node(index).beat_seq != beat->seq) return;  // not taken
    view.slots_total = beat->slots_total;
    view.lease_ms = std::min(router.config.registry.lease_ms_max,
                             std::max(beat->lease_ttl_ms, 2 * std::max(10, beat->interval_ms)));
    view.ready = beat->state == NodeState::kReady;
    view.draining |= beat->state == NodeState::kDraining;
  } else if (std::holds_alternative<Drain>(message)) {
    view.draining = true;
  } else if (const auto* submit = std::get_if<Submit>(&message)) {
    if (!router.live.contains(submit->request.id)) note_live(router, submit->request, peer->second);
  } else if (const auto* cancel = std::get_if<Cancel>(&message)) {
    const auto live = router.live.find(cancel->id);
    if (live != router.live.end() && live->second.origin == peer->second)
      forget(router, cancel->id);
  } else if (const auto* tokens = std::get_if<Tokens>(&message)) {
    router.in_id = tokens->id;
    router.in_epoch = tokens->epoch;
  } else if (const auto* failed = std::get_if<Failed>(&message)) {
    const auto live = router.live.find(failed->id);
    if (live == router.live.end() || live->second.epoch != failed->epoch ||
        live->second.node != peer->second)
      return;
    live->second.failed_last = true;
    live->second.failed_at.emplace(peer->second, view.hello.boot_epoch);
    take_from_node(router, live->second);
  } else if (const auto* rejected = std::get_if<Rejected>(&message)) {
    const auto live = router.live.find(rejected->id);
    if (live == router.live.end() || live->second.epoch != rejected->epoch ||
        live->second.node != peer->second)
      return;
    ++live->second.rejections;
    take_from_node(router, live->second);
  }
}

void Ledger::on_router_out(int number_of_router, const PeerId& peer, const PoolMessage& message) {
  Router& router = routers_[static_cast<size_t>(number_of_router)];
  if (const auto* submit = std::get_if<Submit>(&message)) {
    check_dispatch(number_of_router, router, peer, *submit);
  } else if (const auto* cancel = std::get_if<Cancel>(&message)) {
    const auto live = router.live.find(cancel->id);
    if (live != router.live.end() && live->second.epoch == cancel->epoch)
      take_from_node(router, live->second);
  } else {
    // The end of a request that rose.
    const RequestId* id = nullptr;
    if (const auto* done = std::get_if<Done>(&message)) id = &done->id;
    if (const auto* failed = std::get_if<Failed>(&message)) id = &failed->id;
    if (const auto* rejected = std::get_if<Rejected>(&message)) id = &rejected->id;
    if (id != nullptr) forget(router, *id);
  }
}

void Ledger::take_credit(NodeView& view, const PoolMessage& message) {
  const Credit* credit = std::visit(
      [](const auto& m) -> const Credit* {
        if constexpr (requires { m.credit; }) return m.credit ? &*m.credit : nullptr;
        return nullptr;
      },
      message);
  if (credit == nullptr || credit->epoch <= view.credit_epoch) return;
  view.grants = true;
  view.credit_epoch = credit->epoch;
  view.slots_granted = credit->count;
  view.slots_sent = 0;
}

void Ledger::on_router_unsent(int number_of_router, const PeerId& peer, const Submit& submit) {
  Router& router = routers_[static_cast<size_t>(number_of_router)];
  const auto known = router.by_peer.find(peer);
  if (known == router.by_peer.end()) return;
  NodeView& view = router.nodes.at(known->second);
  view.slots_sent = std::max(0, view.slots_sent - submit.slots);
}

void Ledger::check_dispatch(int number_of_router, Router& router, const PeerId& peer,
                            const Submit& submit) {
  const RequestId& id = submit.request.id;
  const auto broken = [&](const char* name, const std::string& why) {
    world_.violate(name, "router " + number(number_of_router) + " sent request " + id + " (epoch " +
                             number(submit.epoch) + ") to peer " + peer + ": " + why);
  };
  const auto found = router.live.find(id);
  if (found == router.live.end())
    return broken(invariant::kOneEnd, "the request is over or was never asked");
  Live& live = found->second;
  const auto known = router.by_peer.find(peer);
  if (known == router.by_peer.end())
    return broken(invariant::kModel, "this connection has said no hello");
  const std::string& node_id = known->second;
  NodeView& view = router.nodes.at(node_id);
  const bool serves = std::any_of(view.hello.models.begin(), view.hello.models.end(),
                                  [&](const ModelInfo& model) { return model.id == live.model; });
  if (!serves || live.model != submit.request.model)
    broken(invariant::kModel, node_id + " does not serve " + live.model);
  if (submit.epoch <= live.epoch)
    broken(invariant::kOneEpoch, "its last epoch was " + number(live.epoch));
  const int64_t now_ns = world_.now_ns();
  if (live.deadline_ns > 0 && now_ns > live.deadline_ns + kDispatchSlackNs)
    broken(invariant::kDeadline,
           "its deadline was " + number((now_ns - live.deadline_ns) / kNsPerMs) + " ms ago");
  const int64_t excused_ns = paused_ns({false, number_of_router}) - view.heard_paused_ns;
  const int64_t silent_ns = now_ns - view.heard_ns - excused_ns;
  if (silent_ns > view.lease_ms * kNsPerMs + kLeaseSlackNs)
    broken(invariant::kLease, node_id + " was silent for " + number(silent_ns / kNsPerMs) +
                                  " ms, its lease is " + number(view.lease_ms));
  if (!view.ready) broken(invariant::kDraining, node_id + " has not said that it is ready");
  if (view.draining || router.drained.contains(node_id))
    broken(invariant::kDraining, node_id + " is draining");
  if (live.failed_at.contains({node_id, view.hello.boot_epoch}))
    broken(invariant::kExcluded, "it failed at " + node_id + " before");
  if ((live.local_only && view.hello.tier != Tier::kEdge) ||
      (live.tier != Tier::kAny && live.tier != view.hello.tier) || live.origin == node_id)
    broken(invariant::kHints, node_id + " is not where it may go");
  take_from_node(router, live);
  const int32_t reserve = view.hello.tier == Tier::kEdge ? router.config.edge_reserve_slots : 0;
  live.slots = std::clamp(live.choices, 1, std::max(1, view.slots_total - reserve));
  live.node = node_id;
  live.epoch = submit.epoch;
  view.live_slots += live.slots;
  view.slots_sent += submit.slots;
  // A grant that has run out may be used where nothing better is there; never a wider one.
  if (view.grants && view.slots_sent > view.slots_granted)
    broken(invariant::kGrant, node_id + " has granted " + number(view.slots_granted) +
                                  " slots and is given " + number(view.slots_sent));
  if (view.live_slots > view.slots_total)
    broken(invariant::kGrant, node_id + " has granted " + number(view.slots_total) +
                                  " slots and is given " + number(view.live_slots));
  ++live.dispatches;
  ++runs(number_of_router, node_id, id).sent;
  if (live.dispatches > 1 + router.config.retries_max + live.rejections)
    broken(invariant::kRetries, "it was sent " + number(live.dispatches) + " times");
  if (!std::exchange(live.failed_last, false)) return;
  ++router.failed_retries;
  const double allowed = kRetriesFirst + kRetryShare * static_cast<double>(router.submitted);
  if (static_cast<double>(router.failed_retries) > allowed + 1e-9)
    broken(invariant::kRetries, number(static_cast<int64_t>(router.failed_retries)) +
                                    " retries after failures of " +
                                    number(static_cast<int64_t>(router.submitted)) + " requests");
}

void Ledger::on_router_deliver(int number_of_router, ClientId client, const Event& event) {
  Router& router = routers_[static_cast<size_t>(number_of_router)];
  const auto ticket = open_.find(client);
  if (ticket == open_.end()) return;  // on_event() says so
  const RequestId& id = ticket->second.id;
  if (is_end(event)) return forget(router, id);
  if (!std::holds_alternative<TokenChunk>(event)) return;
  const auto live = router.live.find(id);
  if (live == router.live.end()) return;
  const bool other_node =
      !live->second.node.empty() && router.in_node != live->second.node;  // empty: see hellos
  if (router.in_id != id || router.in_epoch != live->second.epoch || other_node)
    world_.violate(invariant::kOneEpoch, "request " + id + " got tokens of epoch " +
                                             number(router.in_epoch) + " from '" + router.in_node +
                                             "', it is on '" + live->second.node +
                                             "' under epoch " + number(live->second.epoch));
}

void Ledger::on_router_drain(int router, const std::string& node_id) {
  routers_[static_cast<size_t>(router)].drained.insert(node_id);
}

void Ledger::on_node_work(int router, const std::string& node_id, const RequestId& id) {
  if (nodes_[node_id].memory == MemoryLevel::kRefuse)
    world_.violate(invariant::kMemory, node_id + " begins request " + id + " of router " +
                                           number(router) + ", its memory is almost full");
  Runs& entry = runs(router, node_id, id);
  if (++entry.begun <= entry.sent) return;
  world_.violate(invariant::kTwice, node_id + " begins request " + id + " of router " +
                                        number(router) + " for the " + number(entry.begun) +
                                        ". time, it was sent there " + number(entry.sent) +
                                        " times");
}

void Ledger::on_node_local(const std::string& node_id, const Request& request) {
  const MemoryLevel level = nodes_[node_id].memory;
  const bool urgent = request.hints.priority <= Priority::kInteractive;
  if (level == MemoryLevel::kNormal || (level == MemoryLevel::kShed && urgent)) return;
  world_.violate(invariant::kMemory, node_id + " begins its own request " + request.id +
                                         " at memory level " + memory_level_name(level));
}

void Ledger::on_router_idle(int number_of_router, const RouterCore& core) {
  const Router& router = routers_[static_cast<size_t>(number_of_router)];
  const auto queue_max = static_cast<size_t>(router.config.queue_max);
  if (core.queued() + core.dispatched() != core.live())
    world_.violate(invariant::kOnePlace,
                   number(static_cast<int64_t>(core.queued())) + " requests wait and " +
                       number(static_cast<int64_t>(core.dispatched())) + " are on nodes, of " +
                       number(static_cast<int64_t>(core.live())));
  if (core.queued() > queue_max) {
    // What a node had before may come back to a full queue.
    const auto returned = std::count_if(router.live.begin(), router.live.end(),
                                        [](const auto& e) { return e.second.dispatches > 0; });
    if (core.queued() > queue_max + static_cast<size_t>(returned))
      world_.violate(invariant::kCaps, number(static_cast<int64_t>(core.queued())) +
                                           " requests wait, at most " +
                                           number(router.config.queue_max) + " may");
  }
  if (core.live() > static_cast<size_t>(router.config.streams_max))
    world_.violate(invariant::kCaps, number(static_cast<int64_t>(core.live())) +
                                         " requests are live, at most " +
                                         number(router.config.streams_max) + " may be");
}

}  // namespace updraft::sim
