// Reading submissions out of a segment that its owner may be rewriting, and writing events into it.
#include "edge/local_session.h"

#include <cstring>

#include "common/message/pool_message.h"
#include "common/message/request_check.h"

namespace updraft {

using namespace ipc;

namespace {

RequestError invalid(std::string message) {
  return error_of(ErrorCode::kInvalidRequest, std::move(message));
}

// Copies the bytes that a span names into the request. The copy is a snapshot: whatever the client
// writes there later changes nothing that was checked.
std::optional<RequestError> fill_part(Request& request, const PartSpan& span,
                                      const Segment& segment) {
  const std::string place =
      "messages[" + std::to_string(span.message) + "].parts[" + std::to_string(span.part) + "]";
  if (span.message >= request.messages.size() ||
      span.part >= request.messages[span.message].parts.size()) {
    return invalid(place + ": a shared-memory part that the request does not have");
  }
  const auto bytes = segment.payload_span(span.offset, span.bytes);
  if (!bytes) {
    return invalid(place + ": [" + std::to_string(span.offset) + ", +" +
                   std::to_string(span.bytes) + ") lies outside the payload area");
  }
  ContentPart& part = request.messages[span.message].parts[span.part];
  std::string& target = part.kind == ContentPart::Kind::kText ? part.text : part.bytes;
  target.assign(as_text(*bytes));
  if (part.kind == ContentPart::Kind::kText && !is_utf8(target)) {
    return invalid(place + ": not UTF-8 at byte " +
                   std::to_string(utf8_valid_prefix_bytes(target)));
  }
  return std::nullopt;
}

}  // namespace

Result<std::optional<LocalSession::Submission>> LocalSession::next_submission() {
  Record record;
  bool ring_client = false;
  Result<bool> got = mapped->submit.pop(record, ring_client);
  if (!got) return got.error();
  if (ring_client) mapped->client_bell.ring();
  if (!*got) return std::optional<Submission>();
  if (record.kind != kSubmitRecord || record.content.size() != sizeof(SubmitRecord)) {
    return fail("submission ring: a record of kind " + std::to_string(record.kind) + " with " +
                std::to_string(record.content.size()) + " bytes");
  }
  Result<Submission> submission = read_submission(load_le<SubmitRecord>(record.content.data()));
  if (!submission) return submission.error();
  return std::optional<Submission>(std::move(submission).value());
}

Result<LocalSession::Submission> LocalSession::read_submission(const SubmitRecord& record) {
  Segment& segment = *mapped->segment;
  if (record.slot >= segment.header().slot_count)
    return fail("submission: slot " + std::to_string(record.slot) + " does not exist");
  Submission out;
  out.ticket = {record.slot, record.generation};
  SlotState& slot = segment.slot(record.slot);
  // Pairs with the client's release: the slot was filled before the record was pushed.
  if (slot.word.load(std::memory_order_acquire) !=
      slot_word(record.generation, SlotPhase::kFilled)) {
    return fail("submission: slot " + std::to_string(record.slot) +
                " is not filled in generation " + std::to_string(record.generation));
  }
  for (const auto& [ticket, request] : in_flight) {
    if (ticket.slot == record.slot)
      return fail("submission: slot " + std::to_string(record.slot) + " is already in flight");
  }
  slot.word.store(slot_word(record.generation, SlotPhase::kAccepted), std::memory_order_release);
  if (record.frame_bytes > kFrameBytesMax || record.span_count > kSpanCountMax) {
    out.refused =
        invalid("submission: " + std::to_string(record.frame_bytes) + " frame bytes and " +
                std::to_string(record.span_count) + " spans, allowed are " +
                std::to_string(kFrameBytesMax) + " and " + std::to_string(kSpanCountMax));
    return out;
  }
  const auto frame = segment.payload_span(record.frame_offset, record.frame_bytes);
  const auto spans =
      segment.payload_span(record.spans_offset, record.span_count * sizeof(PartSpan));
  if (!frame || !spans) {
    out.refused = invalid("submission: frame or spans lie outside the payload area");
    return out;
  }
  const std::vector<std::byte> copy(frame->begin(), frame->end());
  std::vector<PartSpan> parts(record.span_count);
  if (!parts.empty()) std::memcpy(parts.data(), spans->data(), spans->size());
  Result<PoolMessage> message = decode(copy);
  if (!message) {
    out.refused = invalid(message.message());
    return out;
  }
  auto* submit = std::get_if<Submit>(&*message);
  if (submit == nullptr) {
    out.refused = invalid("submission: the frame is no request");
    return out;
  }
  out.request = std::move(submit->request);
  for (const PartSpan& span : parts) {
    out.refused = fill_part(out.request, span, segment);
    if (out.refused) return out;
  }
  out.refused = check_request(out.request);
  return out;
}

Result<bool> LocalSession::push(LocalTicket ticket, ByteView frame) {
  const EventHeader header{ticket.slot, ticket.generation};
  if (sizeof header + frame.size() > mapped->complete.content_bytes_max()) {
    return fail("completion ring: an event of " + std::to_string(frame.size()) +
                " bytes does not fit this client's ring");
  }
  const PushOutcome outcome =
      mapped->complete.push(kEventRecord, std::as_bytes(std::span(&header, 1)), frame);
  switch (outcome) {
    case PushOutcome::kPushedRing:
      mapped->client_bell.ring();
      return true;
    case PushOutcome::kPushed:
      return true;
    case PushOutcome::kFull:
      return false;
    case PushOutcome::kBroken:
      return fail("completion ring: the client's position is impossible");
  }
  return false;
}

Result<bool> LocalSession::send_event(LocalTicket ticket, ByteView frame, bool is_end) {
  if (!is_end && sizeof(EventHeader) + frame.size() > mapped->complete.content_bytes_max())
    return false;
  if (backlog_.empty()) {
    Result<bool> pushed = push(ticket, frame);
    if (!pushed) return pushed.error();
    if (*pushed) {
      if (is_end) mark_done(ticket);
      return true;
    }
  }
  if (!is_end && backlog_bytes_ + frame.size() > kBacklogBytesMax) return false;
  backlog_bytes_ += frame.size();
  backlog_.push_back({ticket, {frame.begin(), frame.end()}, is_end});
  // There may be room again since the push; if not, the client rings when it has read something.
  if (auto flushed = flush_backlog(); !flushed) return flushed.error();
  return true;
}

Result<void> LocalSession::flush_backlog() {
  while (!backlog_.empty()) {
    const Waiting& first = backlog_.front();
    Result<bool> pushed = push(first.ticket, first.frame);
    if (!pushed) return pushed.error();
    if (*pushed) {
      if (first.is_end) mark_done(first.ticket);
      backlog_bytes_ -= first.frame.size();
      backlog_.pop_front();
    } else if (mapped->complete.prepare_wait(first.frame.size() + sizeof(EventHeader))) {
      break;
    }
  }
  return {};
}

void LocalSession::mark_done(LocalTicket ticket) {
  // The client may have read the end already and filled the slot anew: only this generation's
  // acceptance becomes DONE.
  uint64_t accepted = slot_word(ticket.generation, SlotPhase::kAccepted);
  mapped->segment->slot(ticket.slot)
      .word.compare_exchange_strong(accepted, slot_word(ticket.generation, SlotPhase::kDone),
                                    std::memory_order_release, std::memory_order_relaxed);
}

}  // namespace updraft
