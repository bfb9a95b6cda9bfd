// The ring between two parties of which neither trusts the other.
#include "common/ipc/ring.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <thread>

#include "common/ipc/doorbell.h"

using namespace updraft;
using namespace updraft::ipc;

namespace {

struct TestRing {
  explicit TestRing(uint64_t capacity) : bytes(capacity) {
    memory = {new (&indices) RingIndices{}, bytes.data(), capacity};
  }
  alignas(64) RingIndices indices;
  std::vector<std::byte> bytes;
  RingMemory memory;
};

ByteView view(const std::string& text) { return as_bytes_view(text); }

}  // namespace

TEST_CASE("records come out in order, whole, and with their kind") {
  TestRing ring(4096);
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  CHECK(producer.push(kSubmitRecord, view("head"), view("tail")) == PushOutcome::kPushed);
  CHECK(producer.push(kEventRecord, {}) == PushOutcome::kPushed);
  Record record;
  bool ring_producer = false;
  CHECK(consumer.pop(record, ring_producer).value());
  CHECK(record.kind == kSubmitRecord);
  CHECK(as_text(record.content) == "headtail");
  CHECK(consumer.pop(record, ring_producer).value());
  CHECK(record.kind == kEventRecord);
  CHECK(record.content.empty());
  CHECK_FALSE(consumer.pop(record, ring_producer).value());
  CHECK_FALSE(ring_producer);
}

TEST_CASE("a full ring refuses and loses nothing") {
  TestRing ring(4096);
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  const std::string content(1000, 'x');
  int pushed = 0;
  while (producer.push(kEventRecord, view(content)) == PushOutcome::kPushed) ++pushed;
  CHECK(pushed == 4);  // 4 records of 1008 bytes in 4096
  CHECK(producer.prepare_wait(content.size()));
  Record record;
  bool ring_producer = false;
  for (int i = 0; i < pushed; ++i) {
    REQUIRE(consumer.pop(record, ring_producer).value());
    CHECK(as_text(record.content) == content);
  }
  CHECK(ring_producer);
  CHECK(producer.push(kEventRecord, view(content)) == PushOutcome::kPushed);
}

TEST_CASE("a sleeping consumer is named to the producer exactly once") {
  TestRing ring(4096);
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  CHECK(consumer.prepare_wait());
  CHECK(producer.push(kEventRecord, view("a")) == PushOutcome::kPushedRing);
  CHECK(producer.push(kEventRecord, view("b")) == PushOutcome::kPushed);
  // Who does not sleep after all is not rung for.
  CHECK_FALSE(consumer.prepare_wait());
  CHECK(producer.push(kEventRecord, view("c")) == PushOutcome::kPushed);
}

TEST_CASE("a producer that finds room at its second look does not sleep, and is not rung for") {
  TestRing ring(4096);
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  const std::string content(1000, 'x');
  while (producer.push(kEventRecord, view(content)) == PushOutcome::kPushed) {
  }
  Record record;
  bool ring_producer = false;
  REQUIRE(consumer.pop(record, ring_producer).value());
  REQUIRE(consumer.pop(record, ring_producer).value());
  CHECK_FALSE(producer.prepare_wait(content.size()));
  REQUIRE(consumer.pop(record, ring_producer).value());
  REQUIRE(consumer.pop(record, ring_producer).value());
  CHECK_FALSE(ring_producer);
}

TEST_CASE("records of random sizes cross two threads unharmed") {
  TestRing ring(1 << 16);
  constexpr uint32_t kRecords = 200000;
  std::thread sender([&] {
    RingProducer producer(ring.memory);
    std::mt19937 random(7);
    std::vector<std::byte> content(600);
    for (uint32_t i = 0; i < kRecords; ++i) {
      const size_t size = 4 + random() % 500;
      std::memcpy(content.data(), &i, 4);
      std::memset(content.data() + 4, static_cast<int>(i & 0xFF), size - 4);
      PushOutcome outcome{};
      while ((outcome = producer.push(kEventRecord, {content.data(), size})) ==
             PushOutcome::kFull) {
        std::this_thread::yield();
      }
      if (outcome == PushOutcome::kBroken) std::abort();
    }
  });
  RingConsumer consumer(ring.memory);
  std::mt19937 random(7);
  Record record;
  bool ring_producer = false;
  for (uint32_t i = 0; i < kRecords;) {
    Result<bool> got = consumer.pop(record, ring_producer);
    REQUIRE(got.ok());
    if (!*got) {
      std::this_thread::yield();
      continue;
    }
    const size_t size = 4 + random() % 500;
    bool same = record.content.size() == size && load_le<uint32_t>(record.content.data()) == i;
    for (size_t k = 4; k < record.content.size(); ++k)
      same = same && record.content[k] == static_cast<std::byte>(i & 0xFF);
    REQUIRE(same);
    ++i;
  }
  sender.join();
}

