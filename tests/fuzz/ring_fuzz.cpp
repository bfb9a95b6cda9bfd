// The ring's reader and writer against a peer that writes what it likes, where it likes, between
// any two of their steps. The input is the peer's program: records {what, place, value}. Nothing
// may be read or written outside the ring (AddressSanitizer watches its exact size), and every call
// must come back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "common/ipc/ring.h"

namespace {

using namespace updraft;
using namespace updraft::ipc;

constexpr uint64_t kCapacity = 4096;

struct Step {
  uint8_t what;
  uint8_t unused;
  uint16_t place;
  uint32_t small;
  uint64_t value;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto indices = std::make_unique<RingIndices>();
  // Exactly the ring's bytes: one byte beside them is found.
  auto bytes = std::make_unique<std::byte[]>(kCapacity);
  const RingMemory memory{indices.get(), bytes.get(), kCapacity};
  RingConsumer consumer(memory);
  RingProducer producer(memory);
  bool wake = false;
  for (; size >= sizeof(Step); data += sizeof(Step), size -= sizeof(Step)) {
    const auto step = load_le<Step>(data);
    switch (step.what % 8) {
      case 0:
        indices->tail.store(step.value);
        break;
      case 1:
        indices->head.store(step.value);
        break;
      case 2:
        indices->consumer_waits.store(step.small);
        indices->producer_waits.store(static_cast<uint32_t>(step.value));
        break;
      case 3: {  // anything into the bytes: a header, a half of one, content
        const size_t at = step.place % (kCapacity - sizeof step.value);
        std::memcpy(bytes.get() + at, &step.value, sizeof step.value);
        break;
      }
      case 4: {  // an honest writer's step forward, so that lies meet a ring in use
        indices->tail.fetch_add(step.small & 0xFF8);
        break;
      }
      case 5: {
        RecordView view;
        const Result<bool> got = consumer.front(view);
        if (!got) return 0;  // the session would end
        if (!*got) break;
        // What a reader does: looks at all of it, and drops it.
        unsigned sum = 0;
        for (const std::byte b : view.content) sum += static_cast<unsigned>(b);
        if (sum == 0xFFFFFFFF) std::abort();
        consumer.pop_front(wake);
        break;
      }
      case 6: {
        const std::vector<std::byte> content(step.place % (producer.content_bytes_max() + 1));
        if (producer.push(kEventRecord, content) == PushOutcome::kBroken) return 0;
        break;
      }
      default:
        (void)consumer.prepare_wait();
        (void)producer.prepare_wait(step.place % producer.content_bytes_max());
        break;
    }
  }
  return 0;
}
