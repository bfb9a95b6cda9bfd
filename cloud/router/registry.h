// The router's table of nodes: who said hello, what each node last reported of itself, and what
// this router has assigned to it since. Soft state only, rebuilt from hellos and beats. Part of the
// pure core: time comes in as now_ns.
//
// The one idea: what a node reports and what the router assigned are kept apart. A beat replaces
// the report; assignments that the beat does not count yet (their sequence number is above
// last_assignment_seq) are subtracted on top of it.
//
// Owner: the thread that drives RouterCore.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/plant.h"
#include "common/base/result.h"
#include "common/message/node_status.h"
#include "common/message/service.h"

namespace updraft {

using PeerId = std::string;  // a connection of the pool's socket, opaque bytes
using NodeIndex = uint32_t;
using ModelIndex = uint32_t;
inline constexpr NodeIndex kNoNode = UINT32_MAX;
inline constexpr ModelIndex kNoModel = UINT32_MAX;

// A node across time: an index alone may be reused for another node later.
struct NodeRef {
  NodeIndex index = kNoNode;
  uint32_t generation = 0;
  bool operator==(const NodeRef&) const = default;
};

// By the age of the last beat, measured at arrival: FRESH < 3 intervals, SUSPECT < 10, then STALE;
// DEAD when nothing at all arrived within the lease.
enum class Freshness : uint8_t { kFresh, kSuspect, kStale, kDead };
const char* freshness_name(Freshness freshness);

// What placement reads for each candidate, packed: a pool of 100,000 nodes is scanned in this
// array.
struct NodeLoad {
  int64_t last_beat_ns =
      0;  // arrival of the last beat that was taken; of the hello before the first
  int64_t idle_since_ns = 0;    // since when its beats show no work at all; 0: they do
  int64_t last_heard_ns = 0;    // arrival of anything valid
  int64_t kv_tokens_total = 0;  // reported; 0: unknown, not a limit
  int64_t kv_tokens_free = 0;
  int64_t prefill_tokens_queued = 0;
  int64_t assigned_kv_tokens = 0;  // assigned by this router, not yet counted by a beat
  int64_t assigned_prefill_tokens = 0;
  int64_t returned_kv_tokens = 0;  // ended since the last beat, which still counts them
  // What the node has granted: slots up to the limit, counted over all Submits of this session.
  uint64_t credit_limit = 0;
  uint64_t credit_used = 0;
  int64_t credit_kv_tokens = 0;  // less what was sent since the node counted
  int64_t credit_until_ns = 0;
  int32_t interval_ms = 0;
  int32_t lease_ms = 0;
  int32_t slots_total = 0;
  int32_t slots_free = 0;  // reported free less the node's own waiting
  int32_t running = 0;
  int32_t waiting = 0;
  int32_t assigned_slots = 0;
  int32_t returned_slots = 0;
  int32_t live_slots = 0;             // all assignments of this router that have not ended
  float prefill_tokens_per_s = 0.0F;  // 0: unknown
  float decode_tokens_per_s = 0.0F;
  float rtt_s = 0.0F;               // to the node and back, as measured with its answers
  float uplink_bytes_per_s = 0.0F;  // towards it; 0: not measured
  float price = 0.0F;
  Tier tier = Tier::kAny;
  NodeState state = NodeState::kLoading;
  Freshness freshness = Freshness::kDead;  // as of the last sweep or beat
  bool draining = false;  // asked to drain, by itself or by an operator; until its next boot
  bool refused_until_beat = false;  // it refused work: nothing new before it reports again
  bool used = false;                // the slot holds a node
  bool grants = false;  // it gives credit; without, its free slots are taken for granted