TEST_CASE("two threads that sleep whenever they may miss no wake-up") {
  // Both sides sleep at once when there is nothing to do: a flag or a look in the wrong order, or
  // without its fence, shows as somebody who sleeps although there is work or room.
  TestRing ring(4096);
  const Doorbell consumer_bell = std::move(Doorbell::create()).value();
  const Doorbell producer_bell = std::move(Doorbell::create()).value();
  constexpr uint32_t kRecords = 100'000;
  constexpr int kLostMs = 20'000;
  std::atomic<bool> producer_lost = false;
  std::thread sender([&] {
    RingProducer producer(ring.memory);
    std::mt19937 random(3);
    std::vector<std::byte> content(1500);
    for (uint32_t i = 0; i < kRecords;) {
      std::memcpy(content.data(), &i, sizeof i);
      const size_t size = 4 + random() % (i % 64 < 32 ? 40 : 1400);
      for (;;) {
        const PushOutcome outcome = producer.push(kEventRecord, {content.data(), size});
        if (outcome == PushOutcome::kBroken) std::abort();
        if (outcome == PushOutcome::kPushedRing) consumer_bell.ring();
        if (outcome != PushOutcome::kFull) break;
        if (producer.prepare_wait(size) && !producer_bell.wait(kLostMs)) {
          producer_lost = true;
          return;
        }
      }
      ++i;
    }
  });
  RingConsumer consumer(ring.memory);
  bool consumer_lost = false;
  uint32_t next = 0;
  while (next < kRecords && !consumer_lost && !producer_lost) {
    RecordView record;
    const Result<bool> got = consumer.front(record);
    REQUIRE(got.ok());
    if (!*got) {
      if (consumer.prepare_wait()) consumer_lost = !consumer_bell.wait(kLostMs);
      continue;
    }
    const bool in_order = load_le<uint32_t>(record.content.data()) == next;
    bool ring_producer = false;
    consumer.pop_front(ring_producer);
    if (ring_producer) producer_bell.ring();
    if (!in_order) break;
    ++next;
  }
  if (next < kRecords) producer_bell.ring();
  CHECK_FALSE(consumer_lost);
  CHECK(next == kRecords);
  if (next == kRecords || producer_lost) {
    sender.join();
  } else {
    sender.detach();
    std::abort();  // the sender holds what this frame owns
  }
  CHECK_FALSE(producer_lost);
}

namespace {

// About a processor's cycle each: which of two threads is how much earlier differs from round to
// round.
void linger(int cycles) {
  for (int i = 0; i < cycles; ++i) asm volatile("");
}

// Two threads that begin each round together, as nearly as they can.
class Rounds {
 public:
  void meet() {
    const int mine = 2 * (here_.fetch_add(1, std::memory_order_acq_rel) / 2 + 1);
    for (int tries = 0; here_.load(std::memory_order_acquire) < mine; ++tries)
      if (tries > 1000) std::this_thread::yield();
  }

 private:
  std::atomic<int> here_ = 0;
};
constexpr int kRounds = 100'000;

}  // namespace

// Litmus tests of the full fences. A processor that lets a later load pass an earlier store shows a
// missing one within these rounds when both threads have a core; with one core it shows nothing.
TEST_CASE("a consumer that goes to sleep sees the record, or its producer sees the sleeper") {
  TestRing ring(4096);
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  Rounds rounds;
  bool rung = false;
  std::thread sender([&] {
    for (int i = 0; i < kRounds; ++i) {
      rounds.meet();
      linger(i % 131);
      rung = producer.push(kEventRecord, view("x")) == PushOutcome::kPushedRing;
      rounds.meet();
    }
  });
  int missed = 0;
  Record record;
  bool ring_producer = false;
  for (int i = 0; i < kRounds; ++i) {
    rounds.meet();
    linger(i % 997);
    const bool sleeps = consumer.prepare_wait();
    rounds.meet();
    missed += sleeps && !rung ? 1 : 0;
    consumer.stop_waiting();
    (void)consumer.pop(record, ring_producer);
  }
  sender.join();
  CHECK(missed == 0);
}

