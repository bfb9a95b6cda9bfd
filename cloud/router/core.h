// The router without sockets, clocks or threads: events and now_ns in, actions out. Everything the
// router decides is here and in the parts it is made of (registry, placement, queue, streams), so
// that a pool of 100,000 nodes can be simulated with the code that serves.
//
// The one idea: every live request is in exactly one place: in the queue, or on one node under one
// epoch. Every path that takes it out ends in dispatch() or in end(), and end() is the only place
// that answers for good.
//
// Threads: one owner drives it; nothing here is synchronised.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <queue>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "cloud/router/breaker.h"
#include "cloud/router/placement.h"
#include "cloud/router/queue.h"
#include "cloud/router/registry.h"
#include "cloud/router/streams.h"
#include "common/base/memory_level.h"
#include "common/message/event.h"
#include "common/message/pool_message.h"

namespace updraft {

// A decision. Send: over the pool's connection `peer`. Deliver: to the client that submitted under
// this handle.
struct Send {
  PeerId peer;
  PoolMessage message;
};
struct Deliver {
  ClientId client = 0;
  Event event;
};
using Action = std::variant<Send, Deliver>;
using Actions = std::vector<Action>;

// Who sent a message, as the socket authenticated it.
struct PeerInfo {
  PeerId peer;
  std::string public_key;
  std::string name;  // of the key in the allow-list
};

struct RouterCoreConfig {
  std::string router_id = "router";
  uint64_t router_epoch = 1;  // another value at each start of the router
  int32_t queue_max = 1024;
  int32_t queue_timeout_ms = 30'000;
  float price_weight = 0.0F;  // seconds that a unit of a node's price is worth in placement
  int32_t edge_reserve_slots = 0;
  int32_t echo_ms = 1000;                 // at most so often a node's beats are answered
  int32_t answer_tokens_assumed = 256;    // of a request without max_tokens
  int32_t streams_max = 65'536;           // live requests, waiting ones included
  int64_t payload_bytes_max = 1LL << 30;  // of all live requests' prompts and images
  int32_t retries_max = 2;                // new nodes before the first token
  int32_t choices_max = 64;               // answers of one request, all prompts
  size_t sessions_max = 65'536;
  int64_t session_idle_ms_max = 600'000;
  int32_t start_grace_ms =
      3000;  // after the start an unknown model may still be announced: 503, not 404
  int32_t orphan_grace_ms =
      5000;  // a node shows no work for so long while a stream is assigned: the stream is lost
  int32_t arrival_grace_ms =
      60'000;  // the same while its beats do not count the stream: it may still be on its way
  uint64_t seed = 1;  // of the placement's tie-break
  Registry::Limits registry;
  BreakerTable::Rules breaker;
};

// How long requests were in the queue, in seconds: counts by bucket, the last above all bounds.
struct QueueWaits {
  static constexpr std::array<double, 14> kBounds = {0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                                     0.5,   1,     2.5,  5,     10,   30,  60};
  std::array<uint64_t, kBounds.size() + 1> counts{};
  double seconds = 0.0;  // of all of them
  void add(double wait_s);
};

// Counts since the start; whoever drives the core turns them into metrics.
struct RouterStats {
  static constexpr int kTiers = 3;      // Tier's values; kAny: never reached a node
  static constexpr int kOutcomes = 16;  // 0: finished, else 1 + ErrorCode
  std::array<std::array<uint64_t, kOutcomes>, kTiers> ended{};
  std::array<std::array<uint64_t, kReasonCount>, kTiers> dispatched{};
  std::array<uint64_t, kOutcomes>
      refused{};     // ended with an error before any node had started: 1 + ErrorCode
  QueueWaits waits;  // of each request: until its first node, or its end in the queue
  uint64_t submitted = 0;
  uint64_t retried = 0;    // placed anew after a loss
  uint64_t recounted = 0;  // placed anew because a node counted more tokens
  uint64_t bounced = 0;    // placed anew because a node was busy after all
  uint64_t protocol_faults = 0;
  uint64_t stale_messages = 0;  // of ended requests, other epochs, or nodes that do not have it
  uint64_t frames_refused = 0;  // did not decode
  uint64_t peers_gone = 0;
  uint64_t orphans = 0;
  std::array<uint64_t, 3> memory_refused{};  // by MemoryLevel
};

class RouterCore {
 public:
  RouterCore(RouterCoreConfig config, int64_t now_ns);

  // Called for each dispatch, before its Send, with what placement saw (decision.h). Costs a few
  // microseconds each.
  using DecisionHook =
      std::function<void(const RequestId& id, const std::string& node_id, const DecisionRecord&)>;
  void set_decision_hook(DecisionHook hook);

