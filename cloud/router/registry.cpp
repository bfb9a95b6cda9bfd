// Node table of the router's core: hellos, beats, ageing and the ledger of assignments. See
// registry.h.
#include "cloud/router/registry.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "common/base/bytes.h"
#include "common/base/clock.h"
#include "common/base/plant.h"

namespace updraft {
namespace {

constexpr float kDefaultBytesPerToken = 3.0F;
// Averages outside this range come from tiny prompts, where the chat template outweighs the text.
constexpr float kBytesPerTokenMin = 1.0F;
constexpr float kBytesPerTokenMax = 12.0F;
constexpr int64_t kLearnTextBytesMin = 256;
// A node that never reports last_assignment_seq: its beats count an assignment after this long.
constexpr int64_t kCountedAfterNs = 2 * kNsPerSecond;
constexpr int64_t kKvTokensMax = 1'000'000'000'000;
constexpr int32_t kCreditMsMax = 60'000;
constexpr uint64_t kSlotsCountedMax = uint64_t{1} << 62;
// Faster than any node is: who claims more would only draw everything to itself.
constexpr float kPrefillTokensPerSMost = 2e6F;
constexpr float kDecodeTokensPerSMost = 2e4F;
constexpr size_t kRefusedPeersMax = 4096;
// A node that sends nonsense sends it with every beat: one line of its log in ten seconds.
constexpr int64_t kRefusalNotedEveryNs = 10 * kNsPerSecond;
constexpr size_t kChangesMax = 65536;
constexpr int32_t kFirstIntervalMs = 250;  // until the first beat names one

Error absurd(const char* field, double value) {
  return fail(std::string(field) + " = " + std::to_string(value));
}

}  // namespace

const char* freshness_name(Freshness freshness) {
  switch (freshness) {
    case Freshness::kFresh:
      return "fresh";
    case Freshness::kSuspect:
      return "suspect";
    case Freshness::kStale:
      return "stale";
    case Freshness::kDead:
      return "dead";
  }
  return "unknown";
}

const char* node_change_name(NodeChange::Kind kind) {
  switch (kind) {
    case NodeChange::Kind::kJoined:
      return "node joined";
    case NodeChange::Kind::kReconnected:
      return "node reconnected";
    case NodeChange::Kind::kRestarted:
      return "node restarted";
    case NodeChange::Kind::kReady:
      return "node ready";
    case NodeChange::Kind::kSuspect:
      return "node suspect";
    case NodeChange::Kind::kStale:
      return "node stale";
    case NodeChange::Kind::kFresh:
      return "node fresh";
    case NodeChange::Kind::kDraining:
      return "node draining";
    case NodeChange::Kind::kLost:
      return "node lost";
    case NodeChange::Kind::kRefused:
      return "node refused";
    case NodeChange::Kind::kAbsurdBeat:
      return "beat refused";
    case NodeChange::Kind::kFrozen:
      return "evictions frozen";
    case NodeChange::Kind::kThawed:
      return "evictions go on";
  }
  return "node";
}

Result<void> check_credit(const Credit& credit, int32_t slots_total) {
  if (credit.count < 0 || credit.count > slots_total) return absurd("credit.count", credit.count);
  if (credit.kv_tokens < 0 || credit.kv_tokens > kKvTokensMax)
    return absurd("credit.kv_tokens", static_cast<double>(credit.kv_tokens));
  if (credit.ttl_ms < 1 || credit.ttl_ms > kCreditMsMax)
    return absurd("credit.ttl_ms", credit.ttl_ms);
  if (credit.first > kSlotsCountedMax)
    return absurd("credit.first", static_cast<double>(credit.first));
  return {};
}

Result<void> check_beat(const NodeBeat& beat) {
  const auto within = [](double value, double low, double high) {
    return value >= low && value <= high;
  };
  if (!within(beat.interval_ms, 1, 60'000)) return absurd("interval_ms", beat.interval_ms);
  if (!within(beat.lease_ttl_ms, 1, 3'600'000)) return absurd("lease_ttl_ms", beat.lease_ttl_ms);
  if (!within(beat.slots_total, 0, 65'536)) return absurd("slots_total", beat.slots_total);
  if (!within(beat.slots_free, 0, beat.slots_total)) return absurd("slots_free", beat.slots_free);
  if (!within(beat.running, 0, 1e6)) return absurd("running", beat.running);
  if (!within(beat.waiting, 0, 1e6)) return absurd("waiting", beat.waiting);
  if (!within(static_cast<double>(beat.kv_tokens_total), 0, 1e12)) {
    return absurd("kv_tokens_total", static_cast<double>(beat.kv_tokens_total));
  }
  if (beat.kv_tokens_free < 0 || beat.kv_tokens_free > beat.kv_tokens_total) {
    return absurd("kv_tokens_free", static_cast<double>(beat.kv_tokens_free));
  }
  if (!within(static_cast<double>(beat.prefill_tokens_queued), 0, 1e12)) {
    return absurd("prefill_tokens_queued", static_cast<double>(beat.prefill_tokens_queued));
  }
  if (!within(static_cast<double>(beat.decode_tokens_reserved), 0, 1e12)) {
    return absurd("decode_tokens_reserved", static_cast<double>(beat.decode_tokens_reserved));
  }
  // The comparisons are false for NaN.
  if (!within(beat.prefill_tokens_per_s, 0, 1e9))
    return absurd("prefill_tokens_per_s", beat.prefill_tokens_per_s);
  if (!within(beat.decode_tokens_per_s, 0, 1e9))
    return absurd("decode_tokens_per_s", beat.decode_tokens_per_s);
  if (!within(beat.bytes_per_token, 0, 1e6)) return absurd("bytes_per_token", beat.bytes_per_token);
  return beat.credit ? check_credit(*beat.credit, beat.slots_total) : Result<void>();
}

Freshness Registry::freshness_at(const NodeLoad& load, int64_t now_ns) const {
  if (load.lease_over(now_ns)) return Freshness::kDead;
  const int64_t age_ns = now_ns - load.last_beat_ns;
  const int64_t interval_ns = load.interval_ms * kNsPerMs;
  if (age_ns < 3 * interval_ns) return Freshness::kFresh;
  return age_ns < 10 * interval_ns ? Freshness::kSuspect : Freshness::kStale;
}

// --- hellos ---

Result<void> Registry::check_hello(const std::string& key, const std::string& name,
                                   const NodeHello& hello) const {
  if (hello.protocol_version != kPoolProtocolVersion) {
    return fail("protocol version " + std::to_string(hello.protocol_version) +
                ", this router speaks " + std::to_string(kPoolProtocolVersion));
  }
  if (!is_node_id(hello.node_id)) {
    return fail("node id '" + printable(hello.node_id) + "' is not 1 to 64 of a-z, 0-9 and -");
  }
  if (hello.tier != Tier::kEdge && hello.tier != Tier::kCloud)
    return fail("its tier is neither edge nor cloud");
  if (hello.models.size() > static_cast<size_t>(limits_.models_per_node_max)) {
    return fail(std::to_string(hello.models.size()) + " models, at most " +
                std::to_string(limits_.models_per_node_max));
  }
  size_t names_new = 0;
  for (const ModelInfo& model : hello.models) {
    if (model.id.empty() || model.id.size() > 256)
      return fail("a model name of " + std::to_string(model.id.size()) + " bytes");
    if (model.context_tokens <= 0) {
      return fail("model '" + printable(model.id) + "' with a context of " +
                  std::to_string(model.context_tokens) + " tokens");
    }
    names_new += model_by_id_.contains(model.id) ? 0 : 1;
  }
  if (models_.size() + names_new > limits_.models_max) {
    return fail("the pool would serve more than " + std::to_string(limits_.models_max) +
                " model names");
  }
  if (hello.node_id != name && allowed_names_.contains(hello.node_id)) {
    return fail("node id '" + hello.node_id + "' is the name of another key, not of '" + name +
                "'");
  }
  // The key is the identity; an id is a label that one key holds at a time.
  const NodeIndex holder = find_id(hello.node_id);
  if (holder != kNoNode && nodes_[holder].key != key &&
      loads_[holder].freshness != Freshness::kDead) {
    return fail("node id '" + hello.node_id + "' is in use by another key");
  }
  return {};
}

void Registry::refuse_hello(const PeerId& peer, const NodeHello& hello, const std::string& why) {
  ++hellos_refused_;
  if (refused_peers_.size() >= kRefusedPeersMax) refused_peers_.clear();
  if (!refused_peers_.emplace(peer, why).second) return;
  if (changes_.size() < kChangesMax) {
    changes_.push_back({NodeChange::Kind::kRefused, printable(hello.node_id), hello.tier, 0, why});
  }
}

Registry::HelloResult Registry::on_hello(const PeerId& peer, const std::string& key,
                                         const std::string& name, NodeHello hello, int64_t now_ns) {
  if (Result<void> good = check_hello(key, name, hello); !good) {
    refuse_hello(peer, hello, good.message());
    return {HelloOutcome::kRefused, kNoNode};
  }
  refused_peers_.erase(peer);
  HelloOutcome outcome = HelloOutcome::kJoined;
  NodeIndex index = kNoNode;
  if (const auto known = by_key_.find(key); known != by_key_.end()) {
    index = known->second;
    const Node& node = nodes_[index];
    // An older life speaks only as long as the newer one may: a machine whose clock was set back
    // comes in when the lease of its last life is over.
    const bool alive = loads_[index].freshness != Freshness::kDead || UPDRAFT_PLANT(kClockSetBack);
    if (hello.boot_epoch < node.hello.boot_epoch && alive) {
      return {HelloOutcome::kOld, index};
    }
    if (hello.boot_epoch != node.hello.boot_epoch) {
      outcome = HelloOutcome::kRestarted;
    } else {
      outcome = node.peer == peer ? HelloOutcome::kUpdated : HelloOutcome::kReconnected;
    }
  } else {
    index = new_slot();
    nodes_[index].key = key;
    by_key_.emplace(key, index);
  }
  nodes_[index].name = name;
  const bool was_dead = loads_[index].freshness == Freshness::kDead;
  const bool fresh_start =
      outcome == HelloOutcome::kJoined || outcome == HelloOutcome::kRestarted || was_dead;
  // A drain ends with the node's life or by an operator, not with a silence.
  const bool drained = loads_[index].draining && outcome != HelloOutcome::kRestarted;
  if (fresh_start) reset_load(index, now_ns);
  loads_[index].draining = drained && !UPDRAFT_PLANT(kDrainForgotten);
  take_hello(index, peer, std::move(hello), now_ns);
  ever_joined_ = true;
  const std::string& device = nodes_[index].hello.device;
  if (was_dead) {
    note(NodeChange::Kind::kJoined, index, 0, device);
  } else if (outcome == HelloOutcome::kRestarted) {
    note(NodeChange::Kind::kRestarted, index, 0, device);
  } else if (outcome == HelloOutcome::kReconnected) {
    note(NodeChange::Kind::kReconnected, index);
  }
  return {outcome, index};
}

void Registry::take_hello(NodeIndex index, const PeerId& peer, NodeHello hello, int64_t now_ns) {
  Node& node = nodes_[index];
  unserve(index);
  if (node.peer != peer) {
    by_peer_.erase(node.peer);
    // A routing id that an older connection had is this node's now.
    if (const auto taken = by_peer_.find(peer); taken != by_peer_.end())
      nodes_[taken->second].peer.clear();
    node.peer = peer;
    by_peer_[peer] = index;
  }
  if (node.hello.node_id != hello.node_id) {
    if (const auto held = by_id_.find(node.hello.node_id);
        held != by_id_.end() && held->second == index) {
      by_id_.erase(held);
    }
  }
  if (const auto held = by_id_.find(hello.node_id); held != by_id_.end() && held->second != index) {
    free_slot(held->second);  // dead, as check_hello made sure
  }
  by_id_[hello.node_id] = index;
  node.hello = std::move(hello);
  forget_credit(index);  // each hello begins the node's count anew
  NodeLoad& load = loads_[index];
  load.tier = node.hello.tier;
  load.price = node.hello.price;
  load.last_heard_ns = now_ns;
  serve(index);
}

// A node of which nothing is known yet but that it is there.
void Registry::reset_load(NodeIndex index, int64_t now_ns) {
  forget_assignments(index);
  Node& node = nodes_[index];
  node.beat_seq = 0;
  node.beaten = false;
  node.announced_ready = false;
  NodeLoad load;
  load.used = true;
  load.last_beat_ns = load.last_heard_ns = now_ns;
  load.interval_ms = kFirstIntervalMs;
  load.lease_ms = limits_.lease_ms_max;
  load.freshness = Freshness::kFresh;
  loads_[index] = load;
}

NodeIndex Registry::new_slot() {
  if (!free_slots_.empty()) {
    const NodeIndex index = free_slots_.back();
    free_slots_.pop_back();
    return index;
  }
  nodes_.emplace_back();
  loads_.emplace_back();
  return static_cast<NodeIndex>(nodes_.size() - 1);
}

void Registry::free_slot(NodeIndex index) {
  unserve(index);
  Node& node = nodes_[index];
  by_key_.erase(node.key);
  if (const auto it = by_peer_.find(node.peer); it != by_peer_.end() && it->second == index)
    by_peer_.erase(it);
  if (const auto it = by_id_.find(node.hello.node_id); it != by_id_.end() && it->second == index)
    by_id_.erase(it);
  const uint32_t generation = node.generation + 1;
  node = Node{};
  node.generation = generation;
  loads_[index] = NodeLoad{};
  free_slots_.push_back(index);
}

// --- beats ---

Registry::BeatOutcome Registry::on_beat(const PeerId& peer, const NodeBeat& beat, int64_t now_ns,
                                        NodeIndex* node_out) {
  const NodeIndex index = find_peer(peer);
  *node_out = index;
  if (index == kNoNode || loads_[index].freshness == Freshness::kDead)
    return BeatOutcome::kUnknownPeer;
  Node& node = nodes_[index];
  if (beat.boot_epoch != node.hello.boot_epoch ||
      (node.beaten && beat.seq <= node.beat_seq && !UPDRAFT_PLANT(kStaleBeat))) {
    ++beats_old_;
    return BeatOutcome::kOld;
  }
  if (Result<void> good = check_beat(beat); !good) {
    ++beats_refused_;
    ++node.beats_refused;
    if (node.refusal_noted_ns == 0 || now_ns - node.refusal_noted_ns >= kRefusalNotedEveryNs) {
      node.refusal_noted_ns = now_ns;
      note(NodeChange::Kind::kAbsurdBeat, index, 0, good.message());
    }
    return BeatOutcome::kAbsurd;
  }
  ++beats_taken_;
  node.beaten = true;
  node.beat_seq = beat.seq;
  NodeLoad& load = loads_[index];
  const bool took_work = load.takes_work();
  load.last_beat_ns = load.last_heard_ns = now_ns;
  load.interval_ms = std::max(10, beat.interval_ms);
  load.lease_ms = std::min(limits_.lease_ms_max, std::max(beat.lease_ttl_ms, 2 * load.interval_ms));
  if (load.state != beat.state || load.slots_total != beat.slots_total ||
      load.kv_tokens_total != beat.kv_tokens_total) {
    ++shape_version_;
  }
  load.state = beat.state;
  load.slots_total = beat.slots_total;
  load.slots_free = std::max(0, beat.slots_free - beat.waiting);
  load.running = beat.running;
  load.waiting = beat.waiting;
  load.kv_tokens_total = beat.kv_tokens_total;
  load.kv_tokens_free = beat.kv_tokens_free;
  const bool idle = beat.running == 0 && beat.waiting == 0;
  if (!idle) load.idle_since_ns = 0;
  if (idle && load.idle_since_ns == 0) load.idle_since_ns = now_ns;
  load.prefill_tokens_queued = beat.prefill_tokens_queued;
  load.prefill_tokens_per_s = std::min(beat.prefill_tokens_per_s, kPrefillTokensPerSMost);
  load.decode_tokens_per_s = std::min(beat.decode_tokens_per_s, kDecodeTokensPerSMost);
  load.returned_slots = 0;
  load.returned_kv_tokens = 0;
  load.refused_until_beat = false;
  if (beat.credit) {
    on_credit(index, *beat.credit, now_ns);
  } else {
    load.grants = false;
  }
  count_assignments(index, beat.last_assignment_seq, now_ns);
  report_model_rates(node, beat);
  set_freshness(index, Freshness::kFresh, now_ns);
  if (beat.state == NodeState::kReady && !node.announced_ready) {
    node.announced_ready = true;
    note(NodeChange::Kind::kReady, index);
  }
  if (beat.state == NodeState::kDraining && !node.resuming) set_draining(index);
  if (beat.state == NodeState::kReady && node.resuming) {
    node.resuming = load.draining = false;
    ++shape_version_;
    note(NodeChange::Kind::kReady, index);
  }
  if (took_work != load.takes_work()) ++models_version_;
  return BeatOutcome::kTaken;
}

bool Registry::on_credit(NodeIndex index, const Credit& credit, int64_t now_ns) {
  Node& node = nodes_[index];
  NodeLoad& load = loads_[index];
  if (!check_credit(credit, load.slots_total)) {
    ++credits_refused_;
    return false;
  }
  if (credit.epoch <= node.credit_epoch) return true;
  node.credit_epoch = credit.epoch;
  load.grants = true;
  load.credit_limit = credit.first + static_cast<uint64_t>(credit.count);
  load.credit_until_ns = now_ns + credit.ttl_ms * kNsPerMs;
  // Submits of which the node will never hear were cut off with what they were part of: nothing of
  // this router's is there, so nothing is under way but what the node has counted.
  if (load.live_slots == 0) load.credit_used = credit.first;
  load.credit_used = std::max(load.credit_used, credit.first);
  load.credit_kv_tokens = credit.kv_tokens;
  while (!node.spent.empty() && (load.live_slots == 0 || node.spent.front().used <= credit.first)) {
    node.spent.pop_front();
  }
  for (const Node::Spent& spent : node.spent) load.credit_kv_tokens -= spent.kv_tokens;
  return true;
}

// A node that has granted before gets nothing until it grants anew.
void Registry::forget_credit(NodeIndex index) {
  nodes_[index].credit_epoch = 0;
  nodes_[index].spent.clear();
  NodeLoad& load = loads_[index];
  load.credit_limit = load.credit_used = 0;
  load.credit_kv_tokens = load.credit_until_ns = 0;
}

void Registry::unsent(NodeIndex index, int32_t slots) {
  NodeLoad& load = loads_[index];
  load.credit_used -= std::min(load.credit_used, static_cast<uint64_t>(slots));
  std::deque<Node::Spent>& spent = nodes_[index].spent;
  if (spent.empty()) return;
  load.credit_kv_tokens += spent.back().kv_tokens;
  spent.pop_back();
}

void Registry::report_model_rates(const Node& node, const NodeBeat& beat) {
  if (!(beat.bytes_per_token >= kBytesPerTokenMin && beat.bytes_per_token <= kBytesPerTokenMax)) {
    return;
  }
  // One average cannot speak for several models; names of one file are one model.
  for (const ModelInfo& model : node.hello.models) {
    if (model.digest != node.hello.models[0].digest) return;
  }
  for (const Node::Served& served : node.served) {
    float& average = models_[served.model].reported_bytes_per_token;
    average =
        average == 0.0F ? beat.bytes_per_token : average + 0.05F * (beat.bytes_per_token - average);
  }
}

// --- ageing ---

void Registry::set_freshness(NodeIndex index, Freshness freshness, int64_t now_ns) {
  NodeLoad& load = loads_[index];
  if (load.freshness == freshness) return;
  if (freshness == Freshness::kDead || load.freshness == Freshness::kDead) ++shape_version_;
  load.freshness = freshness;
  const int64_t silent_ns = now_ns - load.last_heard_ns;
  switch (freshness) {
    case Freshness::kFresh:
      note(NodeChange::Kind::kFresh, index);
      break;
    case Freshness::kSuspect:
      note(NodeChange::Kind::kSuspect, index, silent_ns);
      break;
    case Freshness::kStale:
      note(NodeChange::Kind::kStale, index, silent_ns);
      break;
    case Freshness::kDead:
      note(NodeChange::Kind::kLost, index, silent_ns);
      break;
  }
}

// Of the nodes that are silent past their suspicion, how many fell silent together with the one
// that has been so for the longest?
bool Registry::many_fell_silent(int64_t now_ns) const {
  int64_t oldest_ns = std::numeric_limits<int64_t>::max();
  int32_t alive = 0;
  for (const NodeLoad& load : loads_) {
    if (!load.used || load.freshness == Freshness::kDead) continue;
    ++alive;
    if (freshness_at(load, now_ns) != Freshness::kFresh)
      oldest_ns = std::min(oldest_ns, load.last_heard_ns);
  }
  int32_t together = 0;
  for (const NodeLoad& load : loads_) {
    if (!load.used || load.freshness == Freshness::kDead) continue;
    if (freshness_at(load, now_ns) == Freshness::kFresh) continue;
    const int64_t interval_ns = std::clamp(load.interval_ms, 100, 1000) * kNsPerMs;
    if (load.last_heard_ns - oldest_ns <= interval_ns) ++together;
  }
  return together >= limits_.mass_nodes_min && together > limits_.mass_silent_share * alive;
}

bool Registry::evictions_frozen(int64_t now_ns) {
  const bool many = many_fell_silent(now_ns);
  if (!many) freeze_spent_ = false;
  const bool over = frozen() && now_ns - frozen_since_ns_ >= limits_.freeze_ms_max * kNsPerMs;
  freeze_spent_ |= over;
  const bool freeze = many && !freeze_spent_;
  if (freeze == frozen()) return freeze;
  frozen_since_ns_ = freeze ? now_ns : 0;
  if (changes_.size() < kChangesMax) {
    changes_.push_back(
        {freeze ? NodeChange::Kind::kFrozen : NodeChange::Kind::kThawed, "*", Tier::kAny, 0, {}});
  }
  return freeze;
}

void Registry::sweep(int64_t now_ns, std::vector<NodeIndex>& lost) {
  // Asked only when somebody's lease is over.
  std::optional<bool> frozen_now;
  if (frozen()) frozen_now = evictions_frozen(now_ns);
  for (NodeIndex index = 0; index < loads_.size(); ++index) {
    NodeLoad& load = loads_[index];
    if (!load.used) continue;
    if (load.freshness == Freshness::kDead) {
      if (now_ns - load.last_heard_ns >= limits_.forget_after_ms * kNsPerMs) free_slot(index);
      continue;
    }
    Freshness freshness = freshness_at(load, now_ns);
    if (freshness == load.freshness) continue;
    if (freshness == Freshness::kDead) {
      if (!frozen_now) frozen_now = evictions_frozen(now_ns);
      if (*frozen_now) freshness = Freshness::kStale;
      if (freshness == load.freshness) continue;
    }
    set_freshness(index, freshness, now_ns);
    if (freshness != Freshness::kDead) continue;
    remember_contexts(index, now_ns);
    unserve(index);
    forget_assignments(index);
    lost.push_back(index);
  }
}

void Registry::remember_contexts(NodeIndex index, int64_t now_ns) {
  for (const Node::Served& served : nodes_[index].served) {
    Model& model = models_[served.model];
    const int32_t context_tokens = model.serving[served.position].context_tokens;
    if (context_tokens < lost_context_tokens(served.model, now_ns)) continue;
    model.lost_context_tokens = context_tokens;
    model.lost_at_ns = now_ns;
  }
}

int32_t Registry::lost_context_tokens(ModelIndex index, int64_t now_ns) const {
  const Model& model = models_[index];
  return now_ns - model.lost_at_ns < limits_.forget_after_ms * kNsPerMs ? model.lost_context_tokens
                                                                        : 0;
}

void Registry::forgive(int64_t pause_ns, int64_t now_ns) {
  for (NodeLoad& load : loads_) {
    load.last_beat_ns = std::min(now_ns, load.last_beat_ns + pause_ns);
    load.last_heard_ns = std::min(now_ns, load.last_heard_ns + pause_ns);
  }
}

void Registry::set_draining(NodeIndex index) {
  NodeLoad& load = loads_[index];
  nodes_[index].resuming = false;
  if (load.draining) return;
  if (load.takes_work()) ++models_version_;
  load.draining = true;
  ++shape_version_;
  note(NodeChange::Kind::kDraining, index);
}

// --- the way to a node ---

// Small requests show how long the way is, large ones how wide.
void Registry::measured_way(NodeIndex index, double seconds, int64_t payload_bytes) {
  constexpr int64_t kSmallBytes = 16 * 1024;
  constexpr int64_t kLargeBytes = 256 * 1024;
  constexpr double kRttMostS = 5.0;
  NodeLoad& load = loads_[index];
  if (seconds < 0.0) return;
  if (payload_bytes <= kSmallBytes) {
    const auto sample = static_cast<float>(std::min(seconds, kRttMostS));
    // A queue on the way makes it longer now and then, nothing makes it shorter.
    const float part = load.rtt_s == 0.0F ? 1.0F : (sample < load.rtt_s ? 0.5F : 0.1F);
    load.rtt_s += part * (sample - load.rtt_s);
  } else if (payload_bytes >= kLargeBytes) {
    const double alone_s = std::max(1e-4, seconds - static_cast<double>(load.rtt_s));
    const auto sample = static_cast<float>(static_cast<double>(payload_bytes) / alone_s);
    const float part = load.uplink_bytes_per_s == 0.0F ? 1.0F : 0.3F;
    load.uplink_bytes_per_s += part * (sample - load.uplink_bytes_per_s);
  }
}

// --- the ledger ---

uint64_t Registry::assign(NodeIndex index, int32_t slots, int64_t kv_tokens, int64_t prefill_tokens,
                          int64_t now_ns) {
  Node& node = nodes_[index];
  NodeLoad& load = loads_[index];
  node.uncounted.push_back({now_ns, kv_tokens, prefill_tokens, slots});
  load.assigned_slots += slots;
  load.assigned_kv_tokens += kv_tokens;
  load.assigned_prefill_tokens += prefill_tokens;
  load.live_slots += slots;
  if (load.grants) {
    load.credit_used += static_cast<uint64_t>(slots);
    load.credit_kv_tokens -= kv_tokens;
    node.spent.push_back({load.credit_used, kv_tokens});
  }
  return ++node.assigned_seq;
}

void Registry::release(NodeIndex index, uint64_t seq, int32_t slots, int64_t kv_tokens,
                       bool give_back) {
  Node& node = nodes_[index];
  NodeLoad& load = loads_[index];
  load.live_slots = std::max(0, load.live_slots - slots);
  const uint64_t first_uncounted = node.assigned_seq - node.uncounted.size() + 1;
  if (seq < first_uncounted) {
    if (give_back) {
      load.returned_slots += slots;
      load.returned_kv_tokens += kv_tokens;
    }
    return;
  }
  if (!give_back) return;  // stays charged until a beat has counted it
  Node::Assignment& entry = node.uncounted[seq - first_uncounted];
  load.assigned_slots -= entry.slots;
  load.assigned_kv_tokens -= entry.kv_tokens;
  load.assigned_prefill_tokens -= entry.prefill_tokens;
  entry.slots = 0;
  entry.kv_tokens = entry.prefill_tokens = 0;
}

void Registry::count_assignments(NodeIndex index, uint64_t counted_seq, int64_t now_ns) {
  Node& node = nodes_[index];
  NodeLoad& load = loads_[index];
  if (counted_seq > node.assigned_seq) counted_seq = 0;  // speaks of another router's numbers
  while (!node.uncounted.empty()) {
    const Node::Assignment& oldest = node.uncounted.front();
    const uint64_t seq = node.assigned_seq - node.uncounted.size() + 1;
    if (seq > counted_seq && now_ns - oldest.at_ns < kCountedAfterNs) break;
    load.assigned_slots -= oldest.slots;
    load.assigned_kv_tokens -= oldest.kv_tokens;
    load.assigned_prefill_tokens -= oldest.prefill_tokens;
    node.uncounted.pop_front();
  }
}

void Registry::disconnect(NodeIndex index) {
  by_peer_.erase(nodes_[index].peer);
  nodes_[index].peer.clear();
  forget_assignments(index);
  refuse_until_beat(index);
}

void Registry::forget_assignments(NodeIndex index) {
  nodes_[index].uncounted.clear();
  forget_credit(index);
  NodeLoad& load = loads_[index];
  load.assigned_slots = load.returned_slots = load.live_slots = 0;
  load.assigned_kv_tokens = load.assigned_prefill_tokens = load.returned_kv_tokens = 0;
}

// --- models ---

void Registry::serve(NodeIndex index) {
  Node& node = nodes_[index];
  UPDRAFT_CHECK(node.served.empty());
  for (const ModelInfo& info : node.hello.models) {
    const auto [it, is_new] =
        model_by_id_.try_emplace(info.id, static_cast<ModelIndex>(models_.size()));
    if (is_new) models_.emplace_back();
    const ModelIndex model_index = it->second;
    const bool listed =
        std::any_of(node.served.begin(), node.served.end(),
                    [&](const Node::Served& served) { return served.model == model_index; });
    if (listed) continue;  // announced twice in one hello
    Model& model = models_[model_index];
    model.info = info;
    node.served.push_back({model_index, static_cast<uint32_t>(model.serving.size())});
    model.serving.push_back({index, info.context_tokens, info.images, node.hello.tier});
  }
  ++models_version_;
  ++shape_version_;
}

void Registry::unserve(NodeIndex index) {
  Node& node = nodes_[index];
  if (node.served.empty()) return;
  for (const Node::Served& served : node.served) {
    std::vector<Serving>& list = models_[served.model].serving;
    list[served.position] = list.back();
    list.pop_back();
    if (served.position == list.size()) continue;
    for (Node::Served& moved : nodes_[list[served.position].node].served) {
      if (moved.model == served.model) moved.position = served.position;
    }
  }
  node.served.clear();
  ++models_version_;
  ++shape_version_;
}

std::vector<ModelInfo> Registry::pool_models() const {
  std::vector<ModelInfo> out;
  for (const Model& model : models_) {
    ModelInfo info;
    for (const Serving& serving : model.serving) {
      if (!loads_[serving.node].takes_work()) continue;
      if (info.context_tokens < serving.context_tokens) {
        for (const ModelInfo& served : nodes_[serving.node].hello.models) {
          if (served.id != model.info.id) continue;
          const bool images = info.images;
          info = served;
          info.images |= images;
        }
      }
      info.images |= serving.images;
    }
    if (info.context_tokens > 0) out.push_back(std::move(info));
  }
  return out;
}

ModelIndex Registry::find_model(const std::string& id) const {
  const auto it = model_by_id_.find(id);
  return it == model_by_id_.end() ? kNoModel : it->second;
}

const Serving* Registry::find_serving(ModelIndex model, NodeIndex node) const {
  for (const Node::Served& served : nodes_[node].served) {
    if (served.model == model) return &models_[model].serving[served.position];
  }
  return nullptr;
}

float Registry::bytes_per_token(ModelIndex index) const {
  const Model& model = models_[index];
  if (model.learned_bytes_per_token > 0.0F) return model.learned_bytes_per_token;
  if (model.reported_bytes_per_token > 0.0F) return std::min(model.reported_bytes_per_token, 6.0F);
  return kDefaultBytesPerToken;
}

void Registry::learn_tokens(ModelIndex index, int64_t text_bytes, int64_t tokens) {
  if (text_bytes < kLearnTextBytesMin || tokens <= 0) return;
  const float measured = static_cast<float>(text_bytes) / static_cast<float>(tokens);
  const float sample = std::clamp(measured, 0.25F, kBytesPerTokenMax);
  float& average = models_[index].learned_bytes_per_token;
  average = average == 0.0F ? sample : average + 0.2F * (sample - average);
}

NodeIndex Registry::find_peer(const PeerId& peer) const {
  const auto it = by_peer_.find(peer);
  return it == by_peer_.end() ? kNoNode : it->second;
}

NodeIndex Registry::find_id(const std::string& node_id) const {
  const auto it = by_id_.find(node_id);
  return it == by_id_.end() ? kNoNode : it->second;
}

void Registry::note(NodeChange::Kind kind, NodeIndex index, int64_t silent_ns, std::string detail) {
  if (changes_.size() >= kChangesMax) return;
  const NodeHello& hello = nodes_[index].hello;
  changes_.push_back({kind, hello.node_id, hello.tier, silent_ns / kNsPerMs, std::move(detail)});
}

}  // namespace updraft
