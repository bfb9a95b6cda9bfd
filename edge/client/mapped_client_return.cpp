// A session that was lost: until when it may come back, and how.
#include <algorithm>
#include <chrono>
#include <new>
#include <span>
#include <thread>

#include "common/base/clock.h"
#include "edge/client/mapped_client.h"
#include "edge/client/session_start.h"

namespace updraft {

using namespace ipc;

void MappedClient::lose_daemon() {
  (void)take_records();
  socket_.reset();
  lost_until_ns_ = monotonic_ns() + std::max(options_.reconnect_ms, 0) * kNsPerMs;
  next_try_ns_ = 0;
  if (options_.reconnect_ms <= 0) give_up();
}

void MappedClient::give_up() {
  lost_until_ns_ = 0;
  returning_.reset();
  gone_ = true;
  for (uint32_t index = 0; index < slots_.size(); ++index) end_lost(index);
}

void MappedClient::come_back(int64_t deadline_ns) {
  do {
    const int64_t now_ns = monotonic_ns();
    if (now_ns >= lost_until_ns_) return give_up();
    const int64_t until_ns = std::min(deadline_ns, lost_until_ns_);
    if (!returning_) {
      if (now_ns < next_try_ns_) {
        const int64_t pause_ns = std::min(next_try_ns_, until_ns) - now_ns;
        if (pause_ns > 0) std::this_thread::sleep_for(std::chrono::nanoseconds(pause_ns));
        continue;
      }
      next_try_ns_ = now_ns + kReconnectPauseNs;
      if (!begin_return()) continue;
    }
    const int64_t wait_ms = (until_ns - now_ns + kNsPerMs - 1) / kNsPerMs;
    Result<LocalWelcome> welcome =
        hear_welcome(options_, returning_,
                     static_cast<int>(std::clamp<int64_t>(wait_ms, 0, kHandshakeTimeoutMs)));
    if (welcome) {
      if (finish_return(std::move(*welcome))) lost_until_ns_ = 0;
    } else if (welcome.kind() != static_cast<int>(LocalFailure::kTimeout)) {
      returning_.reset();
    }
  } while (lost() && monotonic_ns() < deadline_ns);
}

void MappedClient::end_lost(uint32_t index) {
  if (slots_[index].id.empty()) return;
  ready_.emplace_back(
      slots_[index].handle,
      error_of(ErrorCode::kNodeLost, "the edge daemon went away before the answer was complete"));
  free_slot(index);
}

bool MappedClient::begin_return() {
  new (segment_->submit_ring().indices) RingIndices{};
  new (segment_->complete_ring().indices) RingIndices{};
  submit_.emplace(segment_->submit_ring());
  complete_.emplace(segment_->complete_ring());
  Result<UniqueFd> socket =
      say_hello(options_, {segment_->fd(), my_bell_->fd(), daemon_bell_->fd()});
  if (socket) returning_ = std::move(*socket);
  return socket.ok();
}

bool MappedClient::finish_return(LocalWelcome welcome) {
  const bool same_daemon = welcome.boot_epoch == welcome_.boot_epoch;
  socket_ = std::move(returning_);
  if (events_) (void)watch(socket_.get());
  {
    const std::lock_guard lock(cancel_mutex_);
    welcome_ = std::move(welcome);
    control_.reset();
  }
  const Result<void> known =
      areas_.send_again([this](uint32_t number, const PayloadSegment& segment) {
        return send_segment(number, segment);
      });
  if (!known) {  // lost again at once
    socket_.reset();
    return false;
  }
  for (uint32_t index = 0; index < slots_.size(); ++index) {
    Slot& slot = slots_[index];
    if (slot.id.empty()) continue;
    if (!same_daemon) slot.taken = 0;
    slot.to_skip = slot.taken;
    if ((slot.answering && !same_daemon) || !submit_again(index)) end_lost(index);
  }
  return true;
}

bool MappedClient::submit_again(uint32_t index) {
  Slot& slot = slots_[index];
  slot.record.generation = ++slot.generation;
  segment_->slot(index).word.store(slot_word(slot.generation, SlotPhase::kFilled),
                                   std::memory_order_release);
  const PushOutcome outcome =
      submit_->push(kSubmitRecord, std::as_bytes(std::span(&slot.record, 1)));
  if (outcome == PushOutcome::kPushedRing) daemon_bell_->ring();
  return outcome == PushOutcome::kPushed || outcome == PushOutcome::kPushedRing;
}

}  // namespace updraft
