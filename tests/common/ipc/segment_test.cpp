// Segments, doorbells and the handshake's socket: what a peer sends is checked before it is used.
#include "common/ipc/segment.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "common/ipc/doorbell.h"
#include "common/ipc/unix_socket.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::ipc;

namespace {

std::unique_ptr<Segment> made() {
  Result<std::unique_ptr<Segment>> segment = Segment::create(SegmentShape{4096, 65536, 8, 1 << 20});
  REQUIRE_MESSAGE(segment.ok(), segment.message());
  return std::move(segment).value();
}

// Adopts a copy of the segment's descriptor, as a daemon would.
Result<std::unique_ptr<Segment>> adopted(const Segment& segment, uint64_t bytes_max = 1ULL << 30) {
  return Segment::adopt(UniqueFd(dup(segment.fd())), bytes_max);
}

SegmentHeader& raw_header(const Segment& segment) {
  return *reinterpret_cast<SegmentHeader*>(segment.payload().data() -
                                           segment.header().payload_offset);
}

}  // namespace

TEST_CASE("both sides see the same payload and rings") {
  const auto client = made();
  auto daemon = adopted(*client);
  REQUIRE_MESSAGE(daemon.ok(), daemon.message());
  std::memcpy(client->payload().data() + 100, "screenshot", 10);
  const auto span = (*daemon)->payload_span(client->header().payload_offset + 100, 10);
  REQUIRE(span.has_value());
  CHECK(as_text(*span) == "screenshot");
  RingProducer producer(client->submit_ring());
  CHECK(producer.push(kSubmitRecord, as_bytes_view("hello")) == PushOutcome::kPushed);
  RingConsumer consumer((*daemon)->submit_ring());
  Record record;
  bool ring_producer = false;
  CHECK(consumer.pop(record, ring_producer).value());
  CHECK(as_text(record.content) == "hello");
}

TEST_CASE("the seals refuse truncation by anybody") {
  const auto client = made();
  CHECK(ftruncate(client->fd(), 0) != 0);
  CHECK(ftruncate(client->fd(), 1 << 30) != 0);
  CHECK(fcntl(client->fd(), F_ADD_SEALS, F_SEAL_WRITE) != 0);
}

TEST_CASE("an unsealed memfd, a file and an oversized segment are refused") {
  const int open_fd = memfd_create("open", MFD_ALLOW_SEALING);
  REQUIRE(ftruncate(open_fd, 1 << 20) == 0);
  CHECK(Segment::adopt(UniqueFd(open_fd), 1 << 30).message() ==
        "the segment is not sealed against shrinking, growing and unsealing");
  const testing::TempDir dir;
  CHECK_FALSE(
      Segment::adopt(UniqueFd(::open(dir.file("f").c_str(), O_CREAT | O_RDWR, 0600)), 1 << 30)
          .ok());
  const auto client = made();
  const auto refused = adopted(*client, kSegmentBytesMin);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.message().find("allowed are") != std::string::npos);
}

TEST_CASE("every lie in the header is named") {
  const auto client = made();
  const SegmentHeader truth = raw_header(*client);
  const auto refused = [&](auto change) {
    raw_header(*client) = truth;
    change(raw_header(*client));
    const auto result = adopted(*client);
    CHECK_FALSE(result.ok());
    return result.message();
  };
  CHECK(refused([](SegmentHeader& h) { h.magic = 1; }).find("magic") != std::string::npos);
  CHECK(refused([](SegmentHeader& h) { h.abi_version = 9; }).find("ABI version 9") !=
        std::string::npos);
  CHECK(refused([](SegmentHeader& h) { h.segment_bytes *= 2; }).find("the descriptor has") !=
        std::string::npos);
  CHECK(refused([](SegmentHeader& h) {
          h.slot_count = 0xFFFFFFFF;
        }).find("slot_count 4294967295") != std::string::npos);
  CHECK(refused([](SegmentHeader& h) { h.submit_bytes = 5000; }).find("powers of two") !=
        std::string::npos);
  CHECK(refused([](SegmentHeader& h) { h.submit_offset = ~0ULL - 63; }).find("submit ring") !=
        std::string::npos);
  CHECK(refused([](SegmentHeader& h) {
          h.complete_offset = h.submit_offset;
        }).find("complete ring") != std::string::npos);
  CHECK(refused([](SegmentHeader& h) { h.slots_offset = h.segment_bytes; }).find("slots") !=
        std::string::npos);
  CHECK(refused([](SegmentHeader& h) { h.payload_bytes = ~0ULL; }).find("payload") !=
        std::string::npos);
  raw_header(*client) = truth;
  CHECK(adopted(*client).ok());
}