  // Sequences there, those on their way included.
  int32_t requests() const { return running + waiting + assigned_slots; }
  // Takes new work as far as its state goes.
  bool takes_work() const {
    return used && (state == NodeState::kReady || UPDRAFT_PLANT(kDrainingServed)) &&
           (!draining || UPDRAFT_PLANT(kDrainingServed)) && freshness != Freshness::kDead;
  }
  // Silent for so long that it would be dead, were evictions not frozen: it keeps what it has and
  // gets nothing new.
  bool lease_over(int64_t now_ns) const {
    return now_ns - last_heard_ns >= lease_ms * kNsPerMs && !UPDRAFT_PLANT(kLeaseIgnored);
  }
  // What it granted has run out: it must report before it gets anything.
  bool lapsed(int64_t now_ns) const { return grants && now_ns >= credit_until_ns; }
  // Slots that this router may use now. lapsed_too: of a grant that has run out as well.
  int32_t free_slots(int64_t now_ns, bool lapsed_too = false) const {
    if (refused_until_beat) return 0;
    if (grants && !lapsed_too && lapsed(now_ns)) return 0;
    const int64_t open =
        grants && !UPDRAFT_PLANT(kGrantIgnored)
            ? static_cast<int64_t>(credit_limit - std::min(credit_limit, credit_used))
            : slots_free - assigned_slots + returned_slots;
    return static_cast<int32_t>(
        std::clamp<int64_t>(open, 0, std::max(0, slots_total - live_slots)));
  }
  // INT64_MAX when unknown.
  int64_t free_kv_tokens() const {
    if (kv_tokens_total == 0) return INT64_MAX;
    if (grants) return std::clamp<int64_t>(credit_kv_tokens, 0, kv_tokens_total);
    // An idle node can hold whatever its pages can: what it still shows as taken is its prefix
    // cache.
    if (running == 0 && waiting == 0 && live_slots == 0) return kv_tokens_total;
    const int64_t by_report = kv_tokens_free - assigned_kv_tokens + returned_kv_tokens;
    return std::clamp<int64_t>(by_report, 0, kv_tokens_total);
  }
};

// A node's place in a model's list.
struct Serving {
  NodeIndex node = kNoNode;
  int32_t context_tokens = 0;
  bool images = false;
  Tier tier = Tier::kAny;  // the node's
};

struct NodeChange {
  enum class Kind : uint8_t {
    kJoined,
    kReconnected,
    kRestarted,
    kReady,
    kSuspect,
    kStale,
    kFresh,
    kDraining,
    kLost,
    kRefused,
    kAbsurdBeat,
    kFrozen,  // no node in particular: evictions are frozen, or go on again
    kThawed
  };
  Kind kind = Kind::kJoined;
  std::string node_id;
  Tier tier = Tier::kAny;
  int64_t silent_ms = 0;  // kSuspect, kStale, kLost
  std::string detail;     // kRefused, kAbsurdBeat: why; kJoined: device
};
const char* node_change_name(NodeChange::Kind kind);

class Registry {
 public:
  struct Limits {
    int32_t lease_ms_max = 3000;  // whatever a node asks for
    int32_t models_per_node_max = 64;
    uint32_t models_max = 4096;         // distinct names
    int64_t forget_after_ms = 600'000;  // a dead node's entry
    // When more than this share of the nodes, and at least mass_nodes_min of them, fell silent
    // within one interval of each other, this router's own link is the likelier cause: for at most
    // freeze_ms_max none of them is given up.
    double mass_silent_share = 0.3;
    int32_t mass_nodes_min = 3;
    int64_t freeze_ms_max = 10'000;
  };
  explicit Registry(Limits limits) : limits_(limits) {}

  struct Node {
    uint32_t generation = 0;
    std::string key;   // authenticated public key: the identity
    std::string name;  // of the key in the allow-list
    PeerId peer;
    NodeHello hello;
    uint64_t beat_seq = 0;  // last taken
    bool beaten = false;    // a beat was taken in this boot
    bool announced_ready = false;
    bool resuming = false;      // draining, asked to go on
    uint64_t assigned_seq = 0;  // last given out
    uint64_t credit_epoch = 0;  // of the grant in force; 0: none yet
    struct Spent {
      uint64_t used = 0;  // of the session's slots, this one included
      int64_t kv_tokens = 0;
    };
    std::deque<Spent> spent;  // what the grant in force does not count yet
    uint64_t beats_refused = 0;
    int64_t refusal_noted_ns = 0;  // when a refused beat was reported last; 0: never
    struct Assignment {
      int64_t at_ns = 0;
      int64_t kv_tokens = 0;
      int64_t prefill_tokens = 0;
      int32_t slots = 0;
    };
    // Not yet counted by a beat; back() has assigned_seq, sequence numbers are consecutive. Ended
    // ones are zeroed in place.
    std::deque<Assignment> uncounted;
    struct Served {
      ModelIndex model = kNoModel;
      uint32_t position = 0;  // in the model's list
    };
    std::vector<Served> served;  // empty while dead
  };

