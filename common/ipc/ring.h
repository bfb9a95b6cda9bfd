// A single-producer single-consumer ring of byte records over shared memory (layout.h). The peer is
// not trusted: each side keeps its own position in private memory and checks what the other side
// claims; a lie is an error, never a stray read.
//
// A record is read where it lies (front, pop_front): what the reader keeps it copies once, and what
// it decides on it decides on that copy. Positions cross in batches: the consumer looks at the tail
// only when it has used up what it knew of, and gives room back when it is through with that or
// with a quarter of the ring, so a busy pair moves few cache lines between its cores.
//
// Threads: RingProducer and RingConsumer belong to one thread each, usually in different processes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/check.h"
#include "common/base/result.h"
#include "common/ipc/layout.h"

namespace updraft::ipc {

inline constexpr uint64_t record_footprint_bytes(uint64_t content_bytes) {
  return (sizeof(RecordHeader) + content_bytes + 7) & ~uint64_t{7};
}

// Where a ring lies in this process.
struct RingMemory {
  RingIndices* indices = nullptr;
  std::byte* bytes = nullptr;
  uint64_t capacity_bytes = 0;  // a power of two, at least 4096
};

// What happens after each store into the shared memory: nothing. The test that kills a process at
// every step of the protocol puts its own in here.
struct NoStoreHook {
  static void stored() {}
};

enum class PushOutcome : uint8_t {
  kPushed,      // and the consumer is awake or will look
  kPushedRing,  // and the consumer sleeps: signal its doorbell
  kFull,        // nothing was written
  kBroken,      // the consumer's position is impossible: end the session
};

template <typename Hook>
class BasicRingProducer {
 public:
  // Positions are the producer's own; a ring is used from its start.
  explicit BasicRingProducer(RingMemory memory) : memory_(memory) {}

  // The largest content that can ever fit.
  uint64_t content_bytes_max() const { return memory_.capacity_bytes / 2 - sizeof(RecordHeader); }

  // Writes one record made of two pieces (either may be empty).
  PushOutcome push(uint32_t kind, ByteView first, ByteView second = {}) {
    const uint64_t content = first.size() + second.size();
    UPDRAFT_CHECK(content <= content_bytes_max(), "record larger than half the ring");
    const uint64_t needed = record_footprint_bytes(content);
    const uint64_t at = tail_ & (memory_.capacity_bytes - 1);
    const uint64_t to_end = memory_.capacity_bytes - at;
    const uint64_t skip = to_end < needed ? to_end : 0;  // a record never wraps
    if (!has_room(skip + needed)) {
      return broken_ ? PushOutcome::kBroken : PushOutcome::kFull;
    }
    if (skip > 0) {
      write_header(at, {static_cast<uint32_t>(skip - sizeof(RecordHeader)), kPaddingRecord});
      tail_ += skip;
    }
    const uint64_t place = tail_ & (memory_.capacity_bytes - 1);
    write_header(place, {static_cast<uint32_t>(content), kind});
    std::byte* to = memory_.bytes + place + sizeof(RecordHeader);
    if (!first.empty()) std::memcpy(to, first.data(), first.size());
    Hook::stored();
    if (!second.empty()) std::memcpy(to + first.size(), second.data(), second.size());
    Hook::stored();
    tail_ += needed;
    // Pairs with the acquire in RingConsumer::learn_tail(): whoever sees this tail sees the
    // record's bytes.
    memory_.indices->tail.store(tail_, std::memory_order_release);
    Hook::stored();
    return wake_consumer() ? PushOutcome::kPushedRing : PushOutcome::kPushed;
  }

  // Announces that the producer will sleep until there is room for `content_bytes`. True: still
  // full, sleep on the doorbell. False: there is room now, try again.
  bool prepare_wait(uint64_t content_bytes) {
    memory_.indices->producer_waits.store(1, std::memory_order_seq_cst);
    Hook::stored();
    // The full fence on both sides (here and in RingConsumer::give_room) orders "flag, then look at
    // the position" against "position, then look at the flag": at least one side sees the other.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (has_room(2 * record_footprint_bytes(content_bytes)) || broken_) {
      memory_.indices->producer_waits.store(0, std::memory_order_relaxed);
      return false;
    }
    return true;
  }

 private:
  bool has_room(uint64_t needed) {
    if (tail_ + needed - known_head_ <= memory_.capacity_bytes) return true;
    // Pairs with the release in RingConsumer::give_room(): the consumer has finished reading what
    // lies before this head.
    const uint64_t head = memory_.indices->head.load(std::memory_order_acquire);
    if (head < known_head_ || head > tail_) {
      broken_ = true;
      return false;
    }
    known_head_ = head;
    return tail_ + needed - known_head_ <= memory_.capacity_bytes;
  }

  void write_header(uint64_t at, RecordHeader header) {
    std::memcpy(memory_.bytes + at, &header, sizeof header);
    Hook::stored();
  }

  bool wake_consumer() {
    // Pairs with the fence in RingConsumer::prepare_wait().
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (memory_.indices->consumer_waits.load(std::memory_order_relaxed) == 0) return false;
    memory_.indices->consumer_waits.store(0, std::memory_order_relaxed);
    Hook::stored();
    return true;
  }

