// Clients that speak the protocol by hand, and lie: each hurts only itself.
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "common/ipc/doorbell.h"
#include "common/ipc/unix_socket.h"
#include "common/message/handshake.h"
#include "common/message/pool_message.h"
#include "tests/edge/handoff_service.h"
#include "tests/support/early_child.h"

using namespace updraft;
using namespace updraft::testing;
using namespace updraft::ipc;

namespace {

// These writers race with the daemon on purpose: the thread sanitizer looks elsewhere.
#define UNCHECKED_RACE __attribute__((no_sanitize("thread")))

// Speaks the handshake itself, so that it can lie afterwards.
struct HostileClient {
  explicit HostileClient(const std::string& path, uint32_t abi = kAbiVersion) {
    socket = std::move(connect_unix(path)).value();
    segment = std::move(Segment::create(SegmentShape{4096, 65536, 8, 1 << 20})).value();
    mine.emplace(std::move(Doorbell::create()).value());
    theirs.emplace(std::move(Doorbell::create()).value());
    REQUIRE(send_message(socket,
                         encode_handshake(LocalHello{abi, kLocalProtocolVersion, "hostile"}),
                         {segment->fd(), mine->fd(), theirs->fd()})
                .ok());
    answer = std::move(decode_handshake(std::move(receive_message(socket, 10000)).value().bytes))
                 .value();
  }
  void push(SubmitRecord record) {
    RingProducer producer(segment->submit_ring());
    (void)producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1)));
    theirs->ring();
  }
  bool hung_up() { return std::move(receive_message(socket, 10000)).value().hung_up; }

  UniqueFd socket;
  std::unique_ptr<Segment> segment;
  std::optional<Doorbell> mine, theirs;
  Handshake answer;
};

}  // namespace

TEST_CASE("a daemon told to stay awake takes the next request without a doorbell") {
  LocalServerConfig config;
  config.spin_us = 60'000'000;
  Daemon daemon(config);
  HostileClient client(daemon.dir.file("edge.sock"));
  RingProducer producer(client.segment->submit_ring());
  for (uint32_t generation = 1; generation <= 3; ++generation) {
    client.segment->slot(0).word.store(slot_word(generation, SlotPhase::kFilled));
    // Refused, because it names no frame; that is an answer, too.
    const SubmitRecord record{0, generation, 0, 16, 0, 0};
    const PushOutcome pushed = producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1)));
    // The first one may meet a sleeper; all others find the daemon looking.
    if (generation == 1)
      client.theirs->ring();
    else
      CHECK(pushed == PushOutcome::kPushed);
    REQUIRE(daemon.eventually([&] { return daemon.server->stats().requests_taken == generation; }));
  }
}

TEST_CASE("another ABI version is refused with both versions") {
  Daemon daemon;
  HostileClient client(daemon.dir.file("edge.sock"), 77);
  REQUIRE(std::holds_alternative<LocalRefusal>(client.answer));
  CHECK(std::get<LocalRefusal>(client.answer).message.find("ABI 77") != std::string::npos);
}

TEST_CASE("impossible ring positions, slots and records end that session only") {
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  const auto sibling = daemon.client();
  {
    HostileClient client(path);
    client.segment->submit_ring().indices->tail.store(1ULL << 40);
    client.theirs->ring();
    CHECK(client.hung_up());
  }
  {
    HostileClient client(path);
    client.push({0xFFFFFFFF, 1, 0, 0, 0, 0});
    CHECK(client.hung_up());
  }
  {
    HostileClient client(path);  // a slot that was never filled
    client.push({0, 1, client.segment->header().payload_offset, 16, 0, 0});
    CHECK(client.hung_up());
  }
  {
    HostileClient client(path);  // a record that is no submission, and one that is half of it
    RingProducer producer(client.segment->submit_ring());
    const SubmitRecord record{};
    (void)producer.push(kEventRecord, std::as_bytes(std::span(&record, 1)));
    client.theirs->ring();
    CHECK(client.hung_up());
    HostileClient half(path);
    RingProducer short_producer(half.segment->submit_ring());
    (void)short_producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1)).first(8));
    half.theirs->ring();
    CHECK(half.hung_up());
  }
  {
    HostileClient client(path);  // a slot filled anew while its request runs
    Request held = chat("x", "hold");
    held.id = new_request_id();
    const std::vector<std::byte> frame = encode(Submit{held, 1, 0});
    std::memcpy(client.segment->payload().data(), frame.data(), frame.size());
    RingProducer producer(client.segment->submit_ring());
    const uint64_t at = client.segment->header().payload_offset;
    for (uint32_t generation = 1; generation <= 2; ++generation) {
      client.segment->slot(3).word.store(slot_word(generation, SlotPhase::kFilled));
      const SubmitRecord record{3, generation, at, static_cast<uint32_t>(frame.size()), 0, at};
      (void)producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1)));
      client.theirs->ring();
      REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
    }
    CHECK(client.hung_up());
    CHECK(daemon.service.wait_cancelled(1));
  }
  CHECK(daemon.server->stats().sessions_broken == 6);
  const Result<uint32_t> handle = sibling->submit(chat("unharmed"));
  REQUIRE(handle.ok());
  CHECK(answer(collect(*sibling, *handle)) == "unharmed");
}

