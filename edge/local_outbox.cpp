// Events into the completion ring, from any thread.
#include "edge/local_outbox.h"

#include <utility>

#include "common/base/clock.h"
#include "common/message/event_message.h"
#include "common/message/pool_message.h"

namespace updraft {

using namespace ipc;

namespace {

const char* const kBrokenRing = "completion ring: the client's position is impossible";

RequestError slow_reader_error() {
  return error_of(ErrorCode::kOverloaded,
                  "the client does not read its answers (" +
                      std::to_string(LocalOutbox::kBacklogBytesMax) +
                      " bytes may wait in a session), or its ring is too small for them");
}

}  // namespace

LocalOutbox::LocalOutbox(std::optional<Mapped> mapped,
                         std::shared_ptr<std::atomic<int32_t>> requests_in_flight)
    : mapped_(std::move(mapped)), requests_in_flight_(std::move(requests_in_flight)) {
  if (mapped_) ring_.emplace(mapped_->segment->complete_ring());
}

void LocalOutbox::open(LocalTicket ticket, RequestId client_id, RequestId service_id) {
  const std::lock_guard lock(mutex_);
  const bool fresh =
      open_.emplace(ticket, Open{std::move(client_id), std::move(service_id)}).second;
  UPDRAFT_CHECK(fresh, "a ticket is opened once");
  requests_in_flight_->fetch_add(1, std::memory_order_relaxed);
}

bool LocalOutbox::slot_in_flight(uint32_t slot) const {
  const std::lock_guard lock(mutex_);
  const auto at = open_.lower_bound({slot, 0});
  return at != open_.end() && at->first.slot == slot;
}

size_t LocalOutbox::in_flight() const {
  const std::lock_guard lock(mutex_);
  return open_.size();
}

std::vector<RequestId> LocalOutbox::service_ids_of(const RequestId& client_id) const {
  const std::lock_guard lock(mutex_);
  std::vector<RequestId> ids;
  for (const auto& [ticket, request] : open_) {
    if (request.client_id == client_id) ids.push_back(request.service_id);
  }
  return ids;
}

LocalOutbox::Outcome LocalOutbox::deliver(LocalTicket ticket, Event event) {
  Outcome out;
  std::unique_lock lock(mutex_);
  const auto found = open_.find(ticket);
  if (found == open_.end() || broken_ || !mapped_) return out;  // ended, or the session did
  Open& request = found->second;
  const bool end = is_end(event);
  if (request.dropped) {
    if (!end) return out;
    event = slow_reader_error();
  }
  std::vector<std::byte> frame = encode(to_message(request.client_id, 1, std::move(event)));
  const RequestId service_id = request.service_id;
  // Before the client can see the end: it may fill the slot anew at once.
  if (end) {
    open_.erase(found);
    requests_in_flight_->fetch_sub(1, std::memory_order_relaxed);
  }
  const bool fits = sizeof(EventHeader) + frame.size() <= ring_->content_bytes_max();
  Pushed pushed = Pushed::kFull;
  if (fits && backlog_.empty()) pushed = push_locked(ticket, frame, end);
  if (pushed == Pushed::kFull && !broken_) {
    if (!fits || (!end && backlog_bytes_ + frame.size() > kBacklogBytesMax)) {
      UPDRAFT_CHECK(!end, "any end fits the smallest ring");
      request.dropped = true;
      out.to_cancel = service_id;
    } else {
      if (backlog_.empty()) progress_ns_ = monotonic_ns();
      if (!end) {
        request.waits = true;
        flow_stale_ = flow_stale_ || !request.paused;
      }
      backlog_bytes_ += frame.size();
      backlog_.push_back({ticket, std::move(frame), end});
      // There may be room again since the push; if not, the client rings when it has read
      // something.
      flush_locked();
    }
  }
  if (broken_) out.broken = kBrokenRing;
  out.flow = flow_changed_locked();
  ring_if_wanted(lock);
  return out;
}

std::optional<std::vector<std::byte>> LocalOutbox::frame_of(LocalTicket ticket, Event event) {
  const std::lock_guard lock(mutex_);
  const auto found = open_.find(ticket);
  if (found == open_.end()) return std::nullopt;
  const bool end = is_end(event);
  if (found->second.dropped) {
    if (!end) return std::nullopt;
    event = slow_reader_error();
  }
  std::vector<std::byte> frame = encode(to_message(found->second.client_id, 1, std::move(event)));
  if (end) {
    open_.erase(found);
    requests_in_flight_->fetch_sub(1, std::memory_order_relaxed);
  }
  return frame;
}

std::optional<RequestId> LocalOutbox::lose(LocalTicket ticket) {
  const std::lock_guard lock(mutex_);
  const auto found = open_.find(ticket);
  if (found == open_.end() || std::exchange(found->second.dropped, true)) return std::nullopt;
  return found->second.service_id;
}

Result<void> LocalOutbox::flush() {
  std::unique_lock lock(mutex_);
  if (mapped_ && !broken_) flush_locked();
  const bool broken = broken_;
  ring_if_wanted(lock);
  if (broken) return fail(kBrokenRing);
  return {};
}

std::optional<int64_t> LocalOutbox::stalled_since_ns() {
  const std::lock_guard lock(mutex_);
  if (!backlog_.empty()) return progress_ns_;
  return std::nullopt;
}

LocalOutbox::FlowChanges LocalOutbox::flow_changes() {
  const std::lock_guard lock(mutex_);
  flow_posted_ = flow_stale_ = false;
  FlowChanges changes;
  for (auto& [ticket, request] : open_) {
    if (request.waits == request.paused) continue;
    request.paused = request.waits;
    (request.paused ? changes.to_pause : changes.to_resume).push_back(request.service_id);
  }
  return changes;
}

// True when there is something to tell the service that nobody was asked to tell yet.
bool LocalOutbox::flow_changed_locked() {
  return flow_stale_ && !std::exchange(flow_posted_, true);
}

std::vector<RequestId> LocalOutbox::give_up() {
  const std::lock_guard lock(mutex_);
  std::vector<RequestId> ids;
  for (auto& [ticket, request] : open_) {
    if (std::exchange(request.dropped, true)) continue;
    ids.push_back(request.service_id);
  }
  return ids;
}

std::vector<RequestId> LocalOutbox::close() {
  const std::lock_guard lock(mutex_);
  std::vector<RequestId> ids;
  for (const auto& [ticket, request] : open_) ids.push_back(request.service_id);
  requests_in_flight_->fetch_sub(static_cast<int32_t>(open_.size()), std::memory_order_relaxed);
  open_.clear();
  backlog_.clear();
  backlog_bytes_ = 0;
  ring_.reset();
  mapped_.reset();
  return ids;
}

LocalOutbox::Pushed LocalOutbox::push_locked(LocalTicket ticket, ByteView frame, bool is_end) {
  const EventHeader header{ticket.slot, ticket.generation};
  const PushOutcome outcome =
      ring_->push(kEventRecord, std::as_bytes(std::span(&header, 1)), frame);
  switch (outcome) {
    case PushOutcome::kPushedRing:
      client_sleeps_ = true;
      [[fallthrough]];
    case PushOutcome::kPushed:
      if (is_end) mark_done_locked(ticket);
      return Pushed::kYes;
    case PushOutcome::kFull:
      return Pushed::kFull;
    case PushOutcome::kBroken:
      break;
  }
  broken_ = true;
  return Pushed::kBroken;
}

void LocalOutbox::flush_locked() {
  while (!backlog_.empty() && !broken_) {
    const Waiting& first = backlog_.front();
    const Pushed pushed = push_locked(first.ticket, first.frame, first.is_end);
    if (pushed == Pushed::kYes) {
      backlog_bytes_ -= first.frame.size();
      backlog_.pop_front();
      progress_ns_ = monotonic_ns();
      if (backlog_.empty()) {
        for (auto& [ticket, request] : open_) {
          request.waits = false;
          flow_stale_ = flow_stale_ || request.paused;
        }
      }
    } else if (pushed == Pushed::kBroken ||
               ring_->prepare_wait(first.frame.size() + sizeof(EventHeader))) {
      return;
    }
  }
}

void LocalOutbox::mark_done_locked(LocalTicket ticket) {
  // The client may have read the end already and filled the slot anew: only this generation's
  // acceptance becomes DONE.
  uint64_t accepted = slot_word(ticket.generation, SlotPhase::kAccepted);
  mapped_->segment->slot(ticket.slot)
      .word.compare_exchange_strong(accepted, slot_word(ticket.generation, SlotPhase::kDone),
                                    std::memory_order_release, std::memory_order_relaxed);
}

// The bell is a system call; its shared owner keeps it over a close() in between.
void LocalOutbox::ring_if_wanted(std::unique_lock<std::mutex>& lock) {
  if (!std::exchange(client_sleeps_, false) || !mapped_) return;
  const std::shared_ptr<Doorbell> bell = mapped_->client_bell;
  lock.unlock();
  bell->ring();
}

}  // namespace updraft