TEST_CASE("a producer that goes to sleep sees the room, or its consumer sees the sleeper") {
  TestRing ring(4096);
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  const std::string half(producer.content_bytes_max(), 'x');
  CHECK(producer.push(kEventRecord, view(half)) == PushOutcome::kPushed);
  CHECK(producer.push(kEventRecord, view(half)) == PushOutcome::kPushed);
  Rounds rounds;
  bool rung = false;
  std::thread reader([&] {
    Record record;
    for (int i = 0; i < kRounds; ++i) {
      rounds.meet();
      rung = false;
      linger(i % 131);
      (void)consumer.pop(record, rung);
      rounds.meet();
    }
  });
  int missed = 0;
  bool all_fit = true;
  for (int i = 0; i < kRounds; ++i) {
    rounds.meet();
    linger(i % 257);
    const bool sleeps = producer.prepare_wait(8);
    rounds.meet();
    missed += sleeps && !rung ? 1 : 0;
    ring.indices.producer_waits.store(0);
    all_fit = producer.push(kEventRecord, view(half)) == PushOutcome::kPushed && all_fit;
  }
  reader.join();
  CHECK(missed == 0);
  CHECK(all_fit);
}

TEST_CASE("a consumer that meets an impossible tail reports it and reads nothing") {
  TestRing ring(4096);
  RingConsumer consumer(ring.memory);
  Record record;
  bool ring_producer = false;
  for (const uint64_t tail : {uint64_t{4096 + 8}, uint64_t{13}}) {
    ring.indices.tail.store(tail);
    const Result<bool> got = consumer.pop(record, ring_producer);
    REQUIRE_FALSE(got.ok());
    CHECK(got.message().find("is impossible") != std::string::npos);
  }
}

TEST_CASE("a record longer than what was written is refused") {
  TestRing ring(4096);
  RingConsumer consumer(ring.memory);
  Record record;
  bool ring_producer = false;
  const RecordHeader lie{0xFFFFFFF0U, kEventRecord};
  std::memcpy(ring.bytes.data(), &lie, sizeof lie);
  ring.indices.tail.store(16);
  const Result<bool> got = consumer.pop(record, ring_producer);
  REQUIRE_FALSE(got.ok());
  CHECK(got.message().find("does not fit") != std::string::npos);
}

TEST_CASE("a producer that meets an impossible head calls the session broken") {
  TestRing ring(4096);
  RingProducer producer(ring.memory);
  const std::string content(1500, 'x');
  CHECK(producer.push(kEventRecord, view(content)) == PushOutcome::kPushed);
  CHECK(producer.push(kEventRecord, view(content)) == PushOutcome::kPushed);
  ring.indices.head.store(1ULL << 40);
  CHECK(producer.push(kEventRecord, view(content)) == PushOutcome::kBroken);
}

TEST_CASE("a producer whose consumer takes room back calls the session broken") {
  TestRing ring(4096);
  RingProducer producer(ring.memory);
  const std::string content(1000, 'x');
  const auto fill = [&] {
    PushOutcome outcome{};
    while ((outcome = producer.push(kEventRecord, view(content))) == PushOutcome::kPushed) {
    }
    return outcome;
  };
  CHECK(fill() == PushOutcome::kFull);
  ring.indices.head.store(2 * 1008);
  CHECK(fill() == PushOutcome::kFull);
  ring.indices.head.store(1008);
  CHECK(fill() == PushOutcome::kBroken);
}

TEST_CASE("a record that reaches beyond the ring's end is refused, whatever the tail says") {
  TestRing ring(4096);
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  Record record;
  bool ring_producer = false;
  for (int i = 0; i < 3; ++i) {
    REQUIRE(producer.push(kEventRecord, view(std::string(1000, 'x'))) == PushOutcome::kPushed);
    REQUIRE(consumer.pop(record, ring_producer).value());
  }
  const RecordHeader lie{1500, kEventRecord};  // 1072 bytes are left up to the end
  std::memcpy(ring.bytes.data() + 3024, &lie, sizeof lie);
  ring.indices.tail.store(3024 + 4096);
  const Result<bool> got = consumer.pop(record, ring_producer);
  REQUIRE_FALSE(got.ok());
  CHECK(got.message().find("does not fit") != std::string::npos);
}
