// The relay's turns. See relay.h.
#include "cloud/router/relay.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>

#include "cloud/router/peer_table.h"
#include "cloud/router/router_metrics.h"
#include "cloud/router/service.h"
#include "common/base/bytes.h"
#include "common/base/clock.h"
#include "common/log/log.h"

namespace updraft {
namespace {

// The rest is room for what a frame says besides a message's part.
static_assert(kChunkBytes + 64 * 1024 <= kPoolFrameBytesMax);

constexpr int kTickMs = 20;
constexpr int64_t kPublishEveryNs = 50 * kNsPerMs;
constexpr int64_t kMetricsEveryNs = 250 * kNsPerMs;
constexpr int64_t kPeerSweepEveryNs = 10 * kNsPerSecond;
// A turn takes what is there, for as long as this at most; then hand-ins and timers have theirs.
constexpr int64_t kTurnNsMax = 20 * kNsPerMs;
constexpr int kMessagesAtOnce = 128;             // between two looks at the clock
constexpr int64_t kFarewellNs = 200 * kNsPerMs;  // for the last cancels to leave
constexpr size_t kCallsMax = 1024;
constexpr size_t kCancelsMax = 1 << 17;  // more than requests can be live or waiting
constexpr int64_t kQueryMs = 1000;

std::vector<std::string> names_of(const std::vector<AllowedKey>& allowed) {
  std::vector<std::string> names;
  for (const AllowedKey& key : allowed) names.push_back(key.name);
  return names;
}

void log_change(const NodeChange& change) {
  const char* event = node_change_name(change.kind);
  const char* tier = tier_name(change.tier);
  switch (change.kind) {
    case NodeChange::Kind::kSuspect:
    case NodeChange::Kind::kStale:
    case NodeChange::Kind::kLost:
      log_warn(event, {{"id", change.node_id}, {"tier", tier}, {"silent_ms", change.silent_ms}});
      break;
    case NodeChange::Kind::kRefused:
    case NodeChange::Kind::kAbsurdBeat:
      log_warn(event, {{"id", change.node_id}, {"why", change.detail}});
      break;
    case NodeChange::Kind::kFrozen:
      log_warn(event, {{"why", "many nodes fell silent at once, as when this router is cut off"}});
      break;
    case NodeChange::Kind::kThawed:
      log_warn(event);
      break;
    case NodeChange::Kind::kJoined:
    case NodeChange::Kind::kRestarted:
      log_info(event, {{"id", change.node_id}, {"tier", tier}, {"device", change.detail}});
      break;
    default:
      log_info(event, {{"id", change.node_id}, {"tier", tier}});
      break;
  }
}

class RelayImpl : public Relay {
 public:
  RelayImpl(RelayConfig config, Metrics& metrics, MemoryWatch& memory, EventLoop& loop)
      : config_(std::move(config)),
        memory_(memory),
        loop_(loop),
        service_(config_.submissions_max, kCancelsMax, memory, [this] { schedule_turn(); }),
        calls_(kCallsMax, [this] { schedule_turn(); }),
        core_(config_.core, monotonic_ns()),
        peers_({config_.peer_queue_bytes_max, config_.peer_stall_ms_max}),
        metrics_(metrics),
        context_(NetContext::create()) {}
  ~RelayImpl() override { stop(); }

  Result<void> open() {
    auto listener = PoolListener::bind(*context_, config_.endpoint, config_.keys, config_.allowed);
    if (!listener) return listener.error();
    listener_ = std::move(listener).value();
    endpoint_ = listener_->endpoint();
    core_.set_allowed_names(names_of(config_.allowed));
    core_.set_decision_hook(
        [](const RequestId& id, const std::string& node_id, const DecisionRecord& record) {
          if (log_enabled(LogLevel::kInfo))
            log_info("placed", {{"id", id}, {"node", node_id}, {"decision", to_text(record)}});
        });
    loop_.post([this] {
      pool_readable_ = loop_.watch(listener_->poll_fd(), [this] { turn(); });
      tick_due_ = loop_.every(kTickMs, [this] { turn(); });
    });
    working_ = true;
    return {};
  }

  InferenceService& service() override { return service_; }
  std::string endpoint() const override { return endpoint_; }

  std::vector<RouterCore::NodeInfo> nodes() override {
    return ask<std::vector<RouterCore::NodeInfo>>(
        [](RouterCore& core, Actions&) { return core.nodes(); });
  }
  bool drain_node(const std::string& node_id, int32_t grace_ms) override {
    return ask<bool>(
        [=](RouterCore& core, Actions& out) { return core.drain_node(node_id, grace_ms, out); });
  }
  bool undrain_node(const std::string& node_id) override {
    return ask<bool>(
        [=](RouterCore& core, Actions& out) { return core.undrain_node(node_id, out); });
  }
  std::vector<RouterCore::BreakerView> breakers() override {
    return ask<std::vector<RouterCore::BreakerView>>(
        [](RouterCore& core, Actions&) { return core.breakers(); });
  }

