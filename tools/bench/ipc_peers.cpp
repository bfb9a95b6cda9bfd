// The channels that are compared: Updraft's segment and rings, raw eventfd, a Unix socket, ZeroMQ,
// and one cache line between the cores.
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include <atomic>
#include <cstring>
#include <new>
#include <optional>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/ipc/doorbell.h"
#include "common/ipc/segment.h"
#include "tools/bench/ipc_bench.h"
#include "tools/bench/ipc_peer_iceoryx.h"

namespace updraft {
namespace {

using namespace ipc;

constexpr uint64_t kLine = 64;
constexpr uint64_t kAckEvery = 1024;  // kRate: the sender never runs further ahead than the ring
constexpr int64_t kSpinNs = 5 * kNsPerUs;
constexpr uint64_t kFillSlots = 2;

void relax() { __builtin_ia32_pause(); }

// Reads one word of every cache line.
uint64_t read_lines(const std::byte* from, uint64_t bytes) {
  uint64_t sum = 0;
  for (uint64_t at = 0; at + sizeof(uint64_t) <= bytes; at += kLine) {
    uint64_t word;
    std::memcpy(&word, from + at, sizeof word);
    sum += word;
  }
  // Keeps the reads: the compiler must believe that the sum is used.
  asm volatile("" : : "r"(sum) : "memory");
  return sum;
}

// The client's own data, copied into channels that move it.
const std::byte* source_bytes(uint64_t bytes) {
  static std::vector<std::byte> data;
  if (data.size() < bytes) data.assign(bytes, std::byte{7});
  return data.data();
}

// One cache line with the record's header before it.
struct Descriptor {
  uint64_t sequence;
  uint64_t offset;  // from the segment's start
  uint64_t bytes;
  uint64_t wants_answer;
  uint64_t rest[3];
};
static_assert(sizeof(Descriptor) + sizeof(RecordHeader) == kLine);

class RingPair final : public IpcPair {
 public:
  static Result<std::unique_ptr<IpcPair>> make(uint64_t bytes, bool spins) {
    SegmentShape shape;
    shape.payload_bytes = kFillSlots * std::max<uint64_t>(bytes, 4096) + 4096;
    Result<std::unique_ptr<Segment>> segment = Segment::create(shape);
    if (!segment) return segment.error();
    Result<Doorbell> client = Doorbell::create();
    if (!client) return client.error();
    Result<Doorbell> server = Doorbell::create();
    if (!server) return server.error();
    return std::unique_ptr<IpcPair>(
        new RingPair(std::move(*segment), std::move(*client), std::move(*server), spins));
  }

  void serve(IpcTest test) override {
    // As the daemon does: a mapping of its own, checked.
    Result<std::unique_ptr<Segment>> adopted =
        Segment::adopt(UniqueFd(dup(segment_->fd())), uint64_t{1} << 40);
    UPDRAFT_CHECK(adopted.ok());
    const Segment& segment = **adopted;
    RingConsumer in(segment.submit_ring());
    RingProducer out(segment.complete_ring());
    std::byte* const base =
        const_cast<std::byte*>(segment.payload_span(segment.header().payload_offset, 1)->data() -
                               segment.header().payload_offset);
    for (;;) {
      const Descriptor d = take(in, server_bell_, client_bell_);
      const auto span = segment.payload_span(d.offset, d.bytes);
      UPDRAFT_CHECK(span.has_value(), "the descriptor lies outside the payload area");
      if (test == IpcTest::kFill) read_lines(span->data(), d.bytes);
      if (test == IpcTest::kEcho) std::memcpy(base + d.offset + d.bytes, span->data(), d.bytes);
      if (test == IpcTest::kHand || test == IpcTest::kSparse || test == IpcTest::kIdle)
        touch(base + d.offset);
      if (d.wants_answer != 0) give(out, client_bell_, d);
    }
  }

  void start_client() override {
    submit_.emplace(segment_->submit_ring());
    complete_.emplace(segment_->complete_ring());
  }

