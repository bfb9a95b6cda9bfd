// How sessions begin and end: handshakes, further segments, the sockets' hang-ups, and the requests
// that outlive their session for a while.
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>

#include "common/base/clock.h"
#include "common/ipc/unix_socket.h"
#include "common/log/log.h"
#include "common/message/handshake.h"
#include "edge/local_server_class.h"

namespace updraft {

using namespace ipc;

namespace {

constexpr int64_t kHandshakeNs = 3 * kNsPerSecond;

}  // namespace

void LocalServerImpl::accept_clients() {
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

void LocalServerImpl::drop_late_handshakes() {
  const int64_t now_ns = monotonic_ns();
  for (auto it = waiting_handshakes_.begin(); it != waiting_handshakes_.end();) {
    it =
        now_ns - it->second.since_ns > kHandshakeNs ? waiting_handshakes_.erase(it) : std::next(it);
  }
}

void LocalServerImpl::handle_socket(uint64_t id, uint32_t events) {
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

void LocalServerImpl::handle_session_message(LocalSession& session) {
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
  const Handshake answer =
      added ? Handshake(LocalSegmentAdded{add->number}) : Handshake(LocalRefusal{added.message()});
  // The socket never blocks: a client that lets its answers pile up loses its session.
  if (auto sent = send_message(session.socket, encode_handshake(answer)); !sent)
    end_session(session.id, sent.message());
}

void LocalServerImpl::refuse(const UniqueFd& socket, const std::string& why) {
  refused_.fetch_add(1, std::memory_order_relaxed);
  log_warn("local session refused", {{"why", why}});
  (void)send_message(socket, encode_handshake(LocalRefusal{why}));
}

void LocalServerImpl::shake_hands(uint64_t id, UniqueFd socket) {
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

int32_t LocalServerImpl::sessions_of(uid_t uid) const {
  return static_cast<int32_t>(
      std::count_if(sessions_.begin(), sessions_.end(),
                    [uid](const auto& entry) { return entry.second->peer.uid == uid; }));
}

Result<void> LocalServerImpl::map_segment(LocalSession& session, std::vector<UniqueFd> fds) {
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

void LocalServerImpl::admit(std::unique_ptr<LocalSession> session, UniqueFd socket) {
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
    watch(session->mapped->daemon_bell.fd(), tag(Source::kDoorbell, id), EPOLLIN | EPOLLEXCLUSIVE);
  }
  log_info("local session began",
           {{"session", id}, {"pid", session->peer.pid}, {"client", session->client_name}});
  by_token_[session->token] = id;
  sessions_.emplace(id, std::move(session));
  session_count_.store(static_cast<int32_t>(sessions_.size()), std::memory_order_relaxed);
  if (sessions_.at(id)->mapped) take_submissions(id);  // what was there before the doorbell
}

void LocalServerImpl::end_session(uint64_t id, const std::string& why, bool may_return) {
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

void LocalServerImpl::break_session(uint64_t id, const std::string& why) {
  broken_.fetch_add(1, std::memory_order_relaxed);
  end_session(id, why, true);
}

void LocalServerImpl::cancel_orphans() {
  if (orphans_.empty()) return;
  const int64_t now_ns = monotonic_ns();
  std::erase_if(orphans_, [&](const Orphan& orphan) {
    pollfd process{orphan.process->get(), POLLIN, 0};
    if (now_ns < orphan.until_ns && ::poll(&process, 1, 0) == 0) return false;
    service_.cancel(orphan.service_id);
    return true;
  });
}

}  // namespace updraft
