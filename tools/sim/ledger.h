// What must hold, whatever happens: the simulation's book of all requests and of what each router
// was told and did. It believes no word of the programs under test: it sees requests at their
// entrance, events at the client, and messages at the routers' sockets.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cloud/router/core.h"
#include "tools/sim/content.h"
#include "tools/sim/world.h"

namespace updraft::sim {

namespace invariant {
inline constexpr const char* kOneEnd = "one end";          // each accepted id ends exactly once
inline constexpr const char* kOracle = "oracle";           // the stream is the request's own
inline constexpr const char* kTypedEnd = "typed end";      // an error that a client can understand
inline constexpr const char* kOneEpoch = "one epoch";      // what comes is of the latest dispatch
inline constexpr const char* kOnePlace = "one place";      // a live request waits or is on a node
inline constexpr const char* kTwice = "twice";             // one dispatch runs once
inline constexpr const char* kPages = "pages";             // owned = allocated, none at rest
inline constexpr const char* kCaps = "caps";               // every queue within its limit
inline constexpr const char* kRetries = "retries";         // within the budget
inline constexpr const char* kLease = "lease";             // no work for the silent
inline constexpr const char* kDeadline = "deadline";       // no late dispatch, no late end
inline constexpr const char* kModel = "model";             // nor for who does not serve the model
inline constexpr const char* kDraining = "draining";       // nor for who drains
inline constexpr const char* kGrant = "grant";             // nor beyond what was granted
inline constexpr const char* kMemory = "memory";           // who has none takes nothing new
inline constexpr const char* kExcluded = "excluded";       // nor where the request failed before
inline constexpr const char* kHints = "hints";             // tier and residency are kept
inline constexpr const char* kCancel = "cancel";           // who leaves is answered at once
inline constexpr const char* kNewestBeat = "newest beat";  // an older beat replaces no newer one
inline constexpr const char* kCalm = "calm";               // without faults nothing is lost
inline constexpr const char* kHeal = "heal";               // after the faults everything ends
inline constexpr const char* kWide = "wide";               // what fits an idle node gets its turn
inline constexpr const char* kRest = "rest";               // and nothing is left behind
inline constexpr const char* kAbort = "abort";             // a check of the program itself failed
}  // namespace invariant

// Where a client's request enters: at a router or at an edge's daemon.
struct Entrance {
  bool edge = false;
  int index = 0;
  auto operator<=>(const Entrance&) const = default;
};

// What a client got, for statistics.
struct Outcome {
  ClientId client = 0;
  Entrance entrance;
  int64_t submitted_ns = 0;
  int64_t first_token_ns = 0;  // 0: none
  int64_t ended_ns = 0;
  int32_t prompt_tokens = 0;
  int32_t tokens = 0;
  bool finished = false;
  bool cancelled = false;  // by the client itself
  ErrorCode error = ErrorCode::kInternal;
  Tier tier = Tier::kAny;  // that answered
};

class Ledger {
 public:
  struct NodeFacts {
    Tier tier = Tier::kAny;
    int32_t context_tokens = 0;
    MemoryLevel memory = MemoryLevel::kNormal;
  };

  explicit Ledger(World& world) : world_(world) {}
  // Without faults: every request finishes or is refused for a reason of its own.
  void expect_calm() { calm_ = true; }
  // Nothing is lost or replayed from now on (repeats and gaps of answers have no excuse).
  void add_node(const std::string& node_id, NodeFacts facts) { nodes_[node_id] = facts; }

  // --- clients ---
  ClientId open_ticket(const Request& request, const SimModel& model, Entrance entrance);
  void on_event(ClientId client, const Event& event);
  void on_client_cancel(ClientId client);
  // The router was told, and does not stand still.
  void after_router_cancel(ClientId client);
  // The process at the entrance is gone, and its clients' connections with it.
  void on_entrance_lost(Entrance entrance);
  void set_paused(Entrance entrance, bool paused);
  // What a deadline at this entrance may be late beyond its grace: an engine's longest step.
  void set_slack(Entrance entrance, std::function<int64_t()> slack_ns) {
    slacks_[entrance] = std::move(slack_ns);
  }
  size_t open_count() const { return open_.size(); }
  std::string describe_open() const;  // a few of them, for a message
  const std::vector<Outcome>& outcomes() const { return outcomes_; }
  bool is_open(ClientId client) const { return open_.contains(client); }
  uint64_t ticket_count() const { return tickets_count_; }

