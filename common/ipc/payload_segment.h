// A further segment of a session: payload from its first byte to its last, besides the session's
// own (segment.h) that holds the rings. Made by the client, sent over the session's socket, mapped
// by the daemon for reading alone.
//
// Two kinds. An area to allocate from is sealed against resizing and against new writers: its maker
// goes on writing through the mapping that it has, and nobody can punch a hole into it. A one-off
// holds the payload of one request; when it is handed over it is sealed against any writing, so
// that its bytes can never change again.
//
// Huge pages: a large one is taken from the pool of huge pages when that has enough of them;
// otherwise transparent ones are asked for. Only what cannot be punched may come from the pool: a
// reader of a hole there that the pool cannot fill again dies of SIGBUS.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/ipc/segment.h"

namespace updraft::ipc {

enum class PageKind : uint8_t {
  kSmall,
  kTransparent,  // asked for; the kernel gives huge pages where it finds them
  kHuge          // all of it
};
const char* page_kind_name(PageKind kind);

class PayloadSegment {
 public:
  enum class Kind : uint8_t { kArea, kOneOff };

  ~PayloadSegment();
  PayloadSegment(const PayloadSegment&) = delete;
  PayloadSegment& operator=(const PayloadSegment&) = delete;

  // Client: at least `bytes`, in whole pages, faulted in. Errors: memory.
  static Result<std::unique_ptr<PayloadSegment>> create(uint64_t bytes, Kind kind);
  // Daemon: checks what a client sent before anything is read from it: a memfd with the seals of
  // its kind, size within bytes_max, no holes.
  static Result<std::unique_ptr<PayloadSegment>> adopt(UniqueFd fd, uint64_t bytes_max, Kind kind);

  // Client, one-offs: from here on the bytes never change. data() stays valid; what is still
  // written there reaches nobody else. A second call does nothing.
  Result<void> freeze();

  int fd() const;  // of a created segment; -1 of an adopted one
  Kind kind() const;
  PageKind pages() const;
  std::span<std::byte> data() const;  // created segments only: writable
  ByteView bytes() const;

 private:
  struct State;
  explicit PayloadSegment(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace updraft::ipc