  // Names of the keys that may connect: a node id equal to one of them belongs to that key.
  void set_allowed_names(const std::vector<std::string>& names) {
    allowed_names_ = {names.begin(), names.end()};
  }

  enum class HelloOutcome : uint8_t { kJoined, kUpdated, kReconnected, kRestarted, kOld, kRefused };
  struct HelloResult {
    HelloOutcome outcome = HelloOutcome::kRefused;
    NodeIndex node = kNoNode;
  };
  // A connection is a session: kRestarted and kReconnected mean that all work of the previous one
  // is lost, which the caller must settle after this returns.
  HelloResult on_hello(const PeerId& peer, const std::string& key, const std::string& name,
                       NodeHello hello, int64_t now_ns);

  // kUnknownPeer: no hello on this connection, or its lease was over, which ends the session too.
  enum class BeatOutcome : uint8_t { kTaken, kOld, kAbsurd, kUnknownPeer };
  BeatOutcome on_beat(const PeerId& peer, const NodeBeat& beat, int64_t now_ns, NodeIndex* node);
  // A grant that came with a beat or with the end of a request; older ones than the last change
  // nothing. False: one that cannot be, which changes nothing either.
  bool on_credit(NodeIndex node, const Credit& credit, int64_t now_ns);
  // A Submit that was counted as sent did not leave after all.
  void unsent(NodeIndex node, int32_t slots);

  NodeIndex find_peer(const PeerId& peer) const;
  NodeIndex find_id(const std::string& node_id) const;
  // A connection whose hello was refused.
  bool refused_peer(const PeerId& peer) const { return refused_peers_.contains(peer); }
  void heard(NodeIndex node, int64_t now_ns) { loads_[node].last_heard_ns = now_ns; }

  // Recomputes freshness. Nodes whose lease is over become dead, leave the models' lists and are
  // appended to `lost`.
  void sweep(int64_t now_ns, std::vector<NodeIndex>& lost);
  // Evictions are frozen: this router's own link is under suspicion.
  bool frozen() const { return frozen_since_ns_ > 0; }
  // This process stood still for so long until now: that silence is not the nodes'. Who has been
  // heard since is as silent as it is.
  void forgive(int64_t pause_ns, int64_t now_ns);

  // A request and the answer to it spent so long on the way.
  void measured_way(NodeIndex node, double seconds, int64_t payload_bytes);
  // Takes capacity from a node; returns the assignment's sequence number.
  uint64_t assign(NodeIndex node, int32_t slots, int64_t kv_tokens, int64_t prefill_tokens,
                  int64_t now_ns);
  // Ends an assignment. give_back: the node has finished with it, so it has room before its next
  // beat says so.
  void release(NodeIndex node, uint64_t seq, int32_t slots, int64_t kv_tokens, bool give_back);
  void forget_assignments(NodeIndex node);
  void refuse_until_beat(NodeIndex node) { loads_[node].refused_until_beat = true; }
  // Its connection has ended. It stays known until it says hello on another one or its lease is
  // over.
  void disconnect(NodeIndex node);
  void set_draining(NodeIndex node);
  // Its next beat that says it is ready ends the draining.
  void resume(NodeIndex node) { nodes_[node].resuming = loads_[node].draining; }

  ModelIndex find_model(const std::string& id) const;
  ModelIndex model_count() const { return static_cast<ModelIndex>(models_.size()); }
  const std::vector<Serving>& serving(ModelIndex model) const { return models_[model].serving; }
  // The node's place in the model's list, or nullptr when it does not serve it.
  const Serving* find_serving(ModelIndex model, NodeIndex node) const;
  const std::string& model_id(ModelIndex model) const { return models_[model].info.id; }
  // Prompt text bytes per token of a model: learned from counted prompts, else the nodes' own
  // average, else 3.
  float bytes_per_token(ModelIndex model) const;
  void learn_tokens(ModelIndex model, int64_t text_bytes, int64_t tokens);
  bool ever_joined() const { return ever_joined_; }
  // The widest context among nodes of this model that were lost within the last forget_after_ms; 0:
  // none.
  int32_t lost_context_tokens(ModelIndex model, int64_t now_ns) const;

