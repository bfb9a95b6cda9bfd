// The thread that serves local clients: handshakes, rings, the control channel, the ends of
// sessions.
#include "edge/local_server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <variant>

#include "common/base/clock.h"
#include "common/base/idle_work.h"
#include "common/base/mailbox.h"
#include "common/ipc/doorbell.h"
#include "common/ipc/listen_fds.h"
#include "common/ipc/unix_socket.h"
#include "common/log/log.h"
#include "common/message/handshake.h"
#include "common/message/pool_message.h"
#include "common/message/request_check.h"
#include "common/net/control_socket.h"
#include "edge/local_answer.h"
#include "edge/local_payload.h"
#include "edge/local_session.h"

namespace updraft {
namespace {

using namespace ipc;

constexpr int kRequestsPerSessionMax = 64;
constexpr int kSubmissionsPerTurn = 32;  // fairness between sessions
constexpr int kControlMessagesPerTurn = 64;
constexpr size_t kPostedEventsMax = 1 << 16;
constexpr int64_t kHandshakeNs = 3 * kNsPerSecond;
constexpr int64_t kSpinSliceNs = 5 * kNsPerUs;  // between two looks at everything else
constexpr size_t kSpinSessionsMax = 8;  // more hot sessions than this keep the thread awake anyway
constexpr int kSpinTurnsMax = 16;       // then everybody else has a turn
constexpr int kTickMs = 200;            // while something waits for the clock
constexpr int64_t kIdleWaitMsMax = 3'600'000;
constexpr rlim_t kDescriptorsPerSession = 4;  // socket, pidfd, two doorbells

// What an epoll entry stands for, packed into its 64 bits: session id << 3 | source.
enum class Source : uint64_t { kListener, kPosted, kControl, kSocket, kDoorbell, kProcess };
uint64_t tag(Source source, uint64_t session_id = 0) {
  return session_id << 3 | static_cast<uint64_t>(source);
}

// What sinks send to the server's thread: an unmapped session's event, or what a delivery to a
// mapped one asks for.
struct Posted {
  uint64_t session_id = 0;
  LocalTicket ticket;
  std::variant<Event, LocalOutbox::Outcome> what;
};

class LocalServerImpl;

// The submission rings, looked at by the service's own thread while it has nothing to do
// (InferenceService::look_while_idle): while it sleeps here a doorbell wakes it in place of the
// server's thread, and it reads the request itself, if that is small. Outlives the server in the
// service's hands.
//
// Both threads have the doorbells in their epoll sets, exclusively: one ring wakes one of them,
// this one first when it sleeps. Whoever was woken and does not do all the work rings again.
class RingsForIdle final : public IdleWork {
 public:
  static Result<std::shared_ptr<RingsForIdle>> create(LocalServerImpl& server,
                                                      std::shared_ptr<Doorbell> server_wake,
                                                      int64_t spin_us) {
    Result<Doorbell> wake = Doorbell::create();
    if (!wake) return wake.error();
    UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
    if (!epoll) return fail("epoll_create1 failed");
    auto rings = std::shared_ptr<RingsForIdle>(new RingsForIdle(
        server, std::move(server_wake), spin_us, std::move(*wake), std::move(epoll)));
    rings->watch(rings->wake_.fd(), 0);
    return rings;
  }

  // Session ids begin at 1.
  void watch(int fd, uint64_t session_id) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLEXCLUSIVE;
    event.data.u64 = session_id;
    UPDRAFT_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0);
  }
  void unwatch(int fd) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

  bool wait(std::chrono::nanoseconds timeout) override;
  void wake() override { wake_.ring(); }
  void look(const std::function<bool()>& enough) override;

  // Sessions that rang here while the server's thread had the turn.
  std::vector<uint64_t> take_left() {
    const std::lock_guard lock(left_mutex_);
    return std::exchange(left_, {});
  }

  // The service does look: the server's thread need not stay awake for the same.
  bool used() const { return used_.load(std::memory_order_relaxed); }

  // Held by whoever works on the server's state: its thread but for its sleep, or a look from here.
  std::mutex& turn() { return turn_; }
  // The server goes away.
  void close() {
    const std::lock_guard lock(turn_);
    server_ = nullptr;
  }

 private:
  RingsForIdle(LocalServerImpl& server, std::shared_ptr<Doorbell> server_wake, int64_t spin_us,
               Doorbell wake, UniqueFd epoll)
      : server_(&server),
        server_wake_(std::move(server_wake)),
        spin_us_(spin_us),
        wake_(std::move(wake)),
        epoll_(std::move(epoll)) {}

  void leave(uint64_t session_id) {
    {
      const std::lock_guard lock(left_mutex_);
      if (std::find(left_.begin(), left_.end(), session_id) == left_.end())
        left_.push_back(session_id);
    }
    server_wake_->ring();
  }

  std::mutex turn_;
  LocalServerImpl* server_;  // guarded by turn_
  std::atomic<bool> used_ = false;
  std::mutex left_mutex_;
  std::vector<uint64_t> left_;  // guarded by left_mutex_; each session once
  const std::shared_ptr<Doorbell> server_wake_;
  const int64_t spin_us_;
  const Doorbell wake_;
  const UniqueFd epoll_;  // the doorbells of mapped sessions, and wake_
};