  RingMemory memory_;
  uint64_t tail_ = 0;        // next byte to write
  uint64_t known_head_ = 0;  // newest valid head seen
  bool broken_ = false;
};

struct Record {
  uint32_t kind = 0;
  std::vector<std::byte> content;
};

// A record where it lies. Its producer may rewrite the bytes at any time; `content` itself (place
// and length) was checked and stays.
struct RecordView {
  uint32_t kind = 0;
  ByteView content;
};

template <typename Hook>
class BasicRingConsumer {
 public:
  explicit BasicRingConsumer(RingMemory memory) : memory_(memory) {}

  // The oldest record, in place until pop_front(). True: there is one; asking again gives the same.
  // Error: the producer's memory makes no sense; the session must end.
  Result<bool> front(RecordView& out) {
    for (;;) {
      if (known_tail_ == head_) {
        if (!learn_tail()) return impossible_tail();
        if (known_tail_ == head_) return false;
      }
      const uint64_t at = head_ & (memory_.capacity_bytes - 1);
      const uint64_t available = std::min(known_tail_ - head_, memory_.capacity_bytes - at);
      // Copied once, then checked, then used: the peer may change it at any time.
      const auto header = load_le<RecordHeader>(memory_.bytes + at);
      const uint64_t footprint = record_footprint_bytes(header.bytes);
      if (footprint > available) {
        return fail("ring: a record of " + std::to_string(header.bytes) +
                    " bytes does not fit the " + std::to_string(available) + " bytes written");
      }
      if (header.kind == kPaddingRecord) {
        head_ += footprint;
        continue;
      }
      front_bytes_ = footprint;
      out.kind = header.kind;
      out.content = {memory_.bytes + at + sizeof(RecordHeader), header.bytes};
      return true;
    }
  }

  // Drops what front() showed. `ring_producer` becomes true when the producer waits for room:
  // signal its doorbell.
  void pop_front(bool& ring_producer) {
    UPDRAFT_CHECK(front_bytes_ > 0, "pop_front without a record that front() showed");
    head_ += front_bytes_;
    front_bytes_ = 0;
    if (head_ == known_tail_ || head_ - given_head_ >= memory_.capacity_bytes / 4)
      give_room(ring_producer);
  }

  // front() and pop_front() with a copy between: `out`'s buffer is reused. True: there was a
  // record.
  Result<bool> pop(Record& out, bool& ring_producer) {
    RecordView view;
    Result<bool> got = front(view);
    if (!got || !*got) return got;
    out.kind = view.kind;
    out.content.assign(view.content.begin(), view.content.end());
    pop_front(ring_producer);
    return true;
  }

  // A look without a claim, for spinning: false while there is nothing new.
  bool maybe_ready() const {
    return known_tail_ != head_ ||
           memory_.indices->tail.load(std::memory_order_relaxed) != known_tail_;
  }

  // Takes an announcement back: the consumer will look by itself, no doorbell needed.
  void stop_waiting() {
    memory_.indices->consumer_waits.store(0, std::memory_order_relaxed);
    Hook::stored();
  }

  // Announces that the consumer will sleep. True: still empty, sleep on the doorbell. False: look
  // again.
  bool prepare_wait() {
    memory_.indices->consumer_waits.store(1, std::memory_order_seq_cst);
    Hook::stored();
    // Pairs with the fence in RingProducer::wake_consumer().
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (memory_.indices->tail.load(std::memory_order_relaxed) != head_) {
      memory_.indices->consumer_waits.store(0, std::memory_order_relaxed);
      return false;
    }
    return true;
  }

 private:
  // False: the tail is impossible.
  bool learn_tail() {
    // Pairs with the release in RingProducer::push().
    const uint64_t tail = memory_.indices->tail.load(std::memory_order_acquire);
    const uint64_t filled = tail - head_;
    if (filled > memory_.capacity_bytes || (tail & 7) != 0) {
      refused_tail_ = tail;
      return false;
    }
    known_tail_ = tail;
    return true;
  }

  Error impossible_tail() const {
    return fail("ring: tail " + std::to_string(refused_tail_) + " is impossible at head " +
                std::to_string(head_));
  }

  void give_room(bool& ring_producer) {
    // Pairs with the acquire in RingProducer::has_room(): these bytes may be overwritten now.
    memory_.indices->head.store(head_, std::memory_order_release);
    Hook::stored();
    given_head_ = head_;
    // Pairs with the fence in RingProducer::prepare_wait().
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (memory_.indices->producer_waits.load(std::memory_order_relaxed) == 0) return;
    memory_.indices->producer_waits.store(0, std::memory_order_relaxed);
    Hook::stored();
    ring_producer = true;
  }

  RingMemory memory_;
  uint64_t head_ = 0;         // next byte to read
  uint64_t known_tail_ = 0;   // newest valid tail seen
  uint64_t given_head_ = 0;   // what the producer was told
  uint64_t front_bytes_ = 0;  // footprint of the record that front() showed; 0: none
  uint64_t refused_tail_ = 0;
};

using RingProducer = BasicRingProducer<NoStoreHook>;
using RingConsumer = BasicRingConsumer<NoStoreHook>;

}  // namespace updraft::ipc
