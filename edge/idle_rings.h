// What reads the rings of local clients beside the server's own thread: the service's, while it has
// nothing else to do.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "common/base/idle_work.h"
#include "common/base/result.h"
#include "common/ipc/doorbell.h"
#include "common/ipc/segment.h"

namespace updraft {

// Whose rings they are. Called by the idle thread, with the turn.
class RingOwner {
 public:
  // The session rang.
  virtual void answer_bell(uint64_t session_id) = 0;
  // A look is one begin_look(), look_once() as often as it likes, one end_look(). False: nobody is
  // likely to submit.
  virtual bool begin_look() = 0;
  // True: a request was there.
  virtual bool look_once() = 0;
  virtual void end_look(bool found) = 0;

 protected:
  ~RingOwner() = default;
};

// The submission rings, looked at by the service's own thread while it has nothing to do
// (InferenceService::look_while_idle): while it sleeps here a doorbell wakes it in place of the
// server's thread, and it reads the request itself, if that is small. Outlives the server in the
// service's hands.
//
// Both threads have the doorbells in their epoll sets, exclusively: one ring wakes one of them,
// this one first when it sleeps. Whoever was woken and does not do all the work rings again.
class RingsForIdle final : public IdleWork {
 public:
  // server_wake: rung for the server's thread; spin_us: how long a look goes on after the last
  // request. Errors: no more descriptors.
  static Result<std::shared_ptr<RingsForIdle>> create(RingOwner& owner,
                                                      std::shared_ptr<ipc::Doorbell> server_wake,
                                                      int64_t spin_us);

  // Session ids begin at 1.
  void watch(int fd, uint64_t session_id);
  void unwatch(int fd);

  bool wait(std::chrono::nanoseconds timeout) override;
  void wake() override { wake_.ring(); }
  void look(const std::function<bool()>& enough) override;

  // Sessions that rang here while the server's thread had the turn.
  std::vector<uint64_t> take_left();

  // The service does look: the server's thread need not stay awake for the same.
  bool used() const { return used_.load(std::memory_order_relaxed); }

  // Held by whoever works on the server's state: its thread but for its sleep, or a look from here.
  std::mutex& turn() { return turn_; }
  // The server goes away.
  void close();

 private:
  RingsForIdle(RingOwner& owner, std::shared_ptr<ipc::Doorbell> server_wake, int64_t spin_us,
               ipc::Doorbell wake, ipc::UniqueFd epoll)
      : owner_(&owner),
        server_wake_(std::move(server_wake)),
        spin_us_(spin_us),
        wake_(std::move(wake)),
        epoll_(std::move(epoll)) {}

  void leave(uint64_t session_id);

  std::mutex turn_;
  RingOwner* owner_;  // guarded by turn_
  std::atomic<bool> used_ = false;
  std::mutex left_mutex_;
  std::vector<uint64_t> left_;  // guarded by left_mutex_; each session once
  const std::shared_ptr<ipc::Doorbell> server_wake_;
  const int64_t spin_us_;
  const ipc::Doorbell wake_;
  const ipc::UniqueFd epoll_;  // the doorbells of mapped sessions, and wake_
};

}  // namespace updraft
