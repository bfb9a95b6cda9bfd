// A session's way out: events go from whichever thread has them (the engine's, a pool link's)
// straight into the client's completion ring, without a stop at the server's thread. What finds the
// ring full waits here, at most kBacklogBytesMax, until the client has read something.
//
// Threads: any; the mutex makes them one producer of the ring. It is held for one small record at a
// time and never across a system call. The server's thread opens requests, flushes, watches the
// clock and closes; after close() nothing touches the segment any more and late events fall on the
// floor.
//
// A request whose event had to wait is to be paused, and to go on once nothing waits any more. The
// server's thread alone tells the service so (flow_changes): in one order, whatever the events do
// meanwhile.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/ipc/doorbell.h"
#include "common/ipc/ring.h"
#include "common/ipc/segment.h"
#include "common/message/event.h"

namespace updraft {

// The place of a request in its session; unmapped sessions number their requests in `generation`,
// slot 0.
struct LocalTicket {
  uint32_t slot = 0;
  uint32_t generation = 0;
  auto operator<=>(const LocalTicket&) const = default;
};

class LocalOutbox {
 public:
  static constexpr size_t kBacklogBytesMax = 256 * 1024;

  struct Mapped {
    std::shared_ptr<ipc::Segment> segment;
    std::shared_ptr<ipc::Doorbell> client_bell;
  };
  // What the server's thread has to do about a delivery.
  struct Outcome {
    std::optional<RequestId> to_cancel;  // a service id: its client does not read
    bool flow = false;                   // ask for flow_changes(), watch the clock
    std::string broken;                  // the client's memory makes no sense: end the session
    bool asks_for_something() const { return to_cancel || flow || !broken.empty(); }
  };

  // requests_in_flight counts those of all sessions; it outlives the server in the hands of sinks.
  LocalOutbox(std::optional<Mapped> mapped,
              std::shared_ptr<std::atomic<int32_t>> requests_in_flight);

  // A request begins: client_id is echoed in its events, service_id is what the service knows.
  void open(LocalTicket ticket, RequestId client_id, RequestId service_id);
  bool slot_in_flight(uint32_t slot) const;
  size_t in_flight() const;
  std::vector<RequestId> service_ids_of(const RequestId& client_id) const;

  // Mapped sessions: into the ring, or into the backlog when it is full. A request whose event
  // found no room ends with a typed error in place of everything that follows; an end always gets
  // in.
  Outcome deliver(LocalTicket ticket, Event event);
  // Unmapped sessions: the event as the frame that goes over the control channel; nothing when the
  // request has ended before.
  std::optional<std::vector<std::byte>> frame_of(LocalTicket ticket, Event event);
  // Unmapped: a chunk found no room on its way here; the stream ends with the slow reader's error.
  // The service id, to be cancelled, the first time.
  std::optional<RequestId> lose(LocalTicket ticket);

  // Which requests (service ids) the service is to pause or to let go on, since the last call.
  struct FlowChanges {
    std::vector<RequestId> to_pause;
    std::vector<RequestId> to_resume;
  };
  FlowChanges flow_changes();

  // Moves the backlog into the ring as far as it goes. Error: broken memory, end the session.
  Result<void> flush();
  // Since when nothing of a waiting backlog could be moved; nothing when none waits.
  std::optional<int64_t> stalled_since_ns();
  // The client has not read for too long: every open request ends with the typed error. Their
  // service ids, to be cancelled.
  std::vector<RequestId> give_up();
  // Ends the session here. The service ids of what was open, to be cancelled.
  std::vector<RequestId> close();

 private:
  struct Open {
    RequestId client_id;
    RequestId service_id;
    bool dropped = false;  // an event was left out: only the end follows
    bool waits = false;    // an event of it is in the backlog
    bool paused = false;   // the service was told to pause
  };
  struct Waiting {
    LocalTicket ticket;
    std::vector<std::byte> frame;
    bool is_end;
  };

  enum class Pushed : uint8_t { kYes, kFull, kBroken };
  Pushed push_locked(LocalTicket ticket, ByteView frame, bool is_end);
  void flush_locked();
  bool flow_changed_locked();
  void mark_done_locked(LocalTicket ticket);
  void ring_if_wanted(std::unique_lock<std::mutex>& lock);

  mutable std::mutex mutex_;  // guards what follows
  std::optional<Mapped> mapped_;
  std::optional<ipc::RingProducer> ring_;
  std::map<LocalTicket, Open> open_;
  std::deque<Waiting> backlog_;
  size_t backlog_bytes_ = 0;
  int64_t progress_ns_ = 0;   // when the backlog began or last moved
  bool flow_stale_ = false;   // some request's `waits` and `paused` may differ
  bool flow_posted_ = false;  // the server was asked to call flow_changes()
  bool broken_ = false;
  bool client_sleeps_ = false;  // ring its doorbell once the lock is free
  const std::shared_ptr<std::atomic<int32_t>> requests_in_flight_;
};

}  // namespace updraft