  void round_trip(IpcTest test, uint64_t bytes) override {
    std::byte* const payload = segment_->payload().data();
    if (test == IpcTest::kEcho)
      std::memcpy(payload, source_bytes(bytes), bytes);
    else
      touch(payload);
    give(*submit_, server_bell_, descriptor(0, bytes, true));
    const Descriptor answer = take(*complete_, client_bell_, server_bell_);
    UPDRAFT_CHECK(answer.sequence == sequence_, "another answer than the one waited for");
    if (test == IpcTest::kEcho)
      read_lines(payload + bytes, bytes);
    else
      touch(payload);
  }

  void send_many(IpcTest test, uint64_t bytes, uint64_t count) override {
    uint64_t answers_due = 0;
    for (uint64_t i = 0; i < count; ++i) {
      uint64_t offset = 0;
      bool wants = i + 1 == count;
      if (test == IpcTest::kFill) {
        offset = (i % kFillSlots) * bytes;
        wants = true;
        if (answers_due == kFillSlots) {
          (void)take(*complete_, client_bell_, server_bell_);
          --answers_due;
        }
        std::memcpy(segment_->payload().data() + offset, source_bytes(bytes), bytes);
      } else {
        wants = wants || i % kAckEvery == kAckEvery - 1;
      }
      give(*submit_, server_bell_, descriptor(offset, bytes, wants));
      if (wants) ++answers_due;
      // kRate keeps at most two answers open, which is far below the ring's capacity.
      while (test == IpcTest::kRate && answers_due > 1) {
        (void)take(*complete_, client_bell_, server_bell_);
        --answers_due;
      }
    }
    for (; answers_due > 0; --answers_due) (void)take(*complete_, client_bell_, server_bell_);
  }

 private:
  RingPair(std::unique_ptr<Segment> segment, Doorbell client, Doorbell server, bool spins)
      : segment_(std::move(segment)),
        client_bell_(std::move(client)),
        server_bell_(std::move(server)),
        spins_(spins) {}

  static void touch(std::byte* line) {
    read_lines(line, kLine);
    line[0] = static_cast<std::byte>(static_cast<uint8_t>(line[0]) + 1);
  }

  Descriptor descriptor(uint64_t offset, uint64_t bytes, bool wants_answer) {
    return {
        ++sequence_, segment_->header().payload_offset + offset, bytes, wants_answer ? 1U : 0U, {}};
  }

  void give(RingProducer& out, const Doorbell& bell, const Descriptor& d) {
    for (;;) {
      const PushOutcome pushed = out.push(kSubmitRecord, std::as_bytes(std::span(&d, 1)));
      UPDRAFT_CHECK(pushed != PushOutcome::kBroken);
      if (pushed == PushOutcome::kPushedRing) bell.ring();
      if (pushed != PushOutcome::kFull) return;
      relax();
    }
  }

  Descriptor take(RingConsumer& in, const Doorbell& mine, const Doorbell& theirs) {
    bool ring_producer = false;
    int64_t until_ns = spins_ ? INT64_MAX : 0;
    for (;;) {
      RecordView record;
      const Result<bool> got = in.front(record);
      UPDRAFT_CHECK(got.ok());
      if (*got) {
        UPDRAFT_CHECK(record.content.size() == sizeof(Descriptor));
        const auto d = load_le<Descriptor>(record.content.data());
        in.pop_front(ring_producer);
        if (ring_producer) theirs.ring();
        return d;
      }
      if (spins_) {
        while (!in.maybe_ready()) relax();
        continue;
      }
      if (until_ns == 0) until_ns = monotonic_ns() + kSpinNs;
      while (!in.maybe_ready() && monotonic_ns() < until_ns) relax();
      if (!in.maybe_ready() && in.prepare_wait()) (void)mine.wait(-1);
    }
  }

