// A process killed between any two stores of the ring protocol: the survivor sees whole records in
// order up to some point and then nothing, never a torn, doubled or impossible one, and never waits
// for the dead.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "common/ipc/ring.h"

using namespace updraft;
using namespace updraft::ipc;

namespace {

constexpr uint64_t kCapacity = 4096;

// Dies at the n-th store that the process makes into shared memory.
struct DieAtStore {
  static inline int stores_left = -1;  // -1: for ever alive
  static void stored() {
    if (stores_left > 0 && --stores_left == 0) raise(SIGKILL);
  }
};
using DyingProducer = BasicRingProducer<DieAtStore>;
using DyingConsumer = BasicRingConsumer<DieAtStore>;

// A ring in memory that a fork shares.
struct SharedRing {
  SharedRing()
      : base(static_cast<std::byte*>(mmap(nullptr, sizeof(RingIndices) + kCapacity,
                                          PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                                          0))) {
    REQUIRE(base != MAP_FAILED);
    memory = {new (base) RingIndices{}, base + sizeof(RingIndices), kCapacity};
  }
  ~SharedRing() { munmap(base, sizeof(RingIndices) + kCapacity); }
  std::byte* base;
  RingMemory memory;
};

// Record i: a size that varies, so that padding happens, and content that tells i.
std::vector<std::byte> content_of(uint32_t i) {
  std::vector<std::byte> content(4 + i * 37 % 700, static_cast<std::byte>(i * 31 + 7));
  std::memcpy(content.data(), &i, sizeof i);
  return content;
}

// Runs `child` in a process that dies at its n-th store. True: it died there, false: it made fewer.
template <typename Child>
bool killed_at(int n, Child child) {
  const pid_t pid = fork();
  if (pid == 0) {
    DieAtStore::stores_left = n;
    child();
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  if (WIFEXITED(status)) {
    REQUIRE(WEXITSTATUS(status) == 0);
    return false;
  }
  REQUIRE(WTERMSIG(status) == SIGKILL);
  return true;
}

}  // namespace

TEST_CASE("a producer killed after any store leaves whole records in order, or none") {
  int points = 0;
  bool killed = true;
  for (int n = 1; killed; ++n, ++points) {
    SharedRing ring;
    RingConsumer consumer(ring.memory);
    REQUIRE(consumer.prepare_wait());  // so that the waiter flag's store is among the steps
    killed = killed_at(n, [&] {
      DyingProducer producer(ring.memory);
      for (uint32_t i = 0; i < 40; ++i) {
        const std::vector<std::byte> content = content_of(i);
        const ByteView whole(content);
        if (producer.push(kEventRecord, whole.first(4), whole.subspan(4)) != PushOutcome::kFull)
          continue;
        (void)producer.prepare_wait(content.size());
        break;
      }
    });
    uint32_t next = 0;
    Record record;
    bool ring_producer = false;
    for (;;) {
      const Result<bool> got = consumer.pop(record, ring_producer);
      REQUIRE_MESSAGE(got.ok(), got.message());
      if (!*got) break;
      REQUIRE(record.content == content_of(next));
      ++next;
    }
    if (!killed) CHECK(next >= 10);
  }
  CHECK(points > 40);  // each of some ten records has at least four stores
}

TEST_CASE("a consumer killed after any store leaves a ring that fills up and refuses") {
  bool killed = true;
  int points = 0;
  for (int n = 1; killed; ++n, ++points) {
    SharedRing ring;
    RingProducer producer(ring.memory);
    uint32_t pushed = 0;
    while (producer.push(kEventRecord, content_of(pushed)) != PushOutcome::kFull) ++pushed;
    REQUIRE(producer.prepare_wait(content_of(pushed).size()));
    killed = killed_at(n, [&] {
      DyingConsumer consumer(ring.memory);
      Record record;
      bool ring_producer = false;
      while (std::move(consumer.pop(record, ring_producer)).value()) {
      }
      (void)consumer.prepare_wait();
    });
    // The producer may get rid of as much as the dead one gave back, and not a byte more.
    uint64_t bytes = 0;
    PushOutcome outcome{};
    while ((outcome = producer.push(kEventRecord, content_of(0))) != PushOutcome::kFull) {
      REQUIRE(outcome != PushOutcome::kBroken);
      bytes += record_footprint_bytes(content_of(0).size());
      REQUIRE(bytes <= kCapacity);
    }
  }
  CHECK(points >= 4);
}

TEST_CASE("pushes between the look and the sleep are never missed") {
  // The waiter flag and the position cross: with either order of the two, somebody notices.
  SharedRing ring;
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  for (uint32_t i = 0; i < 1000; ++i) {
    const bool first = i % 2 == 0;
    if (first) CHECK(producer.push(kEventRecord, content_of(0)) == PushOutcome::kPushed);
    const bool sleeps = consumer.prepare_wait();
    CHECK(sleeps == !first);
    if (!first) CHECK(producer.push(kEventRecord, content_of(0)) == PushOutcome::kPushedRing);
    Record record;
    bool ring_producer = false;
    REQUIRE(consumer.pop(record, ring_producer).value());
  }
}
