// The server's life, and its thread: what it waits for, and how long it stays awake.
#include "edge/local_server.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "common/base/clock.h"
#include "common/ipc/listen_fds.h"
#include "common/log/log.h"
#include "common/message/pool_message.h"
#include "common/message/request_check.h"
#include "edge/local_payload.h"
#include "edge/local_server_class.h"

namespace updraft {

using namespace ipc;

namespace {

constexpr int kControlMessagesPerTurn = 64;
constexpr int64_t kSpinSliceNs = 5 * kNsPerUs;  // between two looks at everything else
constexpr int kSpinTurnsMax = 16;               // then everybody else has a turn
constexpr int kTickMs = 200;                    // while something waits for the clock
constexpr rlim_t kDescriptorsPerSession = 4;    // socket, pidfd, two doorbells

}  // namespace

LocalServerImpl::~LocalServerImpl() {
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

Result<void> LocalServerImpl::open() {
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
  Result<std::shared_ptr<RingsForIdle>> rings = RingsForIdle::create(*this, wake_, config_.spin_us);
  if (!rings) return rings.error();
  rings_ = std::move(*rings);
  thread_ = std::thread([this] { run(); });
  service_.look_while_idle(rings_);
  return {};
}

LocalServerStats LocalServerImpl::stats() const {
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

void LocalServerImpl::watch(int fd, uint64_t what, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = what;
  UPDRAFT_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0);
}

void LocalServerImpl::unwatch(int fd) {
  if (fd >= 0) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void LocalServerImpl::raise_descriptor_limit() const {
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

void LocalServerImpl::run() {
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

void LocalServerImpl::spin_for_submissions() {
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

bool LocalServerImpl::spin_once() {
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

void LocalServerImpl::handle(uint64_t what, uint32_t events) {
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

void LocalServerImpl::handle_control(ControlListener::Inbound&& in) {
  const auto it = by_token_.find(in.token);
  if (it == by_token_.end()) return;  // a session that ended, or a stranger
  LocalSession& session = *sessions_.at(it->second);
  Result<PoolMessage> message = decode(in.frame);
  if (!message)
    return log_warn("local control message refused",
                    {{"session", session.id}, {"why", message.message()}});
  if (const auto* cancel = std::get_if<Cancel>(&*message)) {
    for (const RequestId& id : session.outbox->service_ids_of(cancel->id)) service_.cancel(id);
  } else if (auto* submit = std::get_if<Submit>(&*message); submit != nullptr && !session.mapped) {
    session.control_peer = in.peer;
    LocalSession::Submission submission;
    submission.ticket = {0, session.next_unmapped++};
    submission.request = std::move(submit->request);
    submission.refused = check_request(submission.request);
    if (!submission.refused) submission.refused = check_images(submission.request);
    start(session, std::move(submission));
  }
}

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