TEST_CASE("what else is wrong with a record is found although the slot that it names is filled") {
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  const auto sibling = daemon.client();
  const auto ends = [&](uint32_t kind, SubmitRecord record, size_t bytes, uint32_t filled) {
    HostileClient client(path);
    record.frame_offset = client.segment->header().payload_offset;
    if (record.slot < client.segment->header().slot_count)
      client.segment->slot(record.slot).word.store(slot_word(filled, SlotPhase::kFilled));
    std::byte content[2 * sizeof(SubmitRecord)] = {};
    std::memcpy(content, &record, sizeof record);
    RingProducer producer(client.segment->submit_ring());
    (void)producer.push(kind, ByteView(content, bytes));
    client.theirs->ring();
    return client.hung_up();
  };
  CHECK(ends(kEventRecord, {0, 1, 0, 16, 0, 0}, sizeof(SubmitRecord), 1));
  CHECK(ends(kSubmitRecord, {0, 1, 0, 16, 0, 0}, sizeof(SubmitRecord) + 8, 1));
  CHECK(ends(kSubmitRecord, {8, 1, 0, 16, 0, 0}, sizeof(SubmitRecord), 1));  // one past the last
  CHECK(ends(kSubmitRecord, {0, 1, 0, 16, 0, 0}, sizeof(SubmitRecord), 2));  // stale
  CHECK(daemon.server->stats().requests_taken == 0);
  CHECK(daemon.eventually([&] { return daemon.server->stats().sessions == 1; }));
}

