// The shared-memory ABI between a local client and the edge daemon: everything both sides must
// agree on, byte for byte. The client creates the segment and owns it; the daemon maps it, copies
// what it needs and believes nothing twice.
//
//   0          SegmentHeader            written by the client before the handshake, never changed
//   after it submit     RingIndices + bytes      client -> daemon: SubmitRecord complete
//   RingIndices + bytes      daemon -> client: encoded pool messages (Accepted, Tokens, Done,
//   Failed, Rejected) slots      SlotState[slot_count]    one per request in flight payload
//   client's own area        allocated by the client alone; the daemon only reads spans it was told
//   of
//
// Fixed-width little-endian fields, offsets from the segment's start, no pointers, no locks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace updraft::ipc {

inline constexpr uint64_t kSegmentMagic =
    0x3147455350550000ULL;  // "\0\0UPSEG1" as little-endian bytes
inline constexpr uint32_t kAbiVersion = 2;
inline constexpr uint64_t kCacheLineBytes = 64;
inline constexpr uint64_t kSegmentBytesMin = 256 * 1024;
inline constexpr uint64_t kSubmitRingBytesMin = 4096;
inline constexpr uint64_t kCompleteRingBytesMin = 64 * 1024;  // any end event fits half of it
inline constexpr uint64_t kRingBytesMax = 64ULL << 20;
inline constexpr uint32_t kSlotCountMax = 1024;
inline constexpr uint32_t kSpanCountMax = 64;
inline constexpr uint32_t kFrameBytesMax = 1024 * 1024;  // an encoded Submit without its spans

struct SegmentHeader {
  uint64_t magic;
  uint32_t abi_version;
  uint32_t slot_count;
  uint64_t segment_bytes;
  uint64_t submit_offset;  // of RingIndices; the ring's bytes follow it
  uint64_t submit_bytes;   // capacity, a power of two
  uint64_t complete_offset;
  uint64_t complete_bytes;
  uint64_t slots_offset;
  uint64_t payload_offset;
  uint64_t payload_bytes;
};
static_assert(sizeof(SegmentHeader) == 80);
static_assert(offsetof(SegmentHeader, payload_bytes) == 72);

// A single-producer single-consumer byte ring's shared positions. They count bytes since the start
// and only grow; the position in the ring is the count modulo the capacity. Each side writes its
// own cache line.
struct RingIndices {
  alignas(kCacheLineBytes) std::atomic<uint64_t> tail;  // written by the producer
  alignas(kCacheLineBytes) std::atomic<uint64_t> head;  // written by the consumer
  alignas(kCacheLineBytes)
      std::atomic<uint32_t> consumer_waits;  // 1: the consumer sleeps, ring the doorbell
  alignas(kCacheLineBytes) std::atomic<uint32_t> producer_waits;  // 1: the producer waits for room
};
static_assert(sizeof(RingIndices) == 4 * kCacheLineBytes);
static_assert(std::atomic<uint64_t>::is_always_lock_free &&
              std::atomic<uint32_t>::is_always_lock_free);

// Before each record in a ring; records begin at multiples of 8 and never wrap.
struct RecordHeader {
  uint32_t bytes;  // of the record's content, without this header and without padding
  uint32_t kind;   // 0: nothing until the ring's end
};
static_assert(sizeof(RecordHeader) == 8);
inline constexpr uint32_t kPaddingRecord = 0;
inline constexpr uint32_t kSubmitRecord = 1;
inline constexpr uint32_t kEventRecord = 2;

// State of one request slot. The generation grows each time the client fills the slot, so a stale
// descriptor is refused.
//   FREE -> FILLED (client) -> ACCEPTED (daemon) -> DONE (daemon) -> FREE (client)
enum class SlotPhase : uint32_t { kFree = 0, kFilled = 1, kAccepted = 2, kDone = 3 };
struct SlotState {
  alignas(kCacheLineBytes) std::atomic<uint64_t> word;  // generation << 2 | phase
};
static_assert(sizeof(SlotState) == kCacheLineBytes);
inline constexpr uint64_t slot_word(uint32_t generation, SlotPhase phase) {
  return static_cast<uint64_t>(generation) << 2 | static_cast<uint64_t>(phase);
}

// Payload lies in the session's segment, number 0, or in a further one that the client sent over
// the session's socket under a number of its own (payload_segment.h). Offsets count from the
// beginning of the segment that they are in.

// kSubmitRecord: where an encoded Submit lies, and which of its parts lie outside it.
struct SubmitRecord {
  uint32_t slot;
  uint32_t generation;
  uint64_t frame_offset;
  uint32_t frame_bytes;
  uint32_t span_count;
  uint64_t spans_offset;  // of PartSpan[span_count]
  uint32_t segment = 0;   // that holds frame and spans
  uint32_t reserved = 0;
};
static_assert(sizeof(SubmitRecord) == 40);

// What the bytes of a span are.
enum class SpanTarget : uint32_t {
  kPart = 0,       // messages[index].parts[part]: UTF-8 text, or an image
  kPrompt = 1,     // prompts[index]: UTF-8 text
  kPromptIds = 2,  // prompt_ids[index]: token ids, little-endian int32
  kPromptPart = 3  // prompt_parts[index]: UTF-8 text, token ids or rows of embeddings, as it says
};

// Bytes of the request that stay in the payload area instead of the frame. In the frame such a text
// or list of ids is empty, so are rows of embeddings, and one byte stands in place of an image.
struct PartSpan {
  uint32_t index;  // into Request::messages, prompts, prompt_ids or prompt_parts
  uint32_t part;   // index into the message's parts; 0 otherwise
  uint64_t offset;
  uint64_t bytes;
  SpanTarget target = SpanTarget::kPart;
  uint32_t segment = 0;
};
static_assert(sizeof(PartSpan) == 32);

// kEventRecord: this, then an encoded pool message.
struct EventHeader {
  uint32_t slot;
  uint32_t generation;
};
static_assert(sizeof(EventHeader) == 8);

}  // namespace updraft::ipc