class LocalServerImpl final : public LocalServer {
 public:
  // The doorbell is shared with the mailbox, which outlives the server in the hands of running
  // sinks.
  LocalServerImpl(LocalServerConfig config, InferenceService& service,
                  std::shared_ptr<Doorbell> wake)
      : config_(std::move(config)),
        service_(service),
        wake_(std::move(wake)),
        posted_(std::make_shared<Mailbox<Posted>>(kPostedEventsMax,
                                                  [bell = wake_] { bell->ring(); })) {}

  ~LocalServerImpl() override {
    stopping_ = true;
    wake_->ring();
    if (thread_.joinable()) thread_.join();
    if (rings_) {
      service_.look_while_idle(nullptr);
      rings_->close();
    }
    // Ends every session: what runs is cancelled, later events of the service fall into a closed
    // mailbox.
    while (!sessions_.empty()) end_session(sessions_.begin()->first, "the daemon stops");
    for (const Orphan& orphan : orphans_) service_.cancel(orphan.service_id);
    posted_->close();
    if (owns_socket_file_) ::unlink(config_.socket_path.c_str());
  }

  Result<void> open() {
    Result<LocalListener> listener = listen_or_inherit(config_.socket_path);
    if (!listener) return listener.error();
    listener_ = std::move(listener->fd);
    owns_socket_file_ = !listener->inherited;
    control_endpoint_ = "ipc://" + config_.socket_path + ".control";
    Result<std::unique_ptr<ControlListener>> control = ControlListener::bind(control_endpoint_);
    if (!control) return control.error();
    control_ = std::move(control).value();
    ::chmod((config_.socket_path + ".control").c_str(), 0600);
    epoll_ = UniqueFd(epoll_create1(EPOLL_CLOEXEC));
    if (!epoll_) return fail("epoll_create1 failed");
    watch(listener_.get(), tag(Source::kListener));
    watch(wake_->fd(), tag(Source::kPosted));
    watch(control_->poll_fd(), tag(Source::kControl));
    raise_descriptor_limit();
    // Another one for each server, also of one process within one second.
    boot_epoch_ = static_cast<uint64_t>(unix_seconds()) << 20 |
                  (std::hash<std::string>{}(new_request_id()) & 0xFFFFF);
    Result<std::shared_ptr<RingsForIdle>> rings =
        RingsForIdle::create(*this, wake_, config_.spin_us);
    if (!rings) return rings.error();
    rings_ = std::move(*rings);
    thread_ = std::thread([this] { run(); });
    service_.look_while_idle(rings_);
    return {};
  }

  LocalServerStats stats() const override {
    LocalServerStats out;
    out.sessions = session_count_.load(std::memory_order_relaxed);
    out.mapped_bytes = mapped_->bytes.load(std::memory_order_relaxed);
    out.huge_page_bytes = mapped_->huge_bytes.load(std::memory_order_relaxed);
    out.requests_in_flight = requests_->load(std::memory_order_relaxed);
    out.requests_taken = taken_.load(std::memory_order_acquire);
    out.sessions_refused = refused_.load(std::memory_order_relaxed);
    out.segments_refused = segments_refused_.load(std::memory_order_relaxed);
    out.requests_over_quota = over_quota_.load(std::memory_order_relaxed);
    out.streams_stalled = stalled_.load(std::memory_order_relaxed);
    out.sessions_broken = broken_.load(std::memory_order_relaxed);
    return out;
  }

  // --- what the service's idle thread does, with the turn ---
  // The session rang.
  void answer_bell(uint64_t id) {
    const auto it = sessions_.find(id);
    if (it == sessions_.end() || !it->second->mapped) return;
    if (hear_bell(*it->second)) (void)take_small(id);
  }

  // The session submitted. One request, so that the service's thread gets to work; what follows it
  // or is not small is left to the server's thread.
  bool take_small(uint64_t id) {
    const auto it = sessions_.find(id);
    if (it == sessions_.end()) return false;
    LocalSession& session = *it->second;
    LocalSession::Mapped& mapped = *session.mapped;
    const bool taken = mapped.submit.maybe_ready() && session.next_is_small();
    if (taken && !take_submissions(session, 1)) return true;
    // Nobody looks from here on: the next one rings, and one that is there already has to.
    if (!mapped.submit.prepare_wait()) mapped.daemon_bell.ring();
    return taken;
  }

  // Sessions whose requests were taken since the last look are likely to submit again.
  bool begin_look() {
    for_recent([](LocalSession& session) { session.mapped->submit.stop_waiting(); });
    return !recent_.empty();
  }
  bool look_once() {
    for (size_t i = 0; i < recent_.size(); ++i) {
      const auto it = sessions_.find(recent_[i]);
      if (it != sessions_.end() && it->second->mapped->submit.maybe_ready())
        return take_small(recent_[i]);
    }
    return false;
  }
  // What came at the last moment is the server's thread's.
  void end_look(bool found) {
    for_recent([](LocalSession& session) {
      LocalSession::Mapped& mapped = *session.mapped;
      if (!mapped.submit.prepare_wait()) mapped.daemon_bell.ring();
    });
    if (!found) recent_.clear();
  }