TEST_CASE("what a submission names wrongly gets a typed answer, not a read") {
  Daemon daemon;
  HostileClient client(daemon.dir.file("edge.sock"));
  REQUIRE(std::holds_alternative<LocalWelcome>(client.answer));
  RingProducer producer(client.segment->submit_ring());
  RingConsumer consumer(client.segment->complete_ring());
  const uint64_t payload = client.segment->header().payload_offset;
  uint32_t generation = 0;
  // The message of the error that the submission ends with; "" for an answer.
  const auto refusal = [&](SubmitRecord record) -> std::string {
    record.slot = 0;
    record.generation = ++generation;
    client.segment->slot(0).word.store(slot_word(generation, SlotPhase::kFilled));
    REQUIRE(producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1))) !=
            PushOutcome::kFull);
    client.theirs->ring();
    std::optional<std::string> message;
    REQUIRE(daemon.eventually([&] {
      Record event;
      bool ring_producer = false;
      if (!std::move(consumer.pop(event, ring_producer)).value()) return false;
      const Result<PoolMessage> got = decode(ByteView(event.content).subspan(sizeof(EventHeader)));
      REQUIRE(got.ok());
      if (const auto* failed = std::get_if<Failed>(&*got)) message = failed->error.message;
      if (std::holds_alternative<Done>(*got)) message = "";
      return message.has_value();
    }));
    // A moment after the end itself, which the client may act on at once.
    CHECK(daemon.eventually([&] {
      return client.segment->slot(0).word.load() == slot_word(generation, SlotPhase::kDone);
    }));
    return *message;
  };
  const auto says = [](const std::string& message, const char* what) {
    return message.find(what) != std::string::npos;
  };
  std::byte* const area = client.segment->payload().data();
  Request request = chat("", "echo");
  request.id = "hostile";
  const std::vector<std::byte> frame = encode(Submit{request, 1, 0});
  std::memcpy(area, frame.data(), frame.size());
  const auto frame_bytes = static_cast<uint32_t>(frame.size());
  const auto span_at = [&](PartSpan span) {
    std::memcpy(area + 4096, &span, sizeof span);
    return SubmitRecord{0, 0, payload, frame_bytes, 1, payload + 4096};
  };
  std::memcpy(area + 8192, "good", 4);
  std::memcpy(area + 8200, "\xC3\x28", 2);
  CHECK(refusal(span_at({0, 0, payload + 8192, 4})) == "");
  CHECK(says(refusal({0, 0, ~0ULL - 8, 16, 0, 0}), "outside the payload area"));
  CHECK(says(refusal({0, 0, payload - 64, 16, 0, payload}), "outside the payload area"));
  CHECK(says(refusal({0, 0, payload, frame_bytes, 2, payload + (1 << 20) - 24}),
             "outside the payload area"));
  CHECK(says(refusal({0, 0, payload, kFrameBytesMax + 1, 0, payload}), "1048577 frame bytes"));
  CHECK(says(refusal({0, 0, payload, frame_bytes, 65, payload + 4096}), "65 spans"));
  CHECK(refusal({0, 0, payload + 4096, 16, 0, payload}) != "");  // no frame at all
  const auto other_frame = [&](const PoolMessage& message) {
    const std::vector<std::byte> bytes = encode(message);
    std::memcpy(area + 12288, bytes.data(), bytes.size());
    return SubmitRecord{0, 0, payload + 12288, static_cast<uint32_t>(bytes.size()), 0, payload};
  };
  CHECK(says(refusal(other_frame(Cancel{"hostile", 1})), "is no request"));
  Request unfit = chat("x", "echo");
  unfit.id = "hostile";
  unfit.sampling.top_p = 2;
  CHECK(says(refusal(other_frame(Submit{unfit, 1, 0})), "top_p"));
  CHECK(says(refusal(span_at({0, 7, payload + 8192, 4})), "that the request does not have"));
  CHECK(says(refusal(span_at({9, 0, payload + 8192, 4})), "that the request does not have"));
  CHECK(says(refusal(span_at({0, 0, payload + 8200, 2})), "not UTF-8 at byte 0"));
  CHECK(says(refusal(span_at({0, 0, payload + (1 << 20) - 2, 4})), "outside the payload area"));
  CHECK(says(refusal(span_at({0, 0, ~0ULL - 1, 4})), "outside the payload area"));
  CHECK(daemon.server->stats().sessions == 1);
}

TEST_CASE(
    "a client that rewrites its request while the daemon reads it gets an answer or an error, "
    "never more") {
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  HostileClient client(path);
  const std::vector<std::byte> frame = encode(Submit{[] {
                                                       Request request = chat("racing", "echo");
                                                       request.id = new_request_id();
                                                       return request;
                                                     }(),
                                                     1, 0});
  std::span<std::byte> payload = client.segment->payload();
  std::memcpy(payload.data(), frame.data(), frame.size());
  std::atomic<bool> stop = false;
  std::thread mutator([&]() UNCHECKED_RACE {
    for (uint32_t i = 0; !stop; ++i) {
      auto* byte =
          reinterpret_cast<volatile unsigned char*>(payload.data() + i * 7919 % frame.size());
      *byte = static_cast<unsigned char>(*byte + 1);
    }
  });
  RingProducer producer(client.segment->submit_ring());
  RingConsumer consumer(client.segment->complete_ring());
  const uint64_t payload_offset = client.segment->header().payload_offset;
  int ended = 0;
  for (uint32_t generation = 1; generation <= 300; ++generation) {
    client.segment->slot(0).word.store(slot_word(generation, SlotPhase::kFilled));
    const SubmitRecord record{0, generation,    payload_offset, static_cast<uint32_t>(frame.size()),
                              0, payload_offset};
    REQUIRE(producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1))) !=
            PushOutcome::kBroken);
    client.theirs->ring();
    REQUIRE(daemon.eventually([&] {
      Record event;
      bool ring_producer = false;
      while (std::move(consumer.pop(event, ring_producer)).value()) {
        const Result<PoolMessage> message =
            decode(ByteView(event.content).subspan(sizeof(EventHeader)));
        REQUIRE(message.ok());
        if (std::holds_alternative<Done>(*message) || std::holds_alternative<Failed>(*message)) {
          ++ended;
          return true;
        }
      }
      return false;
    }));
  }
  stop = true;
  mutator.join();
  CHECK(ended == 300);
  CHECK(daemon.server->stats().sessions == 1);
}

