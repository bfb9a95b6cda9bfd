// A doorbell: an eventfd that wakes a process which sleeps on an empty ring. Rung only when the
// ring's waiter flag says that somebody sleeps (ring.h), so a busy pair never makes a system call.
#pragma once

#include <cstdint>

#include "common/base/result.h"
#include "common/ipc/segment.h"

namespace updraft::ipc {

class Doorbell {
 public:
  static Result<Doorbell> create();
  // Takes a descriptor that a peer sent; it must be an eventfd (checked by its link in
  // /proc/self/fd).
  static Result<Doorbell> adopt(UniqueFd fd);

  void ring() const;   // never blocks
  void clear() const;  // takes what was rung so far
  // True when it rang within timeout_ms (then it is cleared).
  bool wait(int timeout_ms) const;
  int fd() const { return fd_.get(); }

 private:
  explicit Doorbell(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace updraft::ipc
