// The pool link's decisions, pure: messages, local events, requests and now_ns in; frames to send,
// calls into the local service and events for callers out. No socket, clock or thread in here;
// pool_link.cpp drives it.
//
// The one idea: a connection is a session. When it breaks, what was under way on it is lost on both
// sides, so everything ends at once: work of the router is cancelled, requests that rose end with a
// typed error. Nothing is resumed here.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/plant.h"
#include "common/message/chunker.h"
#include "common/message/pool_message.h"
#include "common/message/service.h"
#include "common/pool/grant_ledger.h"
#include "common/pool/prefix_tracker.h"

namespace updraft {

struct LinkCoreConfig {
  NodeHello hello;
  int32_t beat_interval_ms = 100;
  int32_t lease_ttl_ms = 2000;
  size_t upward_max = 1024;  // requests that rose, not yet ended
  size_t queued_bytes_max =
      2 * kMessageBytesMax;  // above it new requests that want to rise are refused
  int32_t answer_timeout_ms =
      60000;  // a risen request without Accepted or Rejected for that long ends
  int32_t silence_timeout_ms =
      300'000;  // and one that has started and hears nothing for that long: its end was lost
  // What this node grants, shared with its links to other routers. Null: the link makes its own.
  std::shared_ptr<GrantLedger> grants;
};

class LinkCore {
 public:
  // What the owner carries out, in order.
  struct SubmitLocal {  // local.submit(request), events back through on_local_event(id, serial,
                        // ...)
    Request request;
    uint64_t serial = 0;
  };
  struct CancelLocal {  // local.cancel(id)
    RequestId id;
  };
  struct Deliver {  // sink(event)
    EventSink sink;
    Event event;
  };
  using Effect = std::variant<SubmitLocal, CancelLocal, Deliver>;

  explicit LinkCore(LinkCoreConfig config);

  // --- the connection ---
  void on_connected(int64_t now_ns);
  void on_disconnected(int64_t now_ns);
  // One frame from the router. An error is a violation of the protocol by the router: the frame is
  // dropped.
  Result<void> on_frame(ByteView frame, int64_t now_ns);
  SendQueue& outgoing() { return outgoing_; }
  // Moves answers of running work into outgoing(), as many as it takes; tokens that wait are merged
  // meanwhile.
  void pump();

  // --- the local service ---
  void on_local_event(const RequestId& id, uint64_t serial, Event event, int64_t now_ns);

  // --- requests that rise ---
  void on_upward(Request request, EventSink sink, int64_t now_ns);
  void on_upward_cancel(const RequestId& id);

  // --- state and time ---
  void set_state(NodeState state, int64_t now_ns);
  void drain(int32_t grace_ms, int64_t now_ns);
  // Work that still runs is cancelled and failed towards the router.
  void abandon_work();
  // The link stops: everything ends.
  void stop();
  void tick(int64_t now_ns);
  // The router has said nothing for so long that it cannot be there any more, whatever the
  // connection looks like: the owner makes another one.
  bool router_silent(int64_t now_ns) const;
  bool beat_due(int64_t now_ns) const { return welcomed_ && now_ns >= beat_due_ns_; }
  // load: filled by the node; the link's own fields are set here, numbers that a router would
  // refuse are brought in range.
  void send_beat(NodeBeat load, int64_t now_ns);
  // When tick() or send_beat() is due next.
  int64_t next_due_ns() const;

  std::vector<Effect> take_effects() { return std::exchange(effects_, {}); }

  bool welcomed() const { return welcomed_; }
  const std::vector<ModelInfo>& pool_models() const { return pool_models_; }
  uint64_t welcome_count() const {
    return welcome_count_;
  }  // changes whenever pool_models() may have
  const std::string& router_id() const { return router_id_; }
  // A ready node that its router has drained is draining, towards that router.
  NodeState state() const {
    return state_ == NodeState::kReady && drained_by_router_ ? NodeState::kDraining : state_;
  }
  // Nothing of the router's work is left here, neither running nor unsent, and none is under way:
  // what was granted has run out. A node that ended earlier would lose what was just sent to it.
  bool idle() const {
    const bool promised = grant_link_ != 0 && grants_->outstanding(grant_link_, now_ns_) > 0;
    return works_.empty() && outgoing_.empty() && (!promised || UPDRAFT_PLANT(kLeavesEarly));
  }
  size_t work_count() const { return works_.size(); }
  size_t upward_count() const { return upward_.size(); }

