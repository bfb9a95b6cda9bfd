// One local client's session as the daemon keeps it: all bookkeeping private, the segment only read
// after copying. Owned by the LocalServer's thread; its outbox is shared with the sinks of its
// requests.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "common/base/result.h"
#include "common/ipc/doorbell.h"
#include "common/ipc/ring.h"
#include "common/ipc/segment.h"
#include "common/ipc/unix_socket.h"
#include "common/message/request.h"
#include "common/message/request_error.h"
#include "edge/local_memory.h"
#include "edge/local_outbox.h"

namespace updraft {

class LocalSession {
 public:
  struct Mapped {
    std::shared_ptr<ipc::Segment> segment;
    std::shared_ptr<ipc::Doorbell> client_bell;
    ipc::Doorbell daemon_bell;
    ipc::RingConsumer submit;
    std::unique_ptr<LocalMemory> memory;  // segment is its own()
  };

  // What came out of the submission ring: a request, or the reason it is refused (ticket still
  // valid).
  struct Submission {
    LocalTicket ticket;
    Request request;
    std::optional<RequestError> refused;
  };

  // Whether the next submission can be read without much work: a small frame, nothing outside it.
  // By the client's word; of an empty or broken ring: no.
  bool next_is_small();

  // The next submission, nothing when the ring is empty. Error: the memory makes no sense, end the
  // session.
  Result<std::optional<Submission>> next_submission();

  uint64_t id = 0;
  std::string token;
  std::string client_name;
  ipc::PeerCredentials peer;
  ipc::UniqueFd socket;
  ipc::UniqueFd pidfd;
  std::optional<Mapped> mapped;  // empty: requests come over the control channel
  std::string control_peer;      // unmapped: where answers go
  uint32_t next_unmapped = 1;
  int64_t resume_ms = 0;  // how long its requests outlive it, for a client that comes back
  bool hot = false;       // in the server's list of rings to poll
  std::shared_ptr<LocalOutbox> outbox;

 private:
  Result<Submission> read_submission(const ipc::SubmitRecord& record);
};

}  // namespace updraft