  std::unique_ptr<Segment> segment_;
  Doorbell client_bell_;
  Doorbell server_bell_;
  const bool spins_;
  std::optional<RingProducer> submit_;
  std::optional<RingConsumer> complete_;
  uint64_t sequence_ = 0;
};

// The floor of every channel that spins: one cache line to the other core, one back.
class LinePair final : public IpcPair {
 public:
  LinePair()
      : lines_(static_cast<Line*>(mmap(nullptr, 2 * sizeof(Line), PROT_READ | PROT_WRITE,
                                       MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    UPDRAFT_CHECK(lines_ != MAP_FAILED);
    new (lines_) Line[2]{};
  }
  ~LinePair() override { munmap(lines_, 2 * sizeof(Line)); }
  void serve(IpcTest) override {
    for (uint64_t turn = 1;; ++turn) bounce(lines_[0], lines_[1], turn);
  }
  void round_trip(IpcTest, uint64_t) override {
    ++turn_;
    // Pairs with the acquire in the server's bounce().
    lines_[0].word.store(turn_, std::memory_order_release);
    while (lines_[1].word.load(std::memory_order_acquire) != turn_) relax();
  }

 private:
  struct Line {
    alignas(kLine) std::atomic<uint64_t> word;
  };
  static void bounce(const Line& in, Line& out, uint64_t turn) {
    while (in.word.load(std::memory_order_acquire) != turn) relax();
    out.word.store(turn, std::memory_order_release);
  }
  Line* const lines_;
  uint64_t turn_ = 0;
};

// The floor of every channel that sleeps: two counters in the kernel, no payload.
class EventfdPair final : public IpcPair {
 public:
  void serve(IpcTest) override {
    for (;;) {
      wait(to_server_);
      ring(to_client_);
    }
  }
  void round_trip(IpcTest, uint64_t) override {
    ring(to_server_);
    wait(to_client_);
  }

 private:
  static void ring(const UniqueFd& fd) {
    const uint64_t one = 1;
    UPDRAFT_CHECK(write(fd.get(), &one, sizeof one) == sizeof one);
  }
  static void wait(const UniqueFd& fd) {
    uint64_t count;
    UPDRAFT_CHECK(read(fd.get(), &count, sizeof count) == sizeof count);
  }
  UniqueFd to_server_{eventfd(0, 0)};
  UniqueFd to_client_{eventfd(0, 0)};
};

class UnixPair final : public IpcPair {
 public:
  explicit UnixPair(uint64_t bytes) : bytes_(std::max<uint64_t>(bytes, 64)) {
    int fds[2];
    UPDRAFT_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    client_ = UniqueFd(fds[0]);
    server_ = UniqueFd(fds[1]);
  }
  void serve(IpcTest) override {
    std::vector<std::byte> buffer(bytes_);
    for (;;) {
      receive(server_, buffer);
      send(server_, buffer.data(), bytes_);
    }
  }
  void round_trip(IpcTest, uint64_t) override {
    buffer_.resize(bytes_);
    send(client_, source_bytes(bytes_), bytes_);
    receive(client_, buffer_);
    read_lines(buffer_.data(), bytes_);
  }

 private:
  static void send(const UniqueFd& fd, const std::byte* from, uint64_t bytes) {
    while (bytes > 0) {
      const ssize_t sent = write(fd.get(), from, bytes);
      UPDRAFT_CHECK(sent > 0);
      from += sent;
      bytes -= static_cast<uint64_t>(sent);
    }
  }
  static void receive(const UniqueFd& fd, std::vector<std::byte>& into) {
    for (uint64_t at = 0; at < into.size();) {
      const ssize_t got = read(fd.get(), into.data() + at, into.size() - at);
      UPDRAFT_CHECK(got > 0);
      at += static_cast<uint64_t>(got);
    }
  }
  const uint64_t bytes_;
  UniqueFd client_;
  UniqueFd server_;
  std::vector<std::byte> buffer_;
};

// REQ/REP over ipc://, the payload inside the message; or 64 bytes that stand for a descriptor.
class ZmqPair final : public IpcPair {
 public:
  explicit ZmqPair(uint64_t bytes) : bytes_(bytes) {
    static int count = 0;
    path_ = "/tmp/updraft-bench-" + std::to_string(getpid()) + "-" + std::to_string(++count);
    endpoint_ = "ipc://" + path_;
  }
  ~ZmqPair() override {
    if (socket_ != nullptr) zmq_close(socket_);
    if (context_ != nullptr) zmq_ctx_term(context_);
    unlink(path_.c_str());
  }
  void serve(IpcTest test) override {
    open(ZMQ_REP, zmq_bind);
    for (;;) {
      zmq_msg_t message;
      receive(message);
      if (test == IpcTest::kEcho)
        read_lines(static_cast<std::byte*>(zmq_msg_data(&message)), zmq_msg_size(&message));
      UPDRAFT_CHECK(zmq_msg_send(&message, socket_, 0) >= 0);
    }
  }
  void start_client() override { open(ZMQ_REQ, zmq_connect); }
  void round_trip(IpcTest test, uint64_t) override {
    const uint64_t bytes = test == IpcTest::kEcho ? bytes_ : kLine;
    UPDRAFT_CHECK(zmq_send(socket_, source_bytes(bytes), bytes, 0) == static_cast<int>(bytes));
    zmq_msg_t message;
    receive(message);
    read_lines(static_cast<std::byte*>(zmq_msg_data(&message)), zmq_msg_size(&message));
    zmq_msg_close(&message);
  }

 private:
  void open(int type, int (*attach)(void*, const char*)) {
    context_ = zmq_ctx_new();
    socket_ = zmq_socket(context_, type);
    UPDRAFT_CHECK(socket_ != nullptr && attach(socket_, endpoint_.c_str()) == 0);
    const int linger_ms = 0;
    zmq_setsockopt(socket_, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
  }
  void receive(zmq_msg_t& message) {
    zmq_msg_init(&message);
    UPDRAFT_CHECK(zmq_msg_recv(&message, socket_, 0) >= 0);
  }
  const uint64_t bytes_;
  std::string path_;
  std::string endpoint_;
  void* context_ = nullptr;
  void* socket_ = nullptr;
};

}  // namespace

const char* ipc_test_name(IpcTest test) {
  switch (test) {
    case IpcTest::kHand:
      return "hand";
    case IpcTest::kSparse:
      return "sparse";
    case IpcTest::kEcho:
      return "echo";
    case IpcTest::kFill:
      return "fill";
    case IpcTest::kRate:
      return "rate";
    case IpcTest::kIdle:
      return "idle";
  }
  return "?";
}

std::vector<IpcPeer> ipc_peers() {
  using enum IpcTest;
  const auto ring = [](bool spins) {
    return [spins](uint64_t bytes) { return RingPair::make(bytes, spins); };
  };
  std::vector<IpcPeer> peers = {
      {"updraft", true, {kHand, kEcho, kFill, kRate}, ring(true)},
      {"updraft", false, {kHand, kSparse, kEcho, kFill, kRate, kIdle}, ring(false)},
      {"cache line",
       true,
       {kHand},
       [](uint64_t) -> Result<std::unique_ptr<IpcPair>> {
         return std::unique_ptr<IpcPair>(new LinePair);
       }},
      {"eventfd",
       false,
       {kHand, kSparse},
       [](uint64_t) -> Result<std::unique_ptr<IpcPair>> {
         return std::unique_ptr<IpcPair>(new EventfdPair);
       }},
      {"unix socket",
       false,
       {kSparse, kEcho},
       [](uint64_t bytes) -> Result<std::unique_ptr<IpcPair>> {
         return std::unique_ptr<IpcPair>(new UnixPair(bytes));
       }},
      {"zeromq",
       false,
       {kHand, kSparse, kEcho},
       [](uint64_t bytes) -> Result<std::unique_ptr<IpcPair>> {
         return std::unique_ptr<IpcPair>(new ZmqPair(bytes));
       }},
  };
  for (IpcPeer& peer : iceoryx_peers()) peers.push_back(std::move(peer));
  return peers;
}

}  // namespace updraft