  // --- a router's sockets ---
  void on_router_start(int router, const RouterCoreConfig& config);
  void on_router_request(int router, const Request& request);
  // After the core took the message, before its actions are carried out. beat_seq_before: what the
  // core knew before. new_session: a hello of a connection that it did not count as one.
  void on_router_in(int router, const PeerInfo& from, const PoolMessage& message,
                    const RouterCore& core, uint64_t beat_seq_before, bool new_session);
  void on_router_out(int router, const PeerId& peer, const PoolMessage& message);
  // What on_router_out() was told of did not leave after all.
  void on_router_unsent(int router, const PeerId& peer, const Submit& submit);
  void on_router_deliver(int router, ClientId client, const Event& event);
  void on_router_drain(int router, const std::string& node_id);
  // A node's link hands work of this router to its engine.
  void on_node_work(int router, const std::string& node_id, const RequestId& id);
  // A node hands a request of its own clients to its engine.
  void on_node_local(const std::string& node_id, const Request& request);
  void on_node_memory(const std::string& node_id, MemoryLevel level) {
    nodes_[node_id].memory = level;
  }
  void on_router_idle(int router, const RouterCore& core);  // between two inputs

 private:
  struct Choice {
    int32_t next = 0;
    bool finished = false;
  };
  struct Ticket {
    RequestId id;
    const SimModel* model = nullptr;
    Outcome outcome;
    uint64_t content = 0;
    bool seeded = false;
    bool ignores_end = false;
    int32_t max_tokens = 0;  // 0: none given
    int64_t deadline_ns = 0;
    int64_t paused_before_ns = 0;  // of its entrance, until it was submitted
    int32_t generation = -1;
    int32_t context_tokens = 0;
    bool started = false;
    std::vector<Choice> choices;
  };
  struct Pauses {
    int64_t total_ns = 0;
    int64_t since_ns = -1;  // -1: running
  };
  struct NodeView {
    PeerId peer;
    NodeHello hello;
    int64_t heard_ns = 0;
    int64_t heard_paused_ns = 0;  // the router's pauses until then
    int32_t lease_ms = 0;
    int32_t slots_total = 0;
    int32_t live_slots = 0;
    // The newest grant that the router has heard in this session, and what it has sent since.
    bool grants = false;
    uint64_t credit_epoch = 0;
    int32_t slots_granted = 0;
    int32_t slots_sent = 0;
    bool ready = false;
    bool draining = false;
  };
  struct Live {
    std::string model;
    std::string origin;  // node id; empty: a client of the router
    bool local_only = false;
    Tier tier = Tier::kAny;
    int32_t choices = 1;
    int64_t deadline_ns = 0;
    uint32_t epoch = 0;
    std::string node;  // that has it; empty: none
    int32_t slots = 0;
    int32_t dispatches = 0;
    int32_t rejections = 0;
    bool failed_last = false;
    std::set<std::pair<std::string, uint64_t>> failed_at;  // node id, boot epoch
  };
  struct Router {
    RouterCoreConfig config;
    std::map<std::string, NodeView> nodes;  // by id
    std::unordered_map<PeerId, std::string> by_peer;
    std::unordered_map<RequestId, Live> live;
    std::set<std::string> drained;  // by the operator; until their next boot
    uint64_t submitted = 0;
    uint64_t failed_retries = 0;
    // The message being handled.
    std::string in_node;
    RequestId in_id;
    uint32_t in_epoch = 0;
  };

  int64_t paused_ns(Entrance entrance) const;
  void check_deadline(ClientId client);
  void check_chunk(Ticket& ticket, const TokenChunk& chunk);
  void check_finished(const Ticket& ticket, const Finished& finished);
  void check_error(const Ticket& ticket, const RequestError& error);
  void end_ticket(ClientId client);
  struct Runs {
    int32_t sent = 0;
    int32_t begun = 0;
  };
  Runs& runs(int router, const std::string& node_id, const RequestId& id) {
    return runs_[std::to_string(router) + ' ' + node_id + ' ' + id];
  }
  static void take_credit(NodeView& view, const PoolMessage& message);
  void check_dispatch(int number, Router& router, const PeerId& peer, const Submit& submit);
  void take_from_node(Router& router, Live& live);
  void forget(Router& router, const RequestId& id);
  void note_live(Router& router, const Request& request, const std::string& origin);

  World& world_;
  bool calm_ = false;
  std::map<std::string, NodeFacts> nodes_;
  std::map<ClientId, Ticket> open_;
  std::unordered_map<ClientId, RequestId> over_;  // ended tickets
  std::map<Entrance, Pauses> pauses_;
  std::map<Entrance, std::function<int64_t()>> slacks_;
  std::vector<Router> routers_;
  std::unordered_map<std::string, Runs> runs_;  // by router, node and request
  std::vector<Outcome> outcomes_;
  uint64_t tickets_count_ = 0;
};

}  // namespace updraft::sim
