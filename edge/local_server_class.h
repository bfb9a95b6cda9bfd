// The class behind LocalServer::start(), for the three files that implement it: local_server.cpp
// has its life and its thread, local_server_sessions.cpp how sessions begin and end,
// local_server_requests.cpp what becomes of a submission and of the events that answer it. The
// memory of a session is local_memory.h's, its way out local_outbox.h's.
#pragma once

#include <sys/epoll.h>
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/mailbox.h"
#include "common/ipc/doorbell.h"
#include "common/ipc/segment.h"
#include "common/net/control_socket.h"
#include "edge/idle_rings.h"
#include "edge/local_answer.h"
#include "edge/local_memory.h"
#include "edge/local_outbox.h"
#include "edge/local_server.h"
#include "edge/local_session.h"

namespace updraft {

class LocalServerImpl final : public LocalServer, public RingOwner {
 public:
  // The doorbell is shared with the mailbox, which outlives the server in the hands of running
  // sinks.
  LocalServerImpl(LocalServerConfig config, InferenceService& service,
                  std::shared_ptr<ipc::Doorbell> wake)
      : config_(std::move(config)),
        service_(service),
        wake_(std::move(wake)),
        posted_(std::make_shared<Mailbox<Posted>>(kPostedEventsMax,
                                                  [bell = wake_] { bell->ring(); })) {}
  ~LocalServerImpl() override;
  // Errors: as LocalServer::start().
  Result<void> open();
  LocalServerStats stats() const override;

  void answer_bell(uint64_t session_id) override;
  bool begin_look() override;
  bool look_once() override;
  void end_look(bool found) override;

 private:
  static constexpr int kRequestsPerSessionMax = 64;
  static constexpr size_t kPostedEventsMax = 1 << 16;
  // More sessions that are looked at than these keep the thread awake anyway.
  static constexpr size_t kSpinSessionsMax = 8;

  // What an epoll entry stands for, packed into its 64 bits: session id << 3 | source.
  enum class Source : uint64_t { kListener, kPosted, kControl, kSocket, kDoorbell, kProcess };
  static uint64_t tag(Source source, uint64_t session_id = 0) {
    return session_id << 3 | static_cast<uint64_t>(source);
  }

  // What sinks send to the server's thread: an unmapped session's event, or what a delivery to a
  // mapped one asks for.
  struct Posted {
    uint64_t session_id = 0;
    LocalTicket ticket;
    std::variant<Event, LocalOutbox::Outcome> what;
  };
  struct Orphan {
    RequestId service_id;
    int64_t until_ns;
    std::shared_ptr<ipc::UniqueFd> process;  // of its client
  };
  struct Waiting {
    ipc::UniqueFd socket;
    int64_t since_ns;
  };

  // --- local_server.cpp ---
  void watch(int fd, uint64_t what, uint32_t events = EPOLLIN | EPOLLRDHUP);
  // A descriptor whose file the client holds open too stays in the epoll set when it is only closed
  // here.
  void unwatch(int fd);
  // Every session holds descriptors; the soft limit of 1,024 ends at 250 sessions.
  void raise_descriptor_limit() const;
  void run();
  // Sessions that just submitted are likely to do so again: a few microseconds of looking at their
  // rings cost less than a sleep and a wake-up. Afterwards the waiter flags are up, so that the
  // next submission rings.
  void spin_for_submissions();
  // True when one of the hot sessions had something within a slice of the time to be awake.
  bool spin_once();
  void handle(uint64_t what, uint32_t events);
  void handle_control(ControlListener::Inbound&& in);

  // --- local_server_sessions.cpp ---
  void accept_clients();
  void drop_late_handshakes();
  void handle_socket(uint64_t id, uint32_t events);
  // After the handshake a client says two things on its socket: here is a further segment, and
  // good-bye.
  void handle_session_message(LocalSession& session);
  void refuse(const ipc::UniqueFd& socket, const std::string& why);
  void shake_hands(uint64_t id, ipc::UniqueFd socket);
  // Handshakes are rare enough to count.
  int32_t sessions_of(uid_t uid) const;
  Result<void> map_segment(LocalSession& session, std::vector<ipc::UniqueFd> fds);
  void admit(std::unique_ptr<LocalSession> session, ipc::UniqueFd socket);
  // may_return: the client's process may still be there and connect again; a session that asked for
  // it leaves its requests running for a while.
  void end_session(uint64_t id, const std::string& why, bool may_return = false);
  void break_session(uint64_t id, const std::string& why);
  // Requests whose session is gone: ended when their client does not come back in time, or died.
  void cancel_orphans();

  // --- local_server_requests.cpp ---
  template <typename Do>
  void for_recent(Do what) {
    for (const uint64_t id : recent_) {
      if (const auto it = sessions_.find(id); it != sessions_.end()) what(*it->second);
    }
  }
  // The session submitted. One request, so that the service's thread gets to work; what follows it
  // or is not small is left to the server's thread.
  bool take_small(uint64_t id);
  void handle_doorbell(uint64_t id);
  // What the client may have rung for besides a submission: it has read. False: it is gone.
  bool hear_bell(LocalSession& session);
  // On the server's thread; leaves the session hot (spin_for_submissions).
  void take_submissions(uint64_t id);
  // What the session has submitted, at most so many. False: it is broken and gone.
  bool take_submissions(LocalSession& session, int count_max);
  void start(LocalSession& session, LocalSession::Submission submission);
  std::optional<RequestError> over_quota(const LocalSession& session) const;
  // The way of one request's events into its session's ring. It may outlive session and server: it
  // holds the outbox and the mailbox, nothing else.
  LocalAnswer::Deliver into_ring(const LocalSession& session, LocalTicket ticket);
  // The same by way of an answer that can be given again.
  void start_resumable(const LocalSession& session, LocalTicket ticket, const RequestId& client_id,
                       uint64_t digest, LocalSession::Submission submission);
  // A request that runs already, or has ended: its answer from the beginning, here from now on.
  void give_again(const LocalSession& session, LocalTicket ticket, const RequestId& client_id,
                  const std::shared_ptr<LocalAnswer>& answer);
  void start_mapped(const LocalSession& session, LocalTicket ticket,
                    LocalSession::Submission submission);
  void start_unmapped(const LocalSession& session, LocalTicket ticket,
                      LocalSession::Submission submission);
  void deliver_posted();
  void look_after(uint64_t id, const LocalOutbox::Outcome& outcome);
  // What the session's streams are to do now that its backlog grew or went.
  void change_flow(uint64_t id);
  // A client that reads nothing for stall_ms loses its open requests; the backlog keeps their ends.
  void end_stalled_streams();

  const LocalServerConfig config_;
  InferenceService& service_;
  const std::shared_ptr<ipc::Doorbell> wake_;
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
  ipc::UniqueFd listener_;
  bool owns_socket_file_ = false;  // not one that was inherited or is another daemon's
  ipc::UniqueFd epoll_;
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

}  // namespace updraft