TEST_CASE(
    "a client that rewrites header, rings, slots and payload all the time hurts only itself") {
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  const auto sibling = daemon.client();
  const std::vector<std::byte> frame = encode(Submit{[] {
                                                       Request request = chat("", "echo");
                                                       request.id = new_request_id();
                                                       return request;
                                                     }(),
                                                     1, 0});
  for (uint32_t round = 0; round < 40; ++round) {
    HostileClient client(path);
    REQUIRE(std::holds_alternative<LocalWelcome>(client.answer));
    const SegmentHeader header = client.segment->header();
    std::byte* base = client.segment->payload().data() - header.payload_offset;
    std::memcpy(client.segment->payload().data(), frame.data(), frame.size());
    const PartSpan span{0, 0, header.payload_offset + 4096, 20000, SpanTarget::kPart, 0};
    std::memcpy(client.segment->payload().data() + 2048, &span, sizeof span);
    std::atomic<bool> stop = false;
    // Each round aims at another area: 0 header, 1 submission ring, 2 slots, 3 frame, spans,
    // payload.
    const uint64_t from[] = {0, header.submit_offset, header.slots_offset, header.payload_offset};
    const uint64_t bytes[] = {sizeof(SegmentHeader), sizeof(RingIndices) + 256,
                              header.slot_count * sizeof(SlotState), 4096 + 20000};
    std::thread mutator([&]() UNCHECKED_RACE {
      std::minstd_rand random(round + 1);
      while (!stop) {
        auto* at = reinterpret_cast<volatile uint64_t*>(base + from[round % 4] +
                                                        random() % (bytes[round % 4] / 8) * 8);
        const uint64_t kept = *at;
        *at = random() % 2 == 0 ? ~0ULL - random() % 64 : uint64_t{random()};
        // Half of the lies last only for a moment: between the daemon's check and its use, say.
        if (random() % 2 == 0) *at = kept;
      }
    });
    RingProducer producer(client.segment->submit_ring());
    for (uint32_t generation = 1; generation <= 50; ++generation) {
      client.segment->slot(generation % 8).word.store(slot_word(generation, SlotPhase::kFilled));
      const SubmitRecord record{generation % 8,
                                generation,
                                header.payload_offset,
                                static_cast<uint32_t>(frame.size()),
                                1,
                                header.payload_offset + 2048};
      if (producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1))) ==
          PushOutcome::kBroken)
        break;
      client.theirs->ring();
    }
    stop = true;
    mutator.join();
  }
  const Result<uint32_t> handle = sibling->submit(chat("unharmed"));
  REQUIRE(handle.ok());
  CHECK(answer(collect(*sibling, *handle)) == "unharmed");
  CHECK(daemon.eventually([&] { return daemon.server->stats().sessions == 1; }));
}

TEST_CASE("another user is refused, whatever the socket's mode says") {
  if (getuid() != 0) {
    MESSAGE("skipped: only root can become somebody else");
    return;
  }
  testing::EarlyChild child([](const std::string& path) {
    if (setresuid(65534, 65534, 65534) != 0) return 2;
    LocalClientOptions options;
    options.socket_path = path;
    options.payload_bytes = 256 << 10;
    const auto client = LocalClient::connect(options);
    return client.message().find("user 65534 may not use this daemon") != std::string::npos ? 0 : 1;
  });
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  REQUIRE(chmod(daemon.dir.path().c_str(), 0755) == 0);
  REQUIRE(chmod(path.c_str(), 0666) == 0);
  child.begin(path);
  const int status = child.wait();
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(daemon.server->stats().sessions_refused == 1);
}