 private:
  template <typename Do>
  void for_recent(Do what) {
    for (const uint64_t id : recent_) {
      if (const auto it = sessions_.find(id); it != sessions_.end()) what(*it->second);
    }
  }

  void watch(int fd, uint64_t what, uint32_t events = EPOLLIN | EPOLLRDHUP) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = what;
    UPDRAFT_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0);
  }

  // A descriptor whose file the client holds open too stays in the epoll set when it is only closed
  // here.
  void unwatch(int fd) {
    if (fd >= 0) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  }

  // Every session holds descriptors; the soft limit of 1,024 ends at 250 sessions.
  void raise_descriptor_limit() const {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    const rlim_t wanted = static_cast<rlim_t>(config_.sessions_max) * kDescriptorsPerSession + 1024;
    if (limit.rlim_cur >= wanted) return;
    limit.rlim_cur = std::min(wanted, limit.rlim_max);
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < wanted) {
      log_warn("fewer descriptors than sessions may need",
               {{"descriptors", limit.rlim_cur}, {"wanted", wanted}});
    }
  }

  void run() {
    epoll_event events[64];
    std::unique_lock turn(rings_->turn());
    while (!stopping_) {
      spin_for_submissions();
      const bool clock_matters =
          !waiting_handshakes_.empty() || !watched_.empty() || !orphans_.empty();
      // Awake: only a look at what else there is.
      const int timeout_ms = !hot_.empty() ? 0 : clock_matters ? kTickMs : -1;
      turn.unlock();
      const int count = epoll_wait(epoll_.get(), events, 64, timeout_ms);
      turn.lock();
      for (int i = 0; i < count && !stopping_; ++i) handle(events[i].data.u64, events[i].events);
      // ZeroMQ's descriptor tells only of changes: look each time round.
      while (control_->receive(kControlMessagesPerTurn, [this](ControlListener::Inbound&& in) {
        handle_control(std::move(in));
      }) > 0) {
      }
      drop_late_handshakes();
      end_stalled_streams();
      cancel_orphans();
    }
  }

  // Sessions that just submitted are likely to do so again: a few microseconds of looking at their
  // rings cost less than a sleep and a wake-up. Afterwards the waiter flags are up, so that the
  // next submission rings.
  void spin_for_submissions() {
    if (hot_.empty()) return;
    for (int turn = 0; turn < kSpinTurnsMax && hot_.size() <= kSpinSessionsMax; ++turn) {
      if (!spin_once()) break;
    }
    if (monotonic_ns() < awake_until_ns_) return;
    for (const uint64_t id : std::exchange(hot_, {})) {
      const auto it = sessions_.find(id);
      if (it == sessions_.end()) continue;
      LocalSession::Mapped& mapped = *it->second->mapped;
      it->second->hot = false;
      if (!mapped.submit.prepare_wait()) mapped.daemon_bell.ring();
    }
  }

  // True when one of the hot sessions had something within a slice of the time to be awake.
  bool spin_once() {
    const int64_t until_ns = std::min(monotonic_ns() + kSpinSliceNs, awake_until_ns_);
    do {
      for (size_t i = 0; i < hot_.size(); ++i) {
        const uint64_t id = hot_[i];
        const auto it = sessions_.find(id);
        if (it == sessions_.end() || !it->second->mapped->submit.maybe_ready()) continue;
        take_submissions(id);
        return true;
      }
    } while (monotonic_ns() < until_ns);
    return false;
  }

  void handle(uint64_t what, uint32_t events) {
    const auto source = static_cast<Source>(what & 7);
    const uint64_t id = what >> 3;
    switch (source) {
      case Source::kListener:
        accept_clients();
        return;
      case Source::kPosted:
        deliver_posted();
        return;
      case Source::kControl:
        return;  // handled after every round
      case Source::kSocket:
        handle_socket(id, events);
        return;
      case Source::kDoorbell:
        handle_doorbell(id);
        return;
      case Source::kProcess:
        end_session(id, "the client's process ended");
        return;
    }
  }

  // --- handshakes ---
  void accept_clients() {
    for (;;) {
      Result<UniqueFd> socket = accept_unix(listener_);
      if (!socket) {
        log_warn("local client not accepted", {{"why", socket.message()}});
        return;
      }
      if (!*socket) return;
      const uint64_t id = ++last_session_id_;
      watch(socket->get(), tag(Source::kSocket, id));
      waiting_handshakes_.emplace(id, Waiting{std::move(*socket), monotonic_ns()});
    }
  }

  void drop_late_handshakes() {
    const int64_t now_ns = monotonic_ns();
    for (auto it = waiting_handshakes_.begin(); it != waiting_handshakes_.end();) {
      it = now_ns - it->second.since_ns > kHandshakeNs ? waiting_handshakes_.erase(it)
                                                       : std::next(it);
    }
  }

  void handle_socket(uint64_t id, uint32_t events) {
    if (const auto it = waiting_handshakes_.find(id); it != waiting_handshakes_.end()) {
      UniqueFd socket = std::move(it->second.socket);
      waiting_handshakes_.erase(it);
      shake_hands(id, std::move(socket));
      return;
    }
    if ((events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0) {
      // One that leaves for good says so with its last breath.
      const auto it = sessions_.find(id);
      if (it != sessions_.end() && it->second->resume_ms > 0) {
        Result<SocketMessage> last = receive_message(it->second->socket, 0);
        if (last.ok() && last->bytes.size() == kGoodbyeBytes)
          return end_session(id, "the client left");
      }
      end_session(id, "the client hung up", true);
    } else if (sessions_.contains(id)) {
      handle_session_message(*sessions_.at(id));
    }
  }

  // After the handshake a client says two things on its socket: here is a further segment, and
  // good-bye.
  void handle_session_message(LocalSession& session) {
    Result<SocketMessage> message = receive_message(session.socket, 0);
    if (!message) return end_session(session.id, message.message());
    if (message->hung_up) return end_session(session.id, "the client hung up", true);
    if (message->bytes.empty()) return;
    if (message->bytes.size() == kGoodbyeBytes) return end_session(session.id, "the client left");
    const Result<Handshake> decoded = decode_handshake(message->bytes);
    const auto* add = decoded ? std::get_if<LocalAddSegment>(&*decoded) : nullptr;
    if (add == nullptr || !session.mapped || message->fds.size() != 1) {
      return end_session(session.id,
                         "the client said something else on its socket than a further segment");
    }
    const auto kind = add->one_off ? PayloadSegment::Kind::kOneOff : PayloadSegment::Kind::kArea;
    const Result<void> added =
        session.mapped->memory->adopt_further(add->number, std::move(message->fds[0]), kind);
    if (!added) {
      segments_refused_.fetch_add(1, std::memory_order_relaxed);
      log_warn("further segment refused", {{"session", session.id}, {"why", added.message()}});
    }
    const Handshake answer = added ? Handshake(LocalSegmentAdded{add->number})
                                   : Handshake(LocalRefusal{added.message()});
    // The socket never blocks: a client that lets its answers pile up loses its session.
    if (auto sent = send_message(session.socket, encode_handshake(answer)); !sent)
      end_session(session.id, sent.message());
  }

  void refuse(const UniqueFd& socket, const std::string& why) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    log_warn("local session refused", {{"why", why}});
    (void)send_message(socket, encode_handshake(LocalRefusal{why}));
  }

  void shake_hands(uint64_t id, UniqueFd socket) {
    Result<SocketMessage> message = receive_message(socket, 0);
    if (!message) return refuse(socket, message.message());
    if (message->hung_up || message->bytes.empty()) return;
    Result<Handshake> decoded = decode_handshake(message->bytes);
    if (!decoded) return refuse(socket, decoded.message());
    const auto* hello = std::get_if<LocalHello>(&*decoded);
    if (hello == nullptr) return refuse(socket, "the first message must be a hello");
    if (hello->abi_version != kAbiVersion || hello->protocol_version != kLocalProtocolVersion) {
      return refuse(socket, "the client speaks ABI " + std::to_string(hello->abi_version) +
                                " and protocol " + std::to_string(hello->protocol_version) +
                                ", this daemon " + std::to_string(kAbiVersion) + " and " +
                                std::to_string(kLocalProtocolVersion));
    }
    Result<PeerCredentials> peer = peer_credentials(socket);
    if (!peer) return refuse(socket, peer.message());
    if (peer->uid != getuid() && peer->uid != 0)
      return refuse(socket, "user " + std::to_string(peer->uid) + " may not use this daemon");
    if (static_cast<int32_t>(sessions_.size()) >= config_.sessions_max) {
      return refuse(socket, "all " + std::to_string(config_.sessions_max) + " sessions are taken");
    }
    if (sessions_of(peer->uid) >= config_.sessions_per_uid_max) {
      return refuse(socket, "user " + std::to_string(peer->uid) + " has " +
                                std::to_string(config_.sessions_per_uid_max) +
                                " sessions already, more are not allowed");
    }
    auto session = std::make_unique<LocalSession>();
    session->id = id;
    session->peer = *peer;
    session->client_name = hello->client_name;
    session->token = new_request_id();
    session->resume_ms = hello->resume_ms;
    if (!message->fds.empty()) {
      if (auto mapped = map_segment(*session, std::move(message->fds)); !mapped)
        return refuse(socket, mapped.message());
    }
    std::optional<LocalOutbox::Mapped> way_out;
    if (session->mapped)
      way_out.emplace(LocalOutbox::Mapped{session->mapped->segment, session->mapped->client_bell});
    session->outbox = std::make_shared<LocalOutbox>(std::move(way_out), requests_);
    // A client in another pid namespace has no process here; the socket's hang-up still tells of
    // its end.
    if (Result<UniqueFd> pidfd = peer_pidfd(peer->pid); pidfd)
      session->pidfd = std::move(pidfd).value();
    admit(std::move(session), std::move(socket));
  }

  // Handshakes are rare enough to count.
  int32_t sessions_of(uid_t uid) const {
    return static_cast<int32_t>(
        std::count_if(sessions_.begin(), sessions_.end(),
                      [uid](const auto& entry) { return entry.second->peer.uid == uid; }));
  }

  Result<void> map_segment(LocalSession& session, std::vector<UniqueFd> fds) {
    if (fds.size() != 3)
      return fail("the hello carries " + std::to_string(fds.size()) +
                  " descriptors, 0 or 3 are expected");
    std::shared_ptr<MappedUse>& of_user = mapped_by_uid_[session.peer.uid];
    if (!of_user) of_user = std::make_shared<MappedUse>();
    auto memory = std::make_unique<LocalMemory>(
        LocalMemory::Limits{config_.segment_bytes_max, config_.segment_bytes_per_uid_max,
                            session.peer.uid},
        of_user, mapped_);
    if (auto adopted = memory->adopt_own(std::move(fds[0])); !adopted) return adopted;
    Result<Doorbell> client = Doorbell::adopt(std::move(fds[1]));
    if (!client) return client.error();
    Result<Doorbell> daemon = Doorbell::adopt(std::move(fds[2]));
    if (!daemon) return daemon.error();
    const std::shared_ptr<Segment> segment = memory->own();
    session.mapped.emplace(LocalSession::Mapped{
        segment, std::make_shared<Doorbell>(std::move(client).value()), std::move(daemon).value(),
        RingConsumer(segment->submit_ring()), std::move(memory)});
    return {};
  }

  void admit(std::unique_ptr<LocalSession> session, UniqueFd socket) {
    const uint64_t id = session->id;
    LocalWelcome welcome;
    welcome.boot_epoch = boot_epoch_;
    welcome.session_token = session->token;
    welcome.control_endpoint = control_endpoint_;
    welcome.requests_max = kRequestsPerSessionMax;
    welcome.segment_bytes_max = static_cast<uint64_t>(config_.segment_bytes_max);
    for (const ModelInfo& model : service_.models())
      welcome.models.push_back({model.id, model.context_tokens, model.embedding_dim});
    if (auto sent = send_message(socket, encode_handshake(welcome)); !sent) return;
    session->socket = std::move(socket);
    if (session->pidfd) watch(session->pidfd.get(), tag(Source::kProcess, id));
    if (session->mapped) {
      // In this order: the first one is woken first.
      rings_->watch(session->mapped->daemon_bell.fd(), id);
      watch(session->mapped->daemon_bell.fd(), tag(Source::kDoorbell, id),
            EPOLLIN | EPOLLEXCLUSIVE);
    }
    log_info("local session began",
             {{"session", id}, {"pid", session->peer.pid}, {"client", session->client_name}});
    by_token_[session->token] = id;
    sessions_.emplace(id, std::move(session));
    session_count_.store(static_cast<int32_t>(sessions_.size()), std::memory_order_relaxed);
    if (sessions_.at(id)->mapped) take_submissions(id);  // what was there before the doorbell
  }

  // may_return: the client's process may still be there and connect again; a session that asked for
  // it leaves its requests running for a while.
  void end_session(uint64_t id, const std::string& why, bool may_return = false) {
    const auto it = sessions_.find(id);
    if (it == sessions_.end()) return;
    LocalSession& session = *it->second;
    const std::vector<RequestId> open = session.outbox->close();
    if (may_return && session.resume_ms > 0 && session.pidfd) {
      const int64_t until_ns = monotonic_ns() + session.resume_ms * kNsPerMs;
      const auto process = std::make_shared<UniqueFd>(dup(session.pidfd.get()));
      for (const RequestId& request : open) {
        service_.resume(request);  // nobody is slow any more
        orphans_.push_back({request, until_ns, process});
      }
    } else {
      for (const RequestId& request : open) service_.cancel(request);
    }
    unwatch(session.socket.get());
    unwatch(session.pidfd.get());
    if (session.mapped) {
      unwatch(session.mapped->daemon_bell.fd());
      rings_->unwatch(session.mapped->daemon_bell.fd());
    }
    log_info("local session ended", {{"session", id}, {"in_flight", open.size()}, {"why", why}});
    by_token_.erase(session.token);
    watched_.erase(id);
    sessions_.erase(it);
    session_count_.store(static_cast<int32_t>(sessions_.size()), std::memory_order_relaxed);
  }

  void break_session(uint64_t id, const std::string& why) {
    broken_.fetch_add(1, std::memory_order_relaxed);
    end_session(id, why, true);
  }

  // Requests whose session is gone: ended when their client does not come back in time, or died.
  void cancel_orphans() {
    if (orphans_.empty()) return;
    const int64_t now_ns = monotonic_ns();
    std::erase_if(orphans_, [&](const Orphan& orphan) {
      pollfd process{orphan.process->get(), POLLIN, 0};
      if (now_ns < orphan.until_ns && ::poll(&process, 1, 0) == 0) return false;
      service_.cancel(orphan.service_id);
      return true;
    });
  }

  // --- requests ---
  void handle_doorbell(uint64_t id) {
    const auto it = sessions_.find(id);
    if (it == sessions_.end() || !it->second->mapped) return;
    if (hear_bell(*it->second)) take_submissions(id);
  }

  // What the client may have rung for besides a submission: it has read. False: it is gone.
  bool hear_bell(LocalSession& session) {
    session.mapped->daemon_bell.clear();
    if (auto flushed = session.outbox->flush(); !flushed) {
      break_session(session.id, flushed.message());
      return false;
    }
    change_flow(session.id);
    return true;
  }

  // On the server's thread; leaves the session hot (spin_for_submissions).
  void take_submissions(uint64_t id) {
    LocalSession& session = *sessions_.at(id);
    // The engine's wake-up runs beside the reading of the request.
    if (session.mapped->submit.maybe_ready()) service_.expect();
    if (!take_submissions(session, kSubmissionsPerTurn)) return;
    if (!std::exchange(session.hot, true)) hot_.push_back(id);
  }

  // What the session has submitted, at most so many. False: it is broken and gone.
  bool take_submissions(LocalSession& session, int count_max) {
    for (int taken = 0; taken < count_max; ++taken) {
      Result<std::optional<LocalSession::Submission>> submission = session.next_submission();
      if (!submission) {
        break_session(session.id, submission.message());
        return false;
      }
      if (!*submission) break;
      start(session, std::move(**submission));
      awake_until_ns_ = rings_->used() ? 0 : monotonic_ns() + config_.spin_us * kNsPerUs;
      if (recent_.size() < kSpinSessionsMax &&
          std::find(recent_.begin(), recent_.end(), session.id) == recent_.end())
        recent_.push_back(session.id);
    }
    return true;
  }

  void start(LocalSession& session, LocalSession::Submission submission) {
    Request& request = submission.request;
    const RequestId service_id = new_request_id();
    // Empty: the frame could not be read.
    const RequestId client_id = request.id.empty() ? service_id : request.id;
    request.id = service_id;
    request.tenant = "uid:" + std::to_string(session.peer.uid);
    const LocalTicket ticket = submission.ticket;
    if (!submission.refused) {
      submission.refused = over_quota(session);
      if (submission.refused) over_quota_.fetch_add(1, std::memory_order_relaxed);
    }
    uint64_t digest = 0;
    if (session.mapped && session.resume_ms > 0 && !submission.refused) {
      digest = content_digest(request);
      if (const auto known = answers_.find(session.peer.uid, client_id)) {
        if (known->digest() == digest) return give_again(session, ticket, client_id, known);
        submission.refused =
            error_of(ErrorCode::kInvalidRequest,
                     "request id \"" + printable(client_id) +
                         "\" stands for another request, which was handed over less than a minute "
                         "ago");
      }
    }
    session.outbox->open(ticket, client_id, service_id);
    // Pairs with the acquire in stats(): whoever sees it taken sees it in flight, or ended.
    taken_.fetch_add(1, std::memory_order_release);
    if (session.mapped && session.resume_ms > 0 && !submission.refused) {
      start_resumable(session, ticket, client_id, digest, std::move(submission));
    } else if (session.mapped) {
      start_mapped(session, ticket, std::move(submission));
    } else {
      start_unmapped(session, ticket, std::move(submission));
    }
  }

  std::optional<RequestError> over_quota(const LocalSession& session) const {
    if (session.outbox->in_flight() >= kRequestsPerSessionMax) {
      return error_of(ErrorCode::kRateLimited,
                      "this session has " + std::to_string(kRequestsPerSessionMax) +
                          " requests in flight already",
                      100);
    }
    // Counting goes over all sessions: only when the daemon's sum leaves a doubt.
    if (requests_->load(std::memory_order_relaxed) < config_.requests_per_uid_max)
      return std::nullopt;
    int64_t of_user = 0;
    for (const auto& [id, other] : sessions_) {
      if (other->peer.uid == session.peer.uid)
        of_user += static_cast<int64_t>(other->outbox->in_flight());
    }
    if (of_user < config_.requests_per_uid_max) return std::nullopt;
    return error_of(ErrorCode::kRateLimited,
                    "user " + std::to_string(session.peer.uid) + " has " +
                        std::to_string(config_.requests_per_uid_max) +
                        " requests in flight already",
                    100);
  }

  // The way of one request's events into its session's ring. It may outlive session and server: it
  // holds the outbox and the mailbox, nothing else.
  LocalAnswer::Deliver into_ring(const LocalSession& session, LocalTicket ticket) {
    return [outbox = session.outbox, posted = posted_, id = session.id, ticket](Event event) {
      LocalOutbox::Outcome outcome = outbox->deliver(ticket, std::move(event));
      if (outcome.asks_for_something())
        (void)posted->push_reserved(Posted{id, ticket, std::move(outcome)});
    };
  }

  // The same by way of an answer that can be given again.
  void start_resumable(const LocalSession& session, LocalTicket ticket, const RequestId& client_id,
                       uint64_t digest, LocalSession::Submission submission) {
    auto answer = std::make_shared<LocalAnswer>(submission.request.id, digest);
    answer->session_id = session.id;
    answer->ticket = ticket;
    (void)answer->attach(into_ring(session, ticket));
    answers_.add(session.peer.uid, client_id, answer, monotonic_ns());
    service_.submit(std::move(submission.request),
                    [answer](Event event) { answer->take(std::move(event)); });
  }

  // A request that runs already, or has ended: its answer from the beginning, here from now on.
  void give_again(const LocalSession& session, LocalTicket ticket, const RequestId& client_id,
                  const std::shared_ptr<LocalAnswer>& answer) {
    session.outbox->open(ticket, client_id, answer->service_id());
    taken_.fetch_add(1, std::memory_order_release);
    const LocalAnswer::Deliver here = into_ring(session, ticket);
    if (!answer->attach(here)) {
      return here(error_of(ErrorCode::kNodeLost,
                           "the answer had more than " +
                               std::to_string(LocalAnswer::kKeptBytesMax) +
                               " bytes when its session was lost and cannot be given again"));
    }
    std::erase_if(orphans_,
                  [&](const Orphan& orphan) { return orphan.service_id == answer->service_id(); });
    // Handed over twice by sessions that both live: the first one's ends, by word.
    if (const auto before = sessions_.find(answer->session_id); before != sessions_.end()) {
      into_ring(*before->second, answer->ticket)(error_of(
          ErrorCode::kCancelled, "the same request was handed over again, and is answered there"));
    }
    answer->session_id = session.id;
    answer->ticket = ticket;
  }

  void start_mapped(const LocalSession& session, LocalTicket ticket,
                    LocalSession::Submission submission) {
    const LocalAnswer::Deliver sink = into_ring(session, ticket);
    if (submission.refused) return sink(std::move(*submission.refused));
    service_.submit(std::move(submission.request), sink);
  }

  void start_unmapped(const LocalSession& session, LocalTicket ticket,
                      LocalSession::Submission submission) {
    auto sink = [outbox = session.outbox, posted = posted_, id = session.id, ticket](Event event) {
      const bool end = is_end(event);
      Posted value{id, ticket, std::move(event)};
      // One end per admitted request, so ends are bounded. A chunk that finds the mailbox full
      // leaves a gap: the stream ends with an error then, never with a hole.
      if (end) {
        (void)posted->push_reserved(std::move(value));
      } else if (!posted->push(std::move(value))) {
        LocalOutbox::Outcome lost{outbox->lose(ticket), false, {}};
        if (lost.asks_for_something())
          (void)posted->push_reserved(Posted{id, ticket, std::move(lost)});
      }
    };
    if (submission.refused) return sink(std::move(*submission.refused));
    service_.submit(std::move(submission.request), std::move(sink));
  }

  void deliver_posted() {
    wake_->clear();
    for (const uint64_t id : rings_->take_left()) handle_doorbell(id);
    for (Posted& posted : posted_->drain()) {
      const auto it = sessions_.find(posted.session_id);
      if (it == sessions_.end()) continue;
      if (auto* event = std::get_if<Event>(&posted.what)) {
        const auto frame = it->second->outbox->frame_of(posted.ticket, std::move(*event));
        if (frame) (void)control_->send(it->second->control_peer, *frame);
      } else {
        look_after(it->first, std::get<LocalOutbox::Outcome>(posted.what));
      }
    }
  }

  void look_after(uint64_t id, const LocalOutbox::Outcome& outcome) {
    if (outcome.to_cancel) service_.cancel(*outcome.to_cancel);
    if (outcome.flow) change_flow(id);
    if (!outcome.broken.empty()) break_session(id, outcome.broken);
  }

  // What the session's streams are to do now that its backlog grew or went.
  void change_flow(uint64_t id) {
    LocalOutbox& outbox = *sessions_.at(id)->outbox;
    const LocalOutbox::FlowChanges changes = outbox.flow_changes();
    for (const RequestId& request : changes.to_pause) service_.pause(request);
    for (const RequestId& request : changes.to_resume) service_.resume(request);
    if (outbox.stalled_since_ns()) watched_.insert(id);
  }

  // A client that reads nothing for stall_ms loses its open requests; the backlog keeps their ends.
  void end_stalled_streams() {
    const int64_t now_ns = monotonic_ns();
    for (auto it = watched_.begin(); it != watched_.end();) {
      const uint64_t id = *it;
      LocalOutbox& outbox = *sessions_.at(id)->outbox;
      const std::optional<int64_t> since_ns = outbox.stalled_since_ns();
      const bool stalled = since_ns && now_ns - *since_ns > config_.stall_ms * kNsPerMs;
      if (stalled) {
        const std::vector<RequestId> given_up = outbox.give_up();
        stalled_.fetch_add(static_cast<int64_t>(given_up.size()), std::memory_order_relaxed);
        for (const RequestId& request : given_up) service_.cancel(request);
        if (!given_up.empty()) {
          log_info("local client does not read",
                   {{"session", id}, {"requests_ended", given_up.size()}});
        }
      }
      it = since_ns ? std::next(it) : watched_.erase(it);
    }
  }

  // --- the control channel ---
  void handle_control(ControlListener::Inbound&& in) {
    const auto it = by_token_.find(in.token);
    if (it == by_token_.end()) return;  // a session that ended, or a stranger
    LocalSession& session = *sessions_.at(it->second);
    Result<PoolMessage> message = decode(in.frame);
    if (!message)
      return log_warn("local control message refused",
                      {{"session", session.id}, {"why", message.message()}});
    if (const auto* cancel = std::get_if<Cancel>(&*message)) {
      for (const RequestId& id : session.outbox->service_ids_of(cancel->id)) service_.cancel(id);
    } else if (auto* submit = std::get_if<Submit>(&*message);
               submit != nullptr && !session.mapped) {
      session.control_peer = in.peer;
      LocalSession::Submission submission;
      submission.ticket = {0, session.next_unmapped++};
      submission.request = std::move(submit->request);
      submission.refused = check_request(submission.request);
      if (!submission.refused) submission.refused = check_images(submission.request);
      start(session, std::move(submission));
    }
  }

  struct Orphan {
    RequestId service_id;
    int64_t until_ns;
    std::shared_ptr<UniqueFd> process;  // of its client
  };
  struct Waiting {
    UniqueFd socket;
    int64_t since_ns;
  };

  const LocalServerConfig config_;
  InferenceService& service_;
  const std::shared_ptr<Doorbell> wake_;
  std::shared_ptr<Mailbox<Posted>> posted_;
  std::atomic<bool> stopping_ = false;
  // Snapshots for stats().
  std::atomic<int32_t> session_count_ = 0;
  const std::shared_ptr<MappedUse> mapped_ = std::make_shared<MappedUse>();
  const std::shared_ptr<std::atomic<int32_t>> requests_ = std::make_shared<std::atomic<int32_t>>(0);
  std::atomic<int64_t> taken_ = 0;
  std::atomic<int64_t> refused_ = 0;
  std::atomic<int64_t> segments_refused_ = 0;
  std::atomic<int64_t> over_quota_ = 0;
  std::atomic<int64_t> stalled_ = 0;
  std::atomic<int64_t> broken_ = 0;

  // Owned by whoever has the turn from here on: the server's thread, or the service's idle one.
  UniqueFd listener_;
  bool owns_socket_file_ = false;  // not one that was inherited or is another daemon's
  UniqueFd epoll_;
  std::unique_ptr<ControlListener> control_;
  std::string control_endpoint_;
  uint64_t boot_epoch_ = 0;
  uint64_t last_session_id_ = 0;
  std::map<uint64_t, Waiting> waiting_handshakes_;
  std::map<uint64_t, std::unique_ptr<LocalSession>> sessions_;
  std::map<std::string, uint64_t> by_token_;
  std::map<uid_t, std::shared_ptr<MappedUse>> mapped_by_uid_;
  LocalAnswers answers_;  // of resumable sessions
  std::vector<Orphan> orphans_;
  std::vector<uint64_t> hot_;     // mapped sessions whose ring is polled, not waited for
  int64_t awake_until_ns_ = 0;    // looks at hot rings until then
  std::set<uint64_t> watched_;    // sessions with a backlog
  std::vector<uint64_t> recent_;  // mapped sessions that the service's idle thread looks at
  std::shared_ptr<RingsForIdle> rings_;
  std::thread thread_;
};

