#include "edge/idle_rings.h"

#include <sys/epoll.h>

#include <algorithm>

#include "common/base/check.h"
#include "common/base/clock.h"

namespace updraft {

using ipc::Doorbell;
using ipc::UniqueFd;

namespace {

constexpr int64_t kIdleWaitMsMax = 3'600'000;

}  // namespace

Result<std::shared_ptr<RingsForIdle>> RingsForIdle::create(RingOwner& owner,
                                                           std::shared_ptr<Doorbell> server_wake,
                                                           int64_t spin_us) {
  Result<Doorbell> wake = Doorbell::create();
  if (!wake) return wake.error();
  UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return fail("epoll_create1 failed");
  auto rings = std::shared_ptr<RingsForIdle>(
      new RingsForIdle(owner, std::move(server_wake), spin_us, std::move(*wake), std::move(epoll)));
  rings->watch(rings->wake_.fd(), 0);
  return rings;
}

void RingsForIdle::watch(int fd, uint64_t session_id) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLEXCLUSIVE;
  event.data.u64 = session_id;
  UPDRAFT_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0);
}
void RingsForIdle::unwatch(int fd) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

std::vector<uint64_t> RingsForIdle::take_left() {
  const std::lock_guard lock(left_mutex_);
  return std::exchange(left_, {});
}
void RingsForIdle::leave(uint64_t session_id) {
  {
    const std::lock_guard lock(left_mutex_);
    if (std::find(left_.begin(), left_.end(), session_id) == left_.end())
      left_.push_back(session_id);
  }
  server_wake_->ring();
}

void RingsForIdle::close() {
  const std::lock_guard lock(turn_);
  owner_ = nullptr;
}

bool RingsForIdle::wait(std::chrono::nanoseconds timeout) {
  used_.store(true, std::memory_order_relaxed);
  epoll_event events[8];
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(timeout).count();
  const int count = epoll_wait(epoll_.get(), events, 8,
                               static_cast<int>(std::clamp<int64_t>(ms, 0, kIdleWaitMsMax)));
  bool rung = false;
  for (int i = 0; i < count; ++i) {
    if (events[i].data.u64 == 0) {
      wake_.clear();
      continue;
    }
    rung = true;
    // The server's thread may be long at something: it looks when it is through.
    const std::unique_lock turn(turn_, std::try_to_lock);
    if (!turn) {
      leave(events[i].data.u64);
    } else if (owner_ != nullptr) {
      owner_->answer_bell(events[i].data.u64);
    }
  }
  return rung;
}

void RingsForIdle::look(const std::function<bool()>& enough) {
  {
    const std::lock_guard turn(turn_);
    if (owner_ == nullptr || !owner_->begin_look()) return;
  }
  const int64_t until_ns = monotonic_ns() + spin_us_ * kNsPerUs;
  bool found = false;
  do {
    // Not held across the whole time: the server's thread wants it for everything else.
    const std::lock_guard turn(turn_);
    if (owner_ == nullptr) return;
    found = owner_->look_once();
  } while (!found && !enough() && monotonic_ns() < until_ns);
  const std::lock_guard turn(turn_);
  if (owner_ != nullptr) owner_->end_look(found);
}

}  // namespace updraft