  // Models that at least one live node which takes work serves; the widest context of each.
  std::vector<ModelInfo> pool_models() const;
  // Grows when what nodes could serve at all may have changed: who is there and takes work, and how
  // wide each is. Not with their load.
  uint64_t shape_version() const { return shape_version_; }
  // Grows when pool_models() may have changed.
  uint64_t models_version() const { return models_version_; }

  const Node& node(NodeIndex index) const { return nodes_[index]; }
  const NodeLoad& load(NodeIndex index) const { return loads_[index]; }
  NodeRef ref(NodeIndex index) const { return {index, nodes_[index].generation}; }
  bool same(NodeRef ref) const {
    return ref.index < loads_.size() && loads_[ref.index].used &&
           nodes_[ref.index].generation == ref.generation;
  }
  NodeIndex node_slots() const { return static_cast<NodeIndex>(loads_.size()); }
  Freshness freshness_at(const NodeLoad& load, int64_t now_ns) const;

  std::vector<NodeChange> take_changes() { return std::exchange(changes_, {}); }
  uint64_t beats_taken() const { return beats_taken_; }
  uint64_t beats_refused() const { return beats_refused_; }
  uint64_t beats_old() const { return beats_old_; }
  uint64_t hellos_refused() const { return hellos_refused_; }
  uint64_t credits_refused() const { return credits_refused_; }

 private:
  struct Model {
    ModelInfo info;  // as announced last; the id never changes
    std::vector<Serving> serving;
    float learned_bytes_per_token = 0.0F;
    float reported_bytes_per_token = 0.0F;
    int32_t lost_context_tokens = 0;
    int64_t lost_at_ns = 0;
  };

  NodeIndex new_slot();
  void free_slot(NodeIndex index);
  Result<void> check_hello(const std::string& key, const std::string& name,
                           const NodeHello& hello) const;
  void take_hello(NodeIndex index, const PeerId& peer, NodeHello hello, int64_t now_ns);
  void reset_load(NodeIndex index, int64_t now_ns);
  void serve(NodeIndex index);
  void unserve(NodeIndex index);
  void forget_credit(NodeIndex index);
  void count_assignments(NodeIndex index, uint64_t counted_seq, int64_t now_ns);
  void report_model_rates(const Node& node, const NodeBeat& beat);
  void note(NodeChange::Kind kind, NodeIndex index, int64_t silent_ns = 0, std::string detail = {});
  void refuse_hello(const PeerId& peer, const NodeHello& hello, const std::string& why);
  void set_freshness(NodeIndex index, Freshness freshness, int64_t now_ns);
  void remember_contexts(NodeIndex index, int64_t now_ns);
  bool many_fell_silent(int64_t now_ns) const;
  bool evictions_frozen(int64_t now_ns);

  const Limits limits_;
  std::vector<NodeLoad> loads_;  // [node]
  std::deque<Node> nodes_;       // [node]
  std::vector<NodeIndex> free_slots_;
  std::unordered_map<std::string, NodeIndex> by_key_;
  std::unordered_map<std::string, NodeIndex> by_peer_;
  std::unordered_map<std::string, NodeIndex> by_id_;
  std::unordered_map<std::string, ModelIndex> model_by_id_;
  std::vector<Model> models_;
  std::unordered_set<std::string> allowed_names_;
  std::unordered_map<std::string, std::string> refused_peers_;  // peer -> why, bounded
  std::vector<NodeChange> changes_;
  uint64_t models_version_ = 0;
  uint64_t beats_taken_ = 0;
  uint64_t shape_version_ = 0;
  uint64_t beats_refused_ = 0;
  uint64_t beats_old_ = 0;
  uint64_t hellos_refused_ = 0;
  uint64_t credits_refused_ = 0;
  bool ever_joined_ = false;
  int64_t frozen_since_ns_ = 0;  // 0: not frozen
  bool freeze_spent_ = false;    // lasted its longest; not again before most nodes are heard
};

// Nothing, or the first field of a beat that cannot be, with its value.
Result<void> check_beat(const NodeBeat& beat);

}  // namespace updraft
