// Drives LinkCore with a PoolDialer on the link's own thread. Other threads only post to the inbox.
#include "common/pool/pool_link.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <variant>

#include "common/base/clock.h"
#include "common/log/log.h"
#include "common/pool/link_core.h"

namespace updraft {
namespace {

constexpr int64_t kPollMsMax = 250;  // the dialer's own pauses end at a call of receive()
constexpr int kFramesPerTurn = 64;
constexpr int64_t kFlushAfterDrainMs = 500;

struct LocalEvent {
  RequestId id;
  uint64_t serial = 0;
  Event event;
};
struct UpwardSubmit {
  Request request;
  EventSink sink;
};
struct UpwardCancel {
  RequestId id;
};
struct StateChange {
  NodeState state = NodeState::kLoading;
};
struct DrainOrder {
  int32_t grace_ms = 0;
};
struct AbandonOrder {};
struct StopOrder {};
using Input = std::variant<LocalEvent, UpwardSubmit, UpwardCancel, StateChange, DrainOrder,
                           AbandonOrder, StopOrder>;

// What other threads say to the link's thread. Not bounded by a count: local events are bounded by
// what the local service has running, requests that rise by their senders' connections. Outlives
// the link, because the local service may still hold sinks; then it is closed and drops.
class Inbox {
 public:
  Inbox() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    UPDRAFT_CHECK(fd_ >= 0, "no descriptor for an eventfd");
  }
  ~Inbox() { close(fd_); }
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;
  int fd() const { return fd_; }

  // False when closed; then `input` is untouched.
  bool post(Input&& input) {
    bool first = false;
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return false;
      first = inputs_.empty();
      inputs_.push_back(std::move(input));
    }
    if (first) {
      const uint64_t one = 1;
      (void)!write(fd_, &one, sizeof one);  // fails only when the counter is already far from zero
    }
    return true;
  }
  std::vector<Input> take() {
    uint64_t count = 0;
    (void)!read(fd_, &count, sizeof count);  // before taking: a post in between wakes again
    const std::lock_guard lock(mutex_);
    return std::exchange(inputs_, {});
  }
  std::vector<Input> close_and_take() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    return std::exchange(inputs_, {});
  }

 private:
  const int fd_;
  std::mutex mutex_;
  std::vector<Input> inputs_;
  bool closed_ = false;
};

RequestError link_closed() {
  return error_of(ErrorCode::kOverloaded, "the pool link is stopping", 2000);
}

class Link : public PoolLink {
 public:
  Link(const PoolLinkConfig& config, NodeHello hello, InferenceService& local,
       std::function<void(NodeBeat&)> fill_beat, std::unique_ptr<NetContext> context,
       std::unique_ptr<PoolDialer> dialer)
      : config_(config),
        local_(local),
        fill_beat_(std::move(fill_beat)),
        context_(std::move(context)),
        dialer_(std::move(dialer)),
        core_(LinkCoreConfig{.hello = std::move(hello),
                             .beat_interval_ms = config.beat_interval_ms,
                             .lease_ttl_ms = config.lease_ttl_ms,
                             .grants = config.grants}),
        upward_(*this),
        thread_([this] { run(); }) {}

  ~Link() override {
    (void)inbox_->post(StopOrder{});
    thread_.join();
  }

  InferenceService& upward() override { return upward_; }
  bool connected() const override { return welcomed_.load(std::memory_order_acquire); }
  std::vector<ModelInfo> pool_models() const override {
    const std::lock_guard lock(mutex_);
    return pool_models_;
  }
  void set_state(NodeState state) override { (void)inbox_->post(StateChange{state}); }

  void drain(int grace_ms) override {
    if (!inbox_->post(DrainOrder{grace_ms})) return;
    const auto wait = [&](int64_t ms) {
      std::unique_lock lock(mutex_);
      return idle_changed_.wait_for(lock, std::chrono::milliseconds(ms),
                                    [&] { return drain_seen_ && idle_; });
    };
    if (wait(grace_ms)) return;
    if (inbox_->post(AbandonOrder{})) wait(kFlushAfterDrainMs);
  }

