// The client library's core: hands requests to the edge daemon through shared memory and reads the
// answers from it.
//
// One session = one sealed segment + one Unix socket kept open. Big texts and images lie in the
// payload area, where they can be written in place (allocate) so that nothing is copied on the way
// in.
//
// Threads: a LocalClient belongs to one thread at a time. After fork() it belongs to the parent
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
  // When the daemon goes away: how long next() waits for another one at the same path. It gets the
  // same segment again and every request that has not begun to answer; those that have end with
  // kNodeLost. 0: the session ends with its daemon. Mapped sessions only.
  int32_t reconnect_ms = 0;
};

// $XDG_RUNTIME_DIR/updraft/edge.sock, or /tmp/updraft-<uid>/edge.sock without a runtime directory.
std::string default_local_socket();

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

  // Names the buffer that holds the bytes of messages[index].parts[part], prompts[index] or
  // prompt_ids[index] (int32, little-endian); those in the request itself stay empty.
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
  // daemon is gone; every request in flight has ended with it.
  virtual Result<std::optional<std::pair<uint32_t, Event>>> next(int timeout_ms) = 0;

  // Generation stops; the request still ends with one last event.
  virtual void cancel(uint32_t handle) = 0;
};

}  // namespace updraft
