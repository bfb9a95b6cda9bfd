// How a mapped session takes its events, and waits for them.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <variant>

#include "common/base/clock.h"
#include "common/message/event_message.h"
#include "common/message/pool_message.h"
#include "edge/client/mapped_client.h"
#include "edge/client/session_start.h"

namespace updraft {

using namespace ipc;

namespace {

constexpr int64_t kSpinNs = 5 * kNsPerUs;
constexpr int64_t kLookNs = kNsPerMs;

}  // namespace

Result<std::optional<std::pair<uint32_t, Event>>> MappedClient::next(int timeout_ms) {
  if (forked()) return forked_error();
  auto event = take_next(timeout_ms);
  if (events_) rearm();
  return event;
}

Result<int> MappedClient::event_fd() {
  if (forked()) return forked_error();
  if (!events_) {
    events_ = UniqueFd(epoll_create1(EPOLL_CLOEXEC));
    retry_ = UniqueFd(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    if (!events_ || !retry_ || !watch(my_bell_->fd()) || !watch(retry_.get()) ||
        (socket_ && !watch(socket_.get()))) {
      events_.reset();
      return fail(LocalFailure::kNoMemory,
                  std::string("the event descriptor: ") + std::strerror(errno));
    }
    rearm();
  }
  return events_.get();
}

Result<std::optional<std::pair<uint32_t, Event>>> MappedClient::take_next(int timeout_ms) {
  const int64_t deadline_ns = timeout_ms < 0 ? INT64_MAX : monotonic_ns() + timeout_ms * kNsPerMs;
  for (;;) {
    if (!ready_.empty()) return take_ready();
    if (lost()) {
      come_back(deadline_ns);
      if (lost() && monotonic_ns() >= deadline_ns)
        return std::optional<std::pair<uint32_t, Event>>();
      continue;
    }
    if (gone_) return gone_error();
    if (auto taken = take_records(); !taken) return taken.error();
    if (!ready_.empty()) return take_ready();
    const int64_t now_ns = monotonic_ns();
    if (now_ns < deadline_ns) {
      wait_for_events(deadline_ns);
    } else if (hung_up(now_ns)) {
      lose_daemon();
      if (lost()) come_back(deadline_ns);
      if (ready_.empty() && !gone_) return std::optional<std::pair<uint32_t, Event>>();
    } else {
      return std::optional<std::pair<uint32_t, Event>>();
    }
  }
}

bool MappedClient::hung_up(int64_t now_ns) {
  if (!events_ && now_ns - looked_ns_ < kLookNs) return false;
  looked_ns_ = now_ns;
  pollfd entry{socket_.get(), POLLIN, 0};
  return ::poll(&entry, 1, 0) > 0;
}

bool MappedClient::watch(int fd) const {
  epoll_event event{};
  event.events = EPOLLIN;
  return epoll_ctl(events_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

void MappedClient::rearm() {
  my_bell_->clear();
  itimerspec retry{};
  if (lost()) retry.it_value.tv_nsec = kReconnectPauseNs;
  timerfd_settime(retry_.get(), 0, &retry, nullptr);
  if (!ready_.empty() || gone_ || (!lost() && !complete_->prepare_wait())) my_bell_->ring();
}

Result<void> MappedClient::take_records() {
  bool ring_daemon = false;
  for (;;) {
    Result<bool> got = complete_->pop(record_, ring_daemon);
    if (!got) return fail(LocalFailure::kGone, got.message());
    if (!*got) break;
    if (record_.kind == kEventRecord && record_.content.size() >= sizeof(EventHeader))
      take_event(record_);
  }
  if (ring_daemon) daemon_bell_->ring();
  return {};
}

void MappedClient::take_event(const Record& record) {
  const auto header = load_le<EventHeader>(record.content.data());
  if (header.slot >= slots_.size()) return;
  Slot& slot = slots_[header.slot];
  if (slot.id.empty() || slot.generation != header.generation) return;
  Result<PoolMessage> message = decode(ByteView(record.content).subspan(sizeof(EventHeader)));
  if (!message) return;
  std::optional<RequestEvents> events = to_events(std::move(message).value());
  if (!events) return;
  const uint32_t handle = slot.handle;
  for (Event& event : events->events) {
    const bool end = is_end(event);
    if (!end && slot.to_skip > 0) {
      --slot.to_skip;
      continue;
    }
    ++slot.taken;
    slot.answering = slot.answering || std::holds_alternative<TokenChunk>(event);
    ready_.emplace_back(handle, std::move(event));
    if (end) {
      free_slot(header.slot);
      return;
    }
  }
}

std::optional<std::pair<uint32_t, Event>> MappedClient::take_ready() {
  std::optional<std::pair<uint32_t, Event>> out(std::move(ready_.front()));
  ready_.pop_front();
  return out;
}

void MappedClient::wait_for_events(int64_t deadline_ns) {
  const int64_t spin_until_ns = monotonic_ns() + kSpinNs;
  while (monotonic_ns() < spin_until_ns) {
    if (complete_->maybe_ready()) return;
  }
  if (!complete_->prepare_wait()) return;
  pollfd entries[2] = {{my_bell_->fd(), POLLIN, 0}, {socket_.get(), POLLIN, 0}};
  const int64_t left_ms = (deadline_ns - monotonic_ns()) / kNsPerMs + 1;
  const int timeout_ms =
      deadline_ns == INT64_MAX ? -1 : static_cast<int>(std::clamp<int64_t>(left_ms, 0, 1 << 30));
  if (::poll(entries, 2, timeout_ms) <= 0) return;
  if (entries[0].revents != 0) my_bell_->clear();
  if (entries[1].revents != 0) lose_daemon();
}

}  // namespace updraft