 private:
  class Upward : public InferenceService {
   public:
    explicit Upward(Link& link) : link_(link) {}
    void submit(Request request, EventSink sink) override {
      Input input = UpwardSubmit{std::move(request), std::move(sink)};
      if (!link_.inbox_->post(std::move(input))) std::get<UpwardSubmit>(input).sink(link_closed());
    }
    void cancel(const RequestId& id) override { (void)link_.inbox_->post(UpwardCancel{id}); }
    std::vector<ModelInfo> models() const override {
      return link_.connected() ? link_.pool_models() : std::vector<ModelInfo>();
    }
    bool ready(std::string* why_not) const override {
      if (link_.connected()) return true;
      if (why_not != nullptr)
        *why_not = "no connection to the router at " + link_.config_.router_endpoint;
      return false;
    }

   private:
    Link& link_;
  };

  // --- the link's thread ---

  void run() {
    while (!stopping_) {
      bool progress = take_inputs();
      progress = receive() || progress;
      follow_connection();
      const int64_t now_ns = monotonic_ns();
      core_.tick(now_ns);
      if (core_.router_silent(now_ns)) {
        dialer_->redial("the router has fallen silent");
        follow_connection();
      }
      carry_out_effects();
      if (core_.beat_due(now_ns)) beat(now_ns);
      core_.pump();
      progress = flush() || progress;
      carry_out_effects();
      publish();
      if (!progress && !stopping_) wait();
    }
    core_.stop();
    carry_out_effects();
    for (Input& input : inbox_->close_and_take()) {
      if (auto* submit = std::get_if<UpwardSubmit>(&input)) submit->sink(link_closed());
    }
    publish();
  }

  bool take_inputs() {
    std::vector<Input> inputs = inbox_->take();
    for (Input& input : inputs) take_input(input);
    return !inputs.empty();
  }

  void take_input(Input& input) {
    const int64_t now_ns = monotonic_ns();
    if (auto* event = std::get_if<LocalEvent>(&input)) {
      core_.on_local_event(event->id, event->serial, std::move(event->event), now_ns);
    } else if (auto* submit = std::get_if<UpwardSubmit>(&input)) {
      core_.on_upward(std::move(submit->request), std::move(submit->sink), now_ns);
    } else if (const auto* cancel = std::get_if<UpwardCancel>(&input)) {
      core_.on_upward_cancel(cancel->id);
    } else if (const auto* change = std::get_if<StateChange>(&input)) {
      core_.set_state(change->state, now_ns);
    } else if (const auto* drain = std::get_if<DrainOrder>(&input)) {
      core_.drain(drain->grace_ms, now_ns);
      drain_taken_ = true;
    } else if (std::holds_alternative<AbandonOrder>(input)) {
      core_.abandon_work();
    } else {
      stopping_ = true;
    }
  }

  bool receive() {
    return dialer_->receive(kFramesPerTurn, [&](std::vector<std::byte>&& frame) {
      follow_connection();
      if (auto taken = core_.on_frame(frame, monotonic_ns()); !taken) {
        log_warn("pool frame refused",
                 {{"router", config_.router_endpoint}, {"why", taken.message()}});
      }
    }) > 0;
  }

  // A new connection ends the session of the old one, even when the break itself went unseen.
  void follow_connection() {
    const bool up = dialer_->connected();
    const uint64_t count = dialer_->connection_count();
    if (session_open_ && (!up || count != session_)) {
      session_open_ = false;
      core_.on_disconnected(monotonic_ns());
      log_warn("pool connection lost", {{"router", config_.router_endpoint}});
    }
    if (!session_open_ && up) {
      session_open_ = true;
      session_ = count;
      core_.on_connected(monotonic_ns());
    }
    if (const std::string problem = dialer_->problem(); problem != problem_logged_) {
      problem_logged_ = problem;
      if (!problem.empty()) log_warn("pool not connected", {{"why", problem}});
    }
  }

  void beat(int64_t now_ns) {
    NodeBeat load;
    fill_beat_(load);
    core_.send_beat(load, now_ns);
  }

  bool flush() {
    if (!session_open_) return false;
    int sent_count = 0;
    for (; sent_count < kFramesPerTurn; ++sent_count) {
      const std::vector<std::byte>* frame = core_.outgoing().front();
      if (frame == nullptr || !dialer_->send(*frame)) break;
      core_.outgoing().pop();
    }
    return sent_count > 0;
  }