  void set_allowed(const std::vector<AllowedKey>& allowed) override {
    listener_->set_allowed(allowed);
    std::vector<std::string> names = names_of(allowed);
    // Full: the names follow with the next change; the keys themselves are in force.
    (void)calls_.push(
        [names = std::move(names)](RouterCore& core, Actions&) { core.set_allowed_names(names); });
  }

  void stop_taking() override { service_.stop_taking(); }

  void stop() override {
    const std::lock_guard lock(stop_mutex_);
    if (!working_) return;
    working_ = false;
    service_.stop_taking();
    service_.close();
    calls_.close();
    auto ended = std::make_shared<std::promise<void>>();
    loop_.post([this, ended] {
      end();
      // Behind the turns that are posted already.
      loop_.post([ended] { ended->set_value(); });
    });
    ended->get_future().wait();
  }

 private:
  using Call = std::function<void(RouterCore&, Actions&)>;

  // The core's answer from the loop's thread; an empty one when the relay has ended or takes too
  // long.
  template <typename T, typename Question>
  T ask(Question question) {
    auto answer = std::make_shared<std::promise<T>>();
    std::future<T> future = answer->get_future();
    if (!calls_.push([answer, question](RouterCore& core, Actions& out) {
          answer->set_value(question(core, out));
        })) {
      return {};
    }
    // A call that is dropped unanswered (the relay has ended) breaks its promise.
    answer.reset();
    if (future.wait_for(std::chrono::milliseconds(kQueryMs)) != std::future_status::ready)
      return {};
    try {
      return future.get();
    } catch (const std::future_error&) {
      return {};
    }
  }

  // Any thread. One turn soon, however often it is asked for.
  void schedule_turn() {
    if (turn_posted_.exchange(true, std::memory_order_acq_rel)) return;
    loop_.post([this] {
      // Pairs with the exchange above: what was handed in before it is seen in this turn.
      turn_posted_.exchange(false, std::memory_order_acq_rel);
      turn();
    });
  }

  // --- everything below: the loop's thread ---
  void turn() {
    if (ended_) return;
    take_hand_ins();
    bool more = receive();
    tick();
    more |= flush();
    // A send may have swallowed the socket's signal of what has arrived: look again.
    if (more) schedule_turn();
  }

  void take_hand_ins() {
    service_.take(submissions_, cancels_);
    const int64_t now_ns = monotonic_ns();
    core_.set_memory(memory_.level());
    for (Submission& submission : submissions_) {
      const ClientId client = ++last_client_;
      sinks_.emplace(client, std::move(submission.sink));
      core_.submit(std::move(submission.request), client, now_ns, actions_);
      carry_out(now_ns);
    }
    for (const RequestId& id : cancels_) core_.cancel(id, now_ns, actions_);
    carry_out(now_ns);
    for (const Call& call : calls_.drain()) call(core_, actions_);
    carry_out(now_ns);
    submissions_.clear();
    cancels_.clear();
  }

  bool receive() {
    int64_t now_ns = monotonic_ns();
    const int64_t until_ns = now_ns + kTurnNsMax;
    int count = kMessagesAtOnce;
    bool any = false;
    for (; count == kMessagesAtOnce && now_ns < until_ns; now_ns = monotonic_ns()) {
      count = listener_->receive(kMessagesAtOnce,
                                 [&](PoolListener::Inbound&& inbound) { take(inbound, now_ns); });
      any = any || count > 0;
    }
    return any;
  }

  void take(PoolListener::Inbound& inbound, int64_t now_ns) {
    Result<std::optional<PoolMessage>> message = peers_.read(inbound.peer, inbound.frame, now_ns);
    if (!message) {
      core_.on_bad_frame(inbound.peer);
      complain(inbound, message.message(), now_ns);
      return;
    }
    if (!message->has_value()) return;
    core_.on_message({inbound.peer, inbound.public_key, inbound.name}, std::move(**message), now_ns,
                     actions_);
    carry_out(now_ns);
  }

  // One line a second at most: a node that sends nonsense sends much of it.
  void complain(const PoolListener::Inbound& inbound, const std::string& why, int64_t now_ns) {
    if (now_ns - complained_ns_ < kNsPerSecond) return;
    complained_ns_ = now_ns;
    log_warn("frame refused", {{"key", inbound.name}, {"why", printable(why, 200)}});
  }

