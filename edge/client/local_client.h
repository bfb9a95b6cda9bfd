// The client library's core: hands requests to the edge daemon through shared memory and reads the
// answers from it.
//
// One session = one sealed segment + one Unix socket kept open. Big texts and images lie in the
// payload area, where they can be written in place (allocate) so that nothing is copied on the way
// in.
//
// Threads: a LocalClient belongs to one thread at a time, but for cancel(), which any thread may
// call while the client lives. After fork() it belongs to the parent
// only: in the child every call is refused. Its descriptors do not survive an exec.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "common/ipc/layout.h"
#include "common/message/event.h"
#include "common/message/handshake.h"
#include "common/message/request.h"

namespace updraft {

struct LocalClientOptions {
  std::string socket_path;           // empty: default_local_socket()
  uint64_t payload_bytes = 8 << 20;  // of the payload area
  std::string client_name = "client";
  bool map_memory = true;  // false: whole requests over the control channel
  // When the session is lost: how long next() tries to connect again at the same path (at most a
  // minute). 0: the session ends with its daemon. Mapped sessions only. What is guaranteed then,
  // for every request in flight:
  //   - It ends exactly once here, and no event of its answer comes twice or is left out.
  //   - The same daemon (the socket was lost, the process lives) does not run it a second time: its
  //     answer goes on where it stood. An answer of more than 256 KiB so far ends with kNodeLost.
  //   - Another daemon at the path (a restart) runs it anew when none of its tokens have come here;
  //     else it ends with kNodeLost. The daemon that died may have run it, unseen.
  // A request id names one request for a minute: handed over again under the same user and id, by
  // any session that reconnects, it gets the answer of the first; a session that still waited for
  // it sees it end with kCancelled. Another request under that id is refused.
  int32_t reconnect_ms = 0;
};

// $XDG_RUNTIME_DIR/updraft/edge.sock, or /tmp/updraft-<uid>/edge.sock without a runtime directory.
std::string default_local_socket();

// What kind of failure a call of LocalClient reports (Result::kind()); the text says the rest.
enum class LocalFailure : int {
  kNoDaemon = 1,  // nobody listens at the path, or not any more
  kTimeout,       // somebody listens but does not answer the handshake
  kRefused,       // the daemon does not want this session: user, quota, version
  kGone,          // the session has ended; its requests have, too
  kBusy,          // as many requests in flight as may be: take events, try again
  kNoRoom,        // the payload area is full, or there is none
  kTooLarge,      // such a request can never be handed over
  kBadArgument,
  kForked,    // the session belongs to the parent process
  kNoMemory,  // memory or descriptors of this process
};

class LocalClient {
 public:
  virtual ~LocalClient() = default;  // ends the session; the daemon stops what still runs

  // Errors: no daemon at the path, version mismatch, quota (the daemon's own words).
  static Result<std::unique_ptr<LocalClient>> connect(const LocalClientOptions& options);

  virtual const LocalWelcome& welcome() const = 0;

  // A piece of the payload area, most recently freed first. Freed by release(), or by the client
  // itself when the request it was submitted with has ended.
  struct Buffer {
    std::span<std::byte> bytes;
  };
  // When no area has room, the client adds a further segment of at least the size of what it has,
  // as far as the daemon allows. Errors: no room, with the daemon's words; the daemon is gone.
  virtual Result<Buffer> allocate(uint64_t bytes) = 0;
  // A buffer in memory of its own, for one large payload. When it is handed over it is sealed, so
  // that its bytes cannot change any more (what is written there later reaches nobody); its memory
  // is freed when the request has ended. Dearer than allocate(): every page is new. Errors: memory.
  virtual Result<Buffer> allocate_once(uint64_t bytes) = 0;
  virtual void release(Buffer buffer) = 0;

  // Names the buffer that holds the bytes of messages[index].parts[part], prompts[index],
  // prompt_ids[index] (int32, little-endian) or prompt_parts[index]; those in the request itself
  // stay empty.
  struct PlacedPart {
    uint32_t index = 0;
    uint32_t part = 0;
    Buffer buffer;
    ipc::SpanTarget target = ipc::SpanTarget::kPart;
  };
  // Hands a request over. Parts and prompts over 4 KiB that are not placed are moved into the
  // payload area.
  // Returns the handle that events carry. Errors: too many requests in flight, no room in the
  // payload area, the daemon is gone. On an error the buffers stay the caller's.
  virtual Result<uint32_t> submit(Request request, std::vector<PlacedPart> placed = {}) = 0;

  // The next event of any request, or nothing within timeout_ms (-1: wait for ever). An error: the
  // daemon is gone; every request in flight has ended with it. A lost session is reconnected in
  // here, within the timeout: next(0) goes a step if one is due and waits for nobody (but where
  // further segments have to be shown again: for the daemon's answer to each). Meanwhile submit()
  // says kBusy.
  virtual Result<std::optional<std::pair<uint32_t, Event>>> next(int timeout_ms) = 0;

  // For epoll, select or an event loop: readable while next(0) would give an event or an error, and
  // every few milliseconds while a lost session is being reconnected.
  // Wait for it, do not read it; it is made by the first call and lives as long as the client.
  // Errors: kNoRoom without shared memory (wait in next() then).
  virtual Result<int> event_fd() = 0;

  // Generation stops; the request still ends with one last event. Any thread. Without shared memory
  // it is sent when next() runs.
  virtual void cancel(uint32_t handle) = 0;
};

}  // namespace updraft