  // A client's request; its events come as Deliver{client}, exactly one of them an end.
  void submit(Request request, ClientId client, int64_t now_ns, Actions& out);
  void cancel(const RequestId& id, int64_t now_ns, Actions& out);

  void on_message(const PeerInfo& from, PoolMessage message, int64_t now_ns, Actions& out);
  // A frame of this peer that did not decode.
  void on_bad_frame(const PeerId& peer);
  // A connection has ended, or takes nothing any more: what was under way on it is lost, and its
  // requests learn so.
  void on_peer_gone(const PeerId& peer, const std::string& why, int64_t now_ns, Actions& out);
  // A Submit too large for the pool's messages.
  void on_unsendable(const Submit& submit, int64_t now_ns, Actions& out);
  // Time passes. At least every 100 ms; a gap of more than 500 ms is taken as a pause of this
  // process, not of the nodes.
  void on_tick(int64_t now_ns, Actions& out);

  // Nothing new for this node; what runs there goes on. False: unknown id.
  bool drain_node(const std::string& node_id, int32_t grace_ms, Actions& out);
  // Takes an operator's drain back. The node gets work again once it says that it is ready. False:
  // unknown id.
  bool undrain_node(const std::string& node_id, Actions& out);
  // From now on submits are refused.
  void stop_taking() { stopping_ = true; }
  // Of this router's memory: from now on new requests are taken as memory_refusal() says. What was
  // taken before goes on.
  void set_memory(MemoryLevel level) { memory_ = level; }
  // Ends every live request with kOverloaded.
  void end_all(int64_t now_ns, Actions& out);

  void set_allowed_names(const std::vector<std::string>& names) {
    registry_.set_allowed_names(names);
  }
  const std::vector<ModelInfo>& models() const { return pool_models_; }
  struct NodeInfo {
    std::string id;
    Tier tier = Tier::kAny;
    const char* state = "";  // "fresh", "suspect", "stale", "dead", "draining", "loading"
    std::vector<std::string> models;
    int32_t running = 0;
  };
  std::vector<NodeInfo> nodes() const;
  static constexpr std::array<const char*, 6> kNodeStates = {"fresh", "suspect",  "stale",
                                                             "dead",  "draining", "loading"};
  struct BreakerView {
    std::string node_id;
    std::string model;
    const char* state = "";  // "closed" (with faults of late), "open", "half-open"
    int32_t faults = 0;      // of `requests` in the last ten seconds
    int32_t requests = 0;
    int64_t retry_ms = 0;  // open: until one request is let through
  };
  std::vector<BreakerView> breakers() const;
  size_t breakers_open() const { return breakers_.open_count(last_tick_ns_); }
  // [state][tier]
  std::array<std::array<int64_t, RouterStats::kTiers>, 6> count_nodes() const;
  const RouterStats& stats() const { return stats_; }
  const Registry& registry() const { return registry_; }
  std::vector<NodeChange> take_changes() { return registry_.take_changes(); }
  size_t queued() const { return queue_.size(); }
  size_t live() const { return streams_.size(); }
  size_t dispatched() const { return streams_.dispatched(); }

 private:
  // Who is to be answered when there is no stream (yet).
  struct Requester {
    ClientId client = 0;
    PeerId peer;  // not empty: a node, under its own epoch
    uint32_t epoch = 0;
  };

  // --- core_requests.cpp: a request's way from submit to its end ---
  void take_in(Request request, const Requester& requester, NodeIndex origin, int64_t now_ns,
               Actions& out);
  std::optional<RequestError> admit(const Request& request, int64_t payload_bytes, ModelIndex model,
                                    bool rises, int64_t now_ns);
  RequestError unknown_model(const std::string& name, int64_t now_ns) const;
  void refuse(const RequestId& id, const Requester& requester, RequestError error, Actions& out);
  void place(Stream& stream, int64_t now_ns, Actions& out);
  bool must_wait_behind_others(const Stream& stream, NodeIndex node) const;
  void enqueue(Stream& stream, int64_t now_ns, Actions& out);
  // placement: what chose the node; null when the node pulled it out of the queue.
  void dispatch(Stream& stream, NodeIndex node, const Placement* placement, int64_t now_ns,
                Actions& out);
  void serve_queue(NodeIndex node, int64_t now_ns, Actions& out);
  // Tells the node what this request needs there and was not granted.
  void want_room(Stream& stream, NodeIndex node, int64_t now_ns, Actions& out);
  // `outcome` is what this end says of the node.
  void leave_node(Stream& stream, bool give_back, BreakerTable::Outcome outcome, int64_t now_ns);
  void cancel_on_node(const Stream& stream, Actions& out);
  // What became of a node that no longer has a generation.
  enum class Loss : uint8_t {
    kGone,      // vanished, or its connection did
    kAtFault,   // there, but not to be trusted with this request again
    kAnswered,  // gave the request up and has its room back; not there again
  };
  // The generation on its node is lost: placed anew before the first token, else ended.
  void lose(Stream& stream, const std::string& why, Loss loss, BreakerTable::Outcome outcome,
            int64_t now_ns, Actions& out);
  void place_anew(Stream& stream, int64_t now_ns, Actions& out);
  void deliver(Stream& stream, Event event, Actions& out);
  void end(Stream& stream, Event event, int64_t now_ns, Actions& out);
  void end_unanswered(Stream& stream, int64_t now_ns, Actions& out);
  void arm(Stream& stream);
  int64_t due_ns(const Stream& stream) const;
  void expire(Stream& stream, int64_t now_ns, Actions& out);
  void leave_queue(Stream& stream);
  void count_wait(const Stream& stream, int64_t now_ns);
  int32_t retry_after_ms(const Wish& wish) const;
  struct Service;
  Service& service(ModelIndex model);

