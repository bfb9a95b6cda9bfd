// Reading submissions out of a segment that its owner may be rewriting.
#include "edge/local_session.h"

#include <cstring>

#include "common/message/pool_message.h"
#include "common/message/request_check.h"
#include "edge/local_payload.h"

namespace updraft {

using namespace ipc;

namespace {

constexpr uint32_t kSmallFrameBytes = 4096;

RequestError invalid(std::string message) {
  return error_of(ErrorCode::kInvalidRequest, std::move(message));
}

}  // namespace

bool LocalSession::next_is_small() {
  RecordView record;
  const Result<bool> got = mapped->submit.front(record);
  if (!got || !*got || record.content.size() != sizeof(SubmitRecord)) return false;
  const auto descriptor = load_le<SubmitRecord>(record.content.data());
  return descriptor.frame_bytes <= kSmallFrameBytes && descriptor.span_count == 0;
}

Result<std::optional<LocalSession::Submission>> LocalSession::next_submission() {
  RecordView record;
  Result<bool> got = mapped->submit.front(record);
  if (!got) return got.error();
  if (!*got) return std::optional<Submission>();
  if (record.kind != kSubmitRecord || record.content.size() != sizeof(SubmitRecord)) {
    return fail("submission ring: a record of kind " + std::to_string(record.kind) + " with " +
                std::to_string(record.content.size()) + " bytes");
  }
  const auto descriptor = load_le<SubmitRecord>(record.content.data());
  bool ring_client = false;
  mapped->submit.pop_front(ring_client);
  if (ring_client) mapped->client_bell->ring();
  Result<Submission> submission = read_submission(descriptor);
  mapped->memory->let_go_of_named();
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
  if (outbox->slot_in_flight(record.slot))
    return fail("submission: slot " + std::to_string(record.slot) + " is already in flight");
  slot.word.store(slot_word(record.generation, SlotPhase::kAccepted), std::memory_order_release);
  if (record.frame_bytes > kFrameBytesMax || record.span_count > kSpanCountMax) {
    out.refused =
        invalid("submission: " + std::to_string(record.frame_bytes) + " frame bytes and " +
                std::to_string(record.span_count) + " spans, allowed are " +
                std::to_string(kFrameBytesMax) + " and " + std::to_string(kSpanCountMax));
    return out;
  }
  LocalMemory& memory = *mapped->memory;
  const auto frame = memory.bytes(record.segment, record.frame_offset, record.frame_bytes);
  const auto spans =
      memory.bytes(record.segment, record.spans_offset, record.span_count * sizeof(PartSpan));
  if (!frame || !spans) {
    out.refused = invalid("submission: frame or spans lie outside the payload area of segment " +
                          std::to_string(record.segment));
    return out;
  }
  const std::vector<std::byte> copy(frame->view().begin(), frame->view().end());
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
    out.refused = place_span(out.request, span, memory);
    if (out.refused) return out;
  }
  out.refused = check_request(out.request);
  if (!out.refused) out.refused = check_images(out.request);
  return out;
}

}  // namespace updraft