 private:
  // A Submit of the router's, from its arrival until its end event was queued.
  struct Work {
    uint64_t serial = 0;
    uint64_t connection = 0;  // it came on
    uint32_t epoch = 1;
    int32_t slots = 1;                   // of the grants that it holds until its end
    GrantLedger::LinkId grant_link = 0;  // the session it came in
    std::vector<uint64_t> chain;         // of its prompt, until that is in the cache
    int64_t arrived_ns = 0;
    int64_t started_ns = 0;  // when `started` came
    bool accepted = false;   // Accepted was queued
    bool muted = false;      // cancelled for good: its events go nowhere, only its end is awaited
    std::optional<Started> started;  // waits for pump()
    std::vector<TokenChunk> chunks;  // merged while they wait
    std::optional<Event> end;
    std::optional<Submit>
        next;  // the same id again under a newer epoch: begins when this one has ended
  };
  struct Upward {
    EventSink sink;
    uint32_t epoch = 1;
    bool started = false;
    int64_t answer_due_ns = 0;  // by then something has to come
    int64_t deadline_ns = 0;    // 0: none
    struct Choice {
      int64_t next_offset = 0;
      bool finished = false;
    };
    int32_t open_choices = 1;  // that have not finished
    std::map<int32_t, Choice> choices;
  };

  void on_message(PoolMessage&& message, int64_t now_ns);
  void on_submit(Submit&& submit, int64_t now_ns);
  bool said_before(const Submit& submit) const;
  void remember_end(const RequestId& id, uint32_t epoch, uint64_t connection);
  void begin_work(Submit&& submit, int64_t now_ns);
  void on_cancel(const Cancel& cancel);
  void on_drain(const Drain& drain, int64_t now_ns);
  void on_welcome(Welcome&& welcome, int64_t now_ns);
  void on_accepted(Accepted&& message, int64_t now_ns);
  void on_tokens(Tokens&& message, int64_t now_ns);
  void on_done(Done&& message);
  void mute(const RequestId& id, Work& work);
  bool pump_one(const RequestId& id, Work& work);
  void reject(const RequestId& id, uint32_t epoch, RequestError error);
  // The live upward request that a message of this epoch belongs to, or null.
  Upward* upward_of(const RequestId& id, uint32_t epoch);
  void deliver(Upward& upward, Event event);
  void end_upward(const RequestId& id, Event end);
  void end_session();
  // Nothing when this router does not ask for grants.
  std::optional<Credit> fresh_credit();
  std::optional<PrefixDelta> prefix_delta(const NodeBeat& load, int64_t now_ns);
  void say_hello(int64_t now_ns);
  void beat_soon(int64_t now_ns);

  const LinkCoreConfig config_;
  SendQueue outgoing_;
  MessageReader reader_;
  std::vector<Effect> effects_;

  bool connected_ = false;
  uint64_t connection_ = 0;  // grows with each
  bool welcomed_ = false;
  int64_t heard_ns_ = 0;    // when the router's last frame came, or the connection
  int64_t silence_ns_ = 0;  // that this session's router never reaches; 0: it may say nothing
  int64_t hello_due_ns_ = 0;
  int64_t beat_due_ns_ = 0;
  uint64_t beat_seq_ = 0;
  NodeState state_ = NodeState::kLoading;  // as the node itself has it
  bool drained_by_router_ = false;
  std::string router_id_;
  uint64_t router_epoch_ = 0;
  uint64_t over_epoch_ = 0;  // of the Welcome that ended the last session: it begins none
  uint64_t welcome_count_ = 0;
  std::vector<ModelInfo> pool_models_;
  uint64_t last_assignment_seq_ = 0;
  const std::shared_ptr<GrantLedger> grants_;
  GrantLedger::LinkId grant_link_ = 0;  // 0: no session, or a router without grants
  int64_t now_ns_ = 0;                  // of the last call that brought it
  PrefixTracker prefixes_;
  int64_t prefixes_told_ns_ = 0;  // when the router was told all of them last

  uint64_t next_serial_ = 1;
  std::map<RequestId, Work> works_;
  RequestId pumped_last_;
  // Works that came on this connection and have ended, the last kEndedMax of them: one that is said
  // again does not run again.
  std::map<RequestId, uint32_t> ended_;  // and their epochs
  std::deque<RequestId> ended_order_;
  std::map<RequestId, Upward> upward_;
};

}  // namespace updraft