  void tick() {
    const int64_t now_ns = monotonic_ns();
    if (now_ns - ticked_ns_ < kTickMs * kNsPerMs / 2) return;
    ticked_ns_ = now_ns;
    core_.on_tick(now_ns, actions_);
    carry_out(now_ns);
    for (const NodeChange& change : core_.take_changes()) log_change(change);
    if (now_ns - published_ns_ >= kPublishEveryNs) publish(now_ns);
    if (now_ns - metered_ns_ >= kMetricsEveryNs) {
      metered_ns_ = now_ns;
      metrics_.update(core_, listener_->refused_count());
    }
    if (now_ns - peers_swept_ns_ >= kPeerSweepEveryNs) {
      peers_swept_ns_ = now_ns;
      peers_.sweep(now_ns);
    }
  }

  void publish(int64_t now_ns) {
    published_ns_ = now_ns;
    const auto counts = core_.count_nodes();
    int64_t known = 0;
    for (const auto& state : counts) {
      for (const int64_t count : state) known += count;
    }
    const auto& fresh = counts[0];
    service_.publish(core_.models(), fresh[1] + fresh[2], known);
  }

  void carry_out(int64_t now_ns) {
    // A sink or a message that cannot be sent may lead to further actions: a growing list, read by
    // index.
    for (size_t i = 0; i < actions_.size(); ++i) {
      Action action = std::move(actions_[i]);
      if (auto* deliver = std::get_if<Deliver>(&action)) {
        hand_over(*deliver);
        continue;
      }
      const auto& send = std::get<Send>(action);
      if (peers_.queue(send.peer, send.message, now_ns)) continue;
      if (const auto* submit = std::get_if<Submit>(&send.message))
        core_.on_unsendable(*submit, now_ns, actions_);
    }
    actions_.clear();
  }

  void hand_over(Deliver& deliver) {
    const auto sink = sinks_.find(deliver.client);
    UPDRAFT_CHECK(sink != sinks_.end(), "an event after the end");
    if (is_end(deliver.event)) {
      const EventSink last = std::move(sink->second);
      sinks_.erase(sink);
      last(std::move(deliver.event));
    } else {
      sink->second(std::move(deliver.event));
    }
  }

  bool flush() {
    const int64_t now_ns = monotonic_ns();
    const bool sent = peers_.flush(*listener_, now_ns, gone_);
    for (const PeerTable::Gone& gone : gone_)
      core_.on_peer_gone(gone.peer, gone.why, now_ns, actions_);
    const bool queued_more = !gone_.empty();
    gone_.clear();
    carry_out(now_ns);
    return sent || queued_more;
  }

  void end() {
    pool_readable_.reset();
    tick_due_.reset();
    const int64_t started_ns = monotonic_ns();
    take_hand_ins();
    core_.end_all(started_ns, actions_);
    carry_out(started_ns);
    while (peers_.pending() && monotonic_ns() - started_ns < kFarewellNs) {
      if (!flush()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    for (const NodeChange& change : core_.take_changes()) log_change(change);
    metrics_.update(core_, listener_->refused_count());
    UPDRAFT_CHECK(sinks_.empty(), "a request without an end");
    ended_ = true;
  }

  const RelayConfig config_;
  MemoryWatch& memory_;
  EventLoop& loop_;
  std::atomic<bool> turn_posted_{false};
  RouterService service_;
  Mailbox<Call> calls_;
  std::mutex stop_mutex_;  // guards working_
  bool working_ = false;
  std::string endpoint_;

  // The loop's thread owns the rest.
  std::unique_ptr<EventLoop::Subscription> pool_readable_;
  std::unique_ptr<EventLoop::Subscription> tick_due_;
  bool ended_ = false;
  RouterCore core_;
  PeerTable peers_;
  RouterMetrics metrics_;
  std::unique_ptr<NetContext> context_;
  std::unique_ptr<PoolListener> listener_;
  std::unordered_map<ClientId, EventSink> sinks_;
  ClientId last_client_ = 0;
  Actions actions_;
  std::vector<Submission> submissions_;
  std::vector<RequestId> cancels_;
  std::vector<PeerTable::Gone> gone_;
  int64_t ticked_ns_ = 0;
  int64_t published_ns_ = 0;
  int64_t metered_ns_ = 0;
  int64_t peers_swept_ns_ = 0;
  int64_t complained_ns_ = 0;
};

}  // namespace

Result<std::unique_ptr<Relay>> Relay::start(RelayConfig config, Metrics& metrics,
                                            MemoryWatch& memory, EventLoop& loop) {
  auto relay = std::make_unique<RelayImpl>(std::move(config), metrics, memory, loop);
  if (Result<void> opened = relay->open(); !opened) return opened.error();
  return std::unique_ptr<Relay>(std::move(relay));
}

}  // namespace updraft