  void carry_out_effects() {
    // A service may answer before submit() returns; those events come through the inbox.
    for (LinkCore::Effect& effect : core_.take_effects()) {
      if (auto* submit = std::get_if<LinkCore::SubmitLocal>(&effect)) {
        submit_local(std::move(*submit));
      } else if (const auto* cancel = std::get_if<LinkCore::CancelLocal>(&effect)) {
        local_.cancel(cancel->id);
      } else {
        auto& deliver = std::get<LinkCore::Deliver>(effect);
        deliver.sink(std::move(deliver.event));
      }
    }
  }

  void submit_local(LinkCore::SubmitLocal&& submit) {
    const RequestId id = submit.request.id;
    local_.submit(std::move(submit.request),
                  [inbox = inbox_, id, serial = submit.serial](Event event) {
                    (void)inbox->post(LocalEvent{id, serial, std::move(event)});
                  });
  }

  // What other threads may ask for.
  void publish() {
    const bool welcomed = core_.welcomed();
    if (welcomed != welcomed_.load(std::memory_order_relaxed)) {
      if (welcomed)
        log_info("pool joined", {{"router", config_.router_endpoint}, {"id", core_.router_id()}});
    }
    {
      const std::lock_guard lock(mutex_);
      if (welcome_count_ != core_.welcome_count()) {
        welcome_count_ = core_.welcome_count();
        pool_models_ = core_.pool_models();
      }
      drain_seen_ = drain_taken_;
      idle_ = core_.idle() || (!core_.welcomed() && core_.work_count() == 0);
      if (drain_seen_ && idle_) idle_changed_.notify_all();
    }
    welcomed_.store(
        welcomed,
        std::memory_order_release);  // pairs with the acquire in connected(): the models are there
  }

  void wait() {
    const int64_t left_ns = core_.next_due_ns() - monotonic_ns();
    const int64_t left_ms = std::clamp<int64_t>(left_ns / kNsPerMs + 1, 0, kPollMsMax);
    pollfd fds[2] = {{dialer_->poll_fd(), POLLIN, 0}, {inbox_->fd(), POLLIN, 0}};
    poll(fds, 2, static_cast<int>(left_ms));
  }

  const PoolLinkConfig config_;
  InferenceService& local_;
  const std::function<void(NodeBeat&)> fill_beat_;
  const std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();

  // Owned by the link's thread.
  std::unique_ptr<NetContext> context_;
  std::unique_ptr<PoolDialer> dialer_;
  LinkCore core_;
  bool stopping_ = false;
  bool session_open_ = false;
  uint64_t session_ = 0;
  bool drain_taken_ = false;
  uint64_t welcome_count_ = 0;
  std::string problem_logged_;

  // For any thread.
  std::atomic<bool> welcomed_{false};
  mutable std::mutex mutex_;
  std::condition_variable idle_changed_;
  std::vector<ModelInfo> pool_models_;  // under mutex_
  bool drain_seen_ = false;             // under mutex_
  bool idle_ = true;                    // under mutex_
  Upward upward_;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace

Result<std::unique_ptr<PoolLink>> PoolLink::start(const PoolLinkConfig& config, NodeHello hello,
                                                  InferenceService& local,
                                                  std::function<void(NodeBeat&)> fill_beat) {
  const Result<PoolMessage> announced = decode(encode(hello));
  if (!announced) return announced.error("this node's hello");
  if (config.beat_interval_ms < 10 || config.lease_ttl_ms < 2 * config.beat_interval_ms) {
    return fail("pool link: lease_ms = " + std::to_string(config.lease_ttl_ms) +
                " must be at least twice beat_ms = " + std::to_string(config.beat_interval_ms) +
                ", and that at least 10");
  }
  auto context = NetContext::create();
  auto dialer =
      PoolDialer::connect(*context, config.router_endpoint, config.router_public_key, config.keys);
  if (!dialer) return dialer.error();
  return std::unique_ptr<PoolLink>(std::make_unique<Link>(config, std::move(hello), local,
                                                          std::move(fill_beat), std::move(context),
                                                          std::move(*dialer)));
}

}  // namespace updraft