  // --- core.cpp: what nodes say ---
  void handle(const PeerInfo& from, NodeHello&& hello, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, NodeBeat&& beat, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, Submit&& submit, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, Accepted&& accepted, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, Rejected&& rejected, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, Tokens&& tokens, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, Done&& done, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, Failed&& failed, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, Cancel&& cancel, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, Drain&& drain, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, Welcome&& welcome, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, Blob&& blob, int64_t now_ns, Actions& out);
  void handle(const PeerInfo& from, Echo&& echo, int64_t now_ns, Actions& out);
  void echo(const PeerId& peer, uint64_t beat_seq, int64_t now_ns, Actions& out);
  Stream* owned(const PeerInfo& from, const RequestId& id, uint32_t epoch);
  void take_credit(const PeerInfo& from, const std::optional<Credit>& credit, int64_t now_ns);
  void start(Stream& stream, int32_t prompt_tokens, Actions& out);
  void breach(Stream& stream, const std::string& why, int64_t now_ns, Actions& out);
  void lose_node(NodeIndex node, const std::string& why, int64_t now_ns, Actions& out);
  void drop_risen(NodeIndex node, int64_t now_ns, Actions& out);
  // On the connection that it rose on, this request has ended.
  void remember_risen(const Stream& stream);
  void find_orphans(NodeIndex node, uint64_t counted_seq, int64_t now_ns, Actions& out);
  void welcome(const PeerId& peer, uint64_t epoch, Actions& out) const;
  void refresh_models(int64_t now_ns, Actions& out);
  const char* state_name(const NodeLoad& load) const;
  std::vector<std::pair<uint32_t, uint32_t>> snapshot(const std::vector<uint32_t>& slots);

  static constexpr double kRetryBudgetMax = 10.0;
  static constexpr double kRetryShare = 0.1;

  const RouterCoreConfig config_;
  const int64_t start_ns_;
  Registry registry_;
  BreakerTable breakers_;
  AffinityIndex affinity_;
  Placer placer_;
  DecisionHook decided_;
  SessionTable sessions_;
  WaitQueue queue_;
  StreamTable streams_;
  struct Timer {
    int64_t at_ns = 0;
    uint32_t slot = 0;
    uint32_t generation = 0;
    bool operator>(const Timer& other) const { return at_ns > other.at_ns; }
  };
  std::priority_queue<Timer, std::vector<Timer>, std::greater<>> timers_;
  uint64_t next_order_ = 1;
  uint32_t last_epoch_ =
      0;  // of all dispatches, so that a request id used again never meets its own past
  // Of each model: who waits for it, by class, and how long its requests take.
  struct Service {
    std::array<int32_t, 4> waiting{};
    double seconds = 2.0;  // moving average from dispatch to the end
  };
  std::vector<Service> services_;  // [model]
  struct Echoing {
    bool wanted = false;
    int64_t due_ns = 0;
  };
  std::vector<Echoing> echoing_;  // [node]
  // Retries of what a node answered with a failure, at most a tenth of the requests: when all nodes
  // fail, trying each request three times would only load them more. Lost nodes do not count, they
  // are not loaded by it.
  double retry_budget_ = kRetryBudgetMax;
  bool stopping_ = false;
  MemoryLevel memory_ = MemoryLevel::kNormal;
  int64_t last_tick_ns_ = 0;
  int64_t last_sweep_ns_ = 0;
  int64_t models_refreshed_ns_ = 0;
  uint64_t models_version_ = 0;
  std::vector<ModelInfo> pool_models_;
  std::vector<NodeIndex> lost_;  // scratch
  // Requests that rose and have ended, by connection and id, with their epochs; the last
  // kRisenEndedMax of them. One that is said again does not run again.
  std::unordered_map<std::string, uint32_t> risen_ended_;
  std::deque<std::string> risen_ended_order_;
  RouterStats stats_;
};

}  // namespace updraft