TEST_CASE("spans outside the payload area do not exist") {
  const auto client = made();
  const SegmentHeader& h = client->header();
  CHECK(client->payload_span(h.payload_offset, h.payload_bytes).has_value());
  CHECK_FALSE(client->payload_span(h.payload_offset, h.payload_bytes + 1).has_value());
  CHECK_FALSE(client->payload_span(0, 8).has_value());
  CHECK_FALSE(client->payload_span(h.payload_offset + 8, ~0ULL).has_value());
}

TEST_CASE("a segment crosses a Unix socket with its doorbell, and the kernel names the caller") {
  const testing::TempDir dir;
  const std::string path = dir.file("run/edge.sock");
  Result<UniqueFd> listener = listen_unix(path);
  REQUIRE_MESSAGE(listener.ok(), listener.message());
  struct stat info {};
  REQUIRE(stat(path.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);

  Result<UniqueFd> client = connect_unix(path);
  REQUIRE(client.ok());
  Result<UniqueFd> server = accept_unix(*listener);
  REQUIRE(server.ok());
  REQUIRE(static_cast<bool>(*server));
  CHECK(peer_credentials(*server)->uid == getuid());
  CHECK(peer_credentials(*server)->pid == getpid());

  const auto segment = made();
  Result<Doorbell> bell = Doorbell::create();
  REQUIRE(bell.ok());
  REQUIRE(send_message(*client, as_bytes_view("hello"), {segment->fd(), bell->fd()}).ok());
  Result<SocketMessage> message = receive_message(*server, 5000);
  REQUIRE(message.ok());
  CHECK(as_text(message->bytes) == "hello");
  REQUIRE(message->fds.size() == 2);
  CHECK(Segment::adopt(std::move(message->fds[0]), 1 << 30).ok());
  Result<Doorbell> theirs = Doorbell::adopt(std::move(message->fds[1]));
  REQUIRE(theirs.ok());
  CHECK_FALSE(theirs->wait(0));
  bell->ring();
  CHECK(theirs->wait(5000));

  client->reset();
  CHECK(receive_message(*server, 5000)->hung_up);
}

TEST_CASE("a doorbell that is no eventfd is refused") {
  const auto segment = made();
  CHECK_FALSE(Doorbell::adopt(UniqueFd(dup(segment->fd()))).ok());
}

TEST_CASE("a second daemon on the same socket is told so, a dead one's socket is replaced") {
  const testing::TempDir dir;
  const std::string path = dir.file("edge.sock");
  {
    Result<UniqueFd> first = listen_unix(path);
    REQUIRE(first.ok());
    CHECK(listen_unix(path).message().find("already listening") != std::string::npos);
  }
  CHECK(listen_unix(path).ok());
  CHECK(listen_unix(std::string(200, 'x')).message().find("must have 1 to 107 bytes") !=
        std::string::npos);
}

TEST_CASE("the death of a peer makes its pidfd readable") {
  int gate[2];
  REQUIRE(pipe(gate) == 0);
  const pid_t child = fork();
  if (child == 0) {
    char byte = 0;
    [[maybe_unused]] const ssize_t got = read(gate[0], &byte, 1);
    _exit(0);
  }
  Result<UniqueFd> pidfd = peer_pidfd(child);
  REQUIRE(pidfd.ok());
  REQUIRE(write(gate[1], "x", 1) == 1);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  close(gate[0]);
  close(gate[1]);
}
