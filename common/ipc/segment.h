// A session's shared memory: one unnamed memfd, pre-faulted and sealed (SHRINK|GROW|SEAL), so that
// nobody can truncate it under a reader and nothing is left behind when both processes die. Created
// by the client, adopted by the daemon.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "common/base/result.h"
#include "common/ipc/layout.h"
#include "common/ipc/ring.h"

namespace updraft::ipc {

// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  ~UniqueFd() { reset(); }
  int get() const { return fd_; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }
  void reset();
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

struct SegmentShape {
  uint64_t submit_bytes = 64 * 1024;  // powers of two
  uint64_t complete_bytes = 1024 * 1024;
  uint32_t slot_count = 64;
  uint64_t payload_bytes = 8 * 1024 * 1024;
};

class Segment {
 public:
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  // Client: makes, sizes, faults in, seals and maps a segment. Errors: the shape, memory.
  static Result<std::unique_ptr<Segment>> create(const SegmentShape& shape);
  // Daemon: checks what a client sent before anything is read from it: a memfd with the three
  // seals, its size within bytes_max, a header whose every area lies inside. Keeps a private copy
  // of the header.
  static Result<std::unique_ptr<Segment>> adopt(UniqueFd fd, uint64_t bytes_max);

  int fd() const;  // of a created segment; -1 of an adopted one
  uint64_t bytes() const;
  const SegmentHeader& header() const;  // the private copy
  RingMemory submit_ring() const;
  RingMemory complete_ring() const;
  SlotState& slot(uint32_t index) const;  // index < header().slot_count
  std::span<std::byte> payload() const;   // the whole payload area

  // [offset, offset + bytes) from the segment's start when it lies inside the payload area; nothing
  // otherwise.
  std::optional<std::span<const std::byte>> payload_span(uint64_t offset, uint64_t bytes) const;

 private:
  struct State;
  explicit Segment(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace updraft::ipc
