// One local client's session as the daemon keeps it: all bookkeeping private, the segment only read
// after copying. Owned by the LocalServer's thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/ipc/doorbell.h"
#include "common/ipc/ring.h"
#include "common/ipc/segment.h"
#include "common/ipc/unix_socket.h"
#include "common/message/event.h"

namespace updraft {

// The place of a request in its session; unmapped sessions number their requests in `generation`,
// slot 0.
struct LocalTicket {
  uint32_t slot = 0;
  uint32_t generation = 0;
  auto operator<=>(const LocalTicket&) const = default;
};

class LocalSession {
 public:
  static constexpr size_t kBacklogBytesMax =
      256 * 1024;  // events that found the completion ring full

  struct Mapped {
    std::unique_ptr<ipc::Segment> segment;
    ipc::Doorbell client_bell;
    ipc::Doorbell daemon_bell;
    ipc::RingConsumer submit;
    ipc::RingProducer complete;
  };

  struct InFlight {
    RequestId service_id;  // ours; the client's own id is only echoed
    RequestId client_id;
    bool cancelled_slow = false;
    std::shared_ptr<std::atomic<bool>> lost =
        std::make_shared<std::atomic<bool>>(false);  // set by the sink: a chunk found no room
  };

  // What came out of the submission ring: a request, or the reason it is refused (ticket still
  // valid).
  struct Submission {
    LocalTicket ticket;
    Request request;
    std::optional<RequestError> refused;
  };

  // The next submission, nothing when the ring is empty. Error: the memory makes no sense, end the
  // session.
  Result<std::optional<Submission>> next_submission();

  // Sends an encoded event; queued when the ring is full. False: it was dropped, because the
  // backlog's limit is reached or the client's ring is too small for it; an end always gets in.
  // Error: broken memory, end the session.
  Result<bool> send_event(LocalTicket ticket, ByteView frame, bool is_end);
  // Moves the backlog into the ring as far as it goes.
  Result<void> flush_backlog();
  void mark_done(LocalTicket ticket);

  uint64_t id = 0;
  std::string token;
  std::string client_name;
  ipc::PeerCredentials peer;
  ipc::UniqueFd socket;
  ipc::UniqueFd pidfd;
  std::optional<Mapped> mapped;  // empty: requests come over the control channel
  std::string control_peer;      // unmapped: where answers go
  uint32_t next_unmapped = 1;
  std::map<LocalTicket, InFlight> in_flight;

 private:
  Result<Submission> read_submission(const ipc::SubmitRecord& record);
  Result<bool> push(LocalTicket ticket, ByteView frame);

  struct Waiting {
    LocalTicket ticket;
    std::vector<std::byte> frame;
    bool is_end;
  };
  std::deque<Waiting> backlog_;
  size_t backlog_bytes_ = 0;
};

}  // namespace updraft
