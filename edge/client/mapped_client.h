// A client with a segment of shared memory, for the three files that implement it:
// mapped_client.cpp has its life and its memory and hands requests over, mapped_client_events.cpp
// takes their events, mapped_client_return.cpp brings a lost session back.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/ipc/doorbell.h"
#include "common/ipc/layout.h"
#include "common/ipc/ring.h"
#include "common/ipc/segment.h"
#include "common/message/handshake.h"
#include "common/net/control_socket.h"
#include "edge/client/local_client.h"
#include "edge/client/payload_areas.h"

namespace updraft {

class MappedClient final : public LocalClient {
 public:
  // Errors: those of the handshake; kNoMemory.
  static Result<std::unique_ptr<LocalClient>> connect(const LocalClientOptions& options);
  ~MappedClient() override;

  const LocalWelcome& welcome() const override { return welcome_; }
  Result<Buffer> allocate(uint64_t bytes) override;
  Result<Buffer> allocate_once(uint64_t bytes) override;
  void release(Buffer buffer) override;
  Result<uint32_t> submit(Request request, std::vector<PlacedPart> placed) override;
  Result<std::optional<std::pair<uint32_t, Event>>> next(int timeout_ms) override;
  Result<int> event_fd() override;
  void cancel(uint32_t handle) override;

 private:
  static constexpr uint32_t kHandleSlots = ipc::kSlotCountMax;
  static constexpr int64_t kReconnectPauseNs = 10 * kNsPerMs;

  struct Slot {
    RequestId id;  // empty: free
    uint32_t generation = 0;
    uint32_t handle = 0;
    ipc::SubmitRecord record{};  // as submitted, for the daemon's successor
    bool answering = false;      // a chunk of its answer was taken
    uint64_t taken = 0;          // events of its answer
    uint64_t to_skip = 0;        // of those, how many come again
    std::vector<Buffer> buffers;
  };
  // What cancel() needs to know of a slot.
  struct Cancellable {
    uint32_t handle = 0;
    RequestId id;  // empty: over
  };

  // --- mapped_client.cpp ---
  explicit MappedClient(const LocalClientOptions& options);
  bool forked() const;
  static Error forked_error();
  // Adds a further segment with room for `bytes`: as large as what is there already if the daemon
  // allows it, else as large as it must be.
  Result<void> grow(uint64_t bytes);
  Result<void> add_area(uint64_t bytes);
  // Hands a segment over and waits for the daemon's answer, which is the only thing it ever says on
  // the socket after the handshake.
  Result<void> send_segment(uint32_t number, const ipc::PayloadSegment& segment);
  // One-offs among the placed buffers become unchangeable and known to the daemon.
  Result<void> send_one_offs(const std::vector<PlacedPart>& placed);
  // Writes frame and spans into the payload area, fills a slot and rings.
  Result<uint32_t> post(const Request& request, const std::vector<PlacedPart>& placed);
  void free_slot(uint32_t index);

  // --- mapped_client_events.cpp ---
  Result<std::optional<std::pair<uint32_t, Event>>> take_next(int timeout_ms);
  // For those who never wait: a look at the socket, no more than one a millisecond unless somebody
  // woke them.
  bool hung_up(int64_t now_ns);
  bool watch(int fd) const;
  // The event descriptor is readable exactly while there is something to take: by my own doing when
  // it is here already, else the daemon rings for the next record. While the session is lost, now
  // and then: it is time to try again.
  void rearm();
  Result<void> take_records();
  void take_event(const ipc::Record& record);
  std::optional<std::pair<uint32_t, Event>> take_ready();
  // Spins for a few microseconds, then sleeps on the doorbell and the socket's hang-up.
  void wait_for_events(int64_t deadline_ns);

  // --- mapped_client_return.cpp ---
  bool lost() const { return lost_until_ns_ != 0; }
  // The same daemon, when only the session was lost, goes on with everything. Its successor gets
  // what has not begun to answer; what has ends with a typed error, and so does everything when
  // nobody comes in time.
  void lose_daemon();
  void give_up();
  // Tries to reconnect until `deadline_ns` (past: a look, which waits for nobody), a step at a
  // time: connect and say hello, hear the welcome, hand over again what is in flight.
  void come_back(int64_t deadline_ns);
  void end_lost(uint32_t index);
  // The same memory for the next daemon. The old one has given it up (its end of the socket is
  // shut), so the rings begin anew before the new one can see them; payloads stay where they are.
  bool begin_return();
  bool finish_return(LocalWelcome welcome);
  // Under a new generation: what the old daemon may still have written is not this request's.
  bool submit_again(uint32_t index);

  const LocalClientOptions options_;
  const uint32_t fork_depth_;
  ipc::UniqueFd socket_;
  LocalWelcome welcome_;
  std::unique_ptr<ipc::Segment> segment_;
  std::optional<ipc::Doorbell> my_bell_;
  std::optional<ipc::Doorbell> daemon_bell_;
  // None before event_fd(): the doorbell, the socket and the timer of a lost session behind one
  // descriptor.
  ipc::UniqueFd events_;
  ipc::UniqueFd retry_;
  // A lost session: until when it may come back (0: not lost), when to try again, and the socket on
  // which a daemon's welcome is awaited.
  int64_t lost_until_ns_ = 0;
  int64_t next_try_ns_ = 0;
  ipc::UniqueFd returning_;
  int64_t looked_ns_ = 0;  // when hung_up() looked last

  // What cancel() needs, from whichever thread it comes. The session's own thread writes all of it,
  // and reads welcome_ without the lock.
  std::mutex cancel_mutex_;
  std::vector<Cancellable> cancellable_;    // by slot
  std::unique_ptr<ControlDialer> control_;  // none before the first cancel
  ipc::Record record_;                      // its buffer is reused
  std::optional<ipc::RingProducer> submit_;
  std::optional<ipc::RingConsumer> complete_;
  PayloadAreas areas_;
  uint32_t last_segment_ = 0;  // the number of the newest further one
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;
  std::deque<std::pair<uint32_t, Event>> ready_;
  bool gone_ = false;
};

}  // namespace updraft