bool RingsForIdle::wait(std::chrono::nanoseconds timeout) {
  used_.store(true, std::memory_order_relaxed);
  epoll_event events[8];
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(timeout).count();
  const int count = epoll_wait(epoll_.get(), events, 8,
                               static_cast<int>(std::clamp<int64_t>(ms, 0, kIdleWaitMsMax)));
  bool rung = false;
  for (int i = 0; i < count; ++i) {
    if (events[i].data.u64 == 0) {
      wake_.clear();
      continue;
    }
    rung = true;
    // The server's thread may be long at something: it looks when it is through.
    const std::unique_lock turn(turn_, std::try_to_lock);
    if (!turn) {
      leave(events[i].data.u64);
    } else if (server_ != nullptr) {
      server_->answer_bell(events[i].data.u64);
    }
  }
  return rung;
}

void RingsForIdle::look(const std::function<bool()>& enough) {
  {
    const std::lock_guard turn(turn_);
    if (server_ == nullptr || !server_->begin_look()) return;
  }
  const int64_t until_ns = monotonic_ns() + spin_us_ * kNsPerUs;
  bool found = false;
  do {
    // Not held across the whole time: the server's thread wants it for everything else.
    const std::lock_guard turn(turn_);
    if (server_ == nullptr) return;
    found = server_->look_once();
  } while (!found && !enough() && monotonic_ns() < until_ns);
  const std::lock_guard turn(turn_);
  if (server_ != nullptr) server_->end_look(found);
}

}  // namespace

Result<std::unique_ptr<LocalServer>> LocalServer::start(const LocalServerConfig& config,
                                                        InferenceService& service) {
  Result<Doorbell> wake = Doorbell::create();
  if (!wake) return wake.error();
  auto server = std::make_unique<LocalServerImpl>(
      config, service, std::make_shared<Doorbell>(std::move(wake).value()));
  if (auto opened = server->open(); !opened) return opened.error();
  return std::unique_ptr<LocalServer>(std::move(server));
}

}  // namespace updraft
