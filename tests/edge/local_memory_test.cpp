// Further segments of a session, end to end: growth, one-offs, their quotas, and clients that lie
// about them.
#include "edge/local_memory.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <set>

#include "common/ipc/doorbell.h"
#include "common/ipc/unix_socket.h"
#include "common/message/handshake.h"
#include "edge/client/local_client.h"
#include "tests/edge/client/echo_daemon.h"
#include "tests/support/images.h"

using namespace updraft;
using testing::EchoDaemon;

namespace {

std::unique_ptr<LocalClient> connect(EchoDaemon& daemon, int32_t reconnect_ms = 0) {
  LocalClientOptions options;
  options.socket_path = daemon.socket();
  options.payload_bytes = 1 << 20;
  options.reconnect_ms = reconnect_ms;
  auto client = LocalClient::connect(options);
  REQUIRE_MESSAGE(client.ok(), client.message());
  return std::move(client).value();
}

LocalClient::Buffer filled(Result<LocalClient::Buffer> buffer, std::string_view bytes) {
  REQUIRE_MESSAGE(buffer.ok(), buffer.message());
  REQUIRE(buffer->bytes.size() == bytes.size());
  std::memcpy(buffer->bytes.data(), bytes.data(), bytes.size());
  return *buffer;
}

// A message of text parts and, last, an image.
Request chat(const char* model, size_t texts, bool image = false) {
  Request request;
  request.model = model;
  request.messages.push_back({"user", std::vector<ContentPart>(texts)});
  if (image) {
    ContentPart& part = request.messages[0].parts.emplace_back();
    part.kind = ContentPart::Kind::kImage;
    part.mime = "image/png";
  }
  return request;
}

std::string answer(LocalClient& client) {
  std::string text;
  for (;;) {
    auto event = client.next(20000);
    REQUIRE_MESSAGE(event.ok(), event.message());
    REQUIRE(event->has_value());
    if (const auto* chunk = std::get_if<TokenChunk>(&(*event)->second)) text += chunk->text;
    if (const auto* error = std::get_if<RequestError>(&(*event)->second)) return error->message;
    if (is_end((*event)->second)) return text;
  }
}

void wait_started(LocalClient& client) {
  auto event = client.next(20000);
  REQUIRE_MESSAGE(event.ok(), event.message());
  REQUIRE(event->has_value());
  REQUIRE(std::holds_alternative<Started>((*event)->second));
}

}  // namespace

TEST_CASE("a full payload area is followed by further segments, up to the quota") {
  LocalServerConfig config;
  config.segment_bytes_max = 8 << 20;
  EchoDaemon daemon(config);
  const auto client = connect(daemon);
  const int64_t before = daemon.server->stats().mapped_bytes;
  std::vector<LocalClient::PlacedPart> placed;
  for (uint32_t i = 0; i < 5; ++i) {
    const std::string text(900'000, static_cast<char>('a' + i));
    placed.push_back({0, i, filled(client->allocate(text.size()), text)});
  }
  CHECK(daemon.server->stats().mapped_bytes > before + 3'000'000);
  const auto handle = client->submit(chat("hold", 5), placed);
  REQUIRE_MESSAGE(handle.ok(), handle.message());
  wait_started(*client);
  const Request seen = daemon.service.last();
  for (uint32_t i = 0; i < 5; ++i) {
    const bool whole =
        seen.messages.at(0).parts.at(i).text == std::string(900'000, static_cast<char>('a' + i));
    CHECK(whole);
  }
  client->cancel(*handle);
  CHECK(answer(*client) == "the client left");
  // Everything was freed: the same fits again without growing.
  const int64_t grown = daemon.server->stats().mapped_bytes;
  for (uint32_t i = 0; i < 5; ++i) REQUIRE(client->allocate(900'000).ok());
  CHECK(daemon.server->stats().mapped_bytes == grown);
  // At the quota's end.
  Result<LocalClient::Buffer> last = client->allocate(100'000);
  while (last) last = client->allocate(100'000);
  CHECK(last.message().find("no room for 100000 bytes in the payload area") == 0);
  CHECK(last.message().find("the daemon allows a session 8388608 bytes") != std::string::npos);
  CHECK(daemon.server->stats().mapped_bytes <= 8 << 20);
  CHECK(daemon.server->stats().mapped_bytes > 7 << 20);
  CHECK(daemon.server->stats().sessions == 1);
}

TEST_CASE("a user's quota is told in the daemon's words, and the session serves on") {
  LocalServerConfig config;
  config.segment_bytes_per_uid_max = 5 << 20;
  EchoDaemon daemon(config);
  const auto sibling = connect(daemon);
  const auto client = connect(daemon);
  CHECK(client->allocate(3 << 20).message().find("the edge daemon refused: segment") !=
        std::string::npos);
  CHECK(daemon.server->stats().segments_refused > 0);
  Request request = chat("echo", 1);
  request.messages[0].parts[0].text = "still here";
  REQUIRE(client->submit(std::move(request)).ok());
  CHECK(answer(*client) == "still here");
}

TEST_CASE("a one-off cannot change once it is handed over, and goes with its request") {
  EchoDaemon daemon;
  const auto client = connect(daemon);
  const int64_t before = daemon.server->stats().mapped_bytes;
  const std::string png = testing::png_of_bytes(5'000'000);
  const LocalClient::Buffer buffer = filled(client->allocate_once(png.size()), png);
  CHECK(daemon.server->stats().mapped_bytes == before);
  const auto handle = client->submit(chat("hold", 0, true), {{0, 0, buffer}});
  REQUIRE_MESSAGE(handle.ok(), handle.message());
  wait_started(*client);
  CHECK(daemon.server->stats().mapped_bytes >= before + 5'000'000);
  std::memset(buffer.bytes.data(), '!', buffer.bytes.size());
  const bool unchanged = daemon.service.last().messages.at(0).parts.at(0).bytes.text() == png;
  CHECK(unchanged);
  client->cancel(*handle);
  CHECK(answer(*client) == "the client left");
  daemon.service.forget();
  CHECK(daemon.eventually([&] { return daemon.server->stats().mapped_bytes == before; }));
  CHECK(daemon.server->stats().sessions == 1);
}

TEST_CASE("the memory of a request whose client is gone counts until the request is done") {
  LocalServerConfig config;
  config.segment_bytes_per_uid_max = 8 << 20;
  EchoDaemon daemon(config);
  auto client = connect(daemon);
  const std::string png = testing::png_of_bytes(5'000'000);
  const LocalClient::Buffer buffer = filled(client->allocate_once(png.size()), png);
  REQUIRE(client->submit(chat("hold", 0, true), {{0, 0, buffer}}).ok());
  wait_started(*client);
  client.reset();
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 0; }));
  CHECK(daemon.server->stats().mapped_bytes >= 5'000'000);
  // So leaving and coming back does not double a user's share.
  const auto next = connect(daemon);
  CHECK(next->allocate(4 << 20).message().find("the edge daemon refused") != std::string::npos);
  daemon.service.forget();
  CHECK(next->allocate(4 << 20).ok());
}

TEST_CASE("a daemon's successor gets further segments and one-offs again") {
  EchoDaemon daemon;
  const auto client = connect(daemon, 20000);
  REQUIRE(client->allocate(900'000).ok());  // what follows finds the first area full
  const std::string text(300'000, 't');
  const std::string png = testing::png_of_bytes(400'000);
  const auto handle = client->submit(chat("hold", 1, true),
                                     {{0, 0, filled(client->allocate(text.size()), text)},
                                      {0, 1, filled(client->allocate_once(png.size()), png)}});
  REQUIRE_MESSAGE(handle.ok(), handle.message());
  REQUIRE(daemon.service.wait_submitted(1));
  daemon.server.reset();
  daemon.service.answer_held();
  daemon.start();
  const bool whole = answer(*client) == text + png.substr(33);
  CHECK(whole);
}

namespace {

// Speaks the handshake itself, so that it can lie afterwards.
struct Liar {
  explicit Liar(const std::string& path) {
    socket = std::move(ipc::connect_unix(path)).value();
    segment = std::move(ipc::Segment::create({4096, 65536, 8, 1 << 20})).value();
    mine.emplace(std::move(ipc::Doorbell::create()).value());
    theirs.emplace(std::move(ipc::Doorbell::create()).value());
    const LocalHello hello{ipc::kAbiVersion, kLocalProtocolVersion, "liar"};
    REQUIRE(ipc::send_message(socket, encode_handshake(hello),
                              {segment->fd(), mine->fd(), theirs->fd()})
                .ok());
    REQUIRE(std::holds_alternative<LocalWelcome>(hear()));
  }
  Handshake hear() {
    auto message = ipc::receive_message(socket, 10000);
    REQUIRE_MESSAGE(message.ok(), message.message());
    REQUIRE_FALSE(message->hung_up);
    return std::move(decode_handshake(message->bytes)).value();
  }
  // The daemon's answer: empty when it took the segment.
  std::string add(uint32_t number, bool one_off, int fd) {
    REQUIRE(
        ipc::send_message(socket, encode_handshake(LocalAddSegment{number, one_off}), {fd}).ok());
    const Handshake answer = hear();
    if (const auto* refusal = std::get_if<LocalRefusal>(&answer)) return refusal->message;
    CHECK(std::get<LocalSegmentAdded>(answer).number == number);
    return "";
  }
  bool hung_up() { return std::move(ipc::receive_message(socket, 10000)).value().hung_up; }

  ipc::UniqueFd socket;
  std::unique_ptr<ipc::Segment> segment;
  std::optional<ipc::Doorbell> mine, theirs;
};

using Kind = ipc::PayloadSegment::Kind;
std::unique_ptr<ipc::PayloadSegment> further(Kind kind) {
  auto made = ipc::PayloadSegment::create(4096, kind);
  REQUIRE(made.ok());
  return std::move(made).value();
}

}  // namespace

TEST_CASE("lies about a further segment are refused by name and leave the session as it was") {
  EchoDaemon daemon;
  Liar liar(daemon.socket());
  const auto area = further(Kind::kArea);
  CHECK(liar.add(1, false, area->fd()) == "");
  CHECK(liar.add(1, false, area->fd()) == "segment 1 is there already");
  CHECK(liar.add(0, false, area->fd()) == "segment 0 is there already");
  CHECK(liar.add(2, true, area->fd()) ==
        "segment 2: the segment of one request is not sealed against writing");
  CHECK(liar.add(3, false, liar.segment->fd()) ==
        "segment 3: the segment is not sealed against new writers");
  CHECK(liar.add(4, false, liar.mine->fd()) == "segment 4: the segment's descriptor is no memfd");
  for (uint32_t number = 2; number <= LocalMemory::kAreasMax; ++number)
    CHECK(liar.add(number, false, area->fd()) == "");
  CHECK(liar.add(1000, false, area->fd()) ==
        "segment 1000: a session has at most 32 further areas");
  const auto one_off = further(Kind::kOneOff);
  REQUIRE(one_off->freeze().ok());
  for (uint32_t number = 2000; number < 2000 + LocalMemory::kOneOffsMax; ++number)
    CHECK(liar.add(number, true, one_off->fd()) == "");
  CHECK(liar.add(3000, true, one_off->fd()) ==
        "segment 3000: a session has at most 64 one-offs that no request has named");
  CHECK(daemon.server->stats().sessions == 1);
}

TEST_CASE("anything else said on the socket after the handshake ends the session") {
  EchoDaemon daemon;
  const auto area = further(Kind::kArea);
  Liar talker(daemon.socket());
  REQUIRE(ipc::send_message(talker.socket, as_bytes_view("hello?")).ok());
  CHECK(talker.hung_up());
  Liar again(daemon.socket());
  REQUIRE(ipc::send_message(again.socket, encode_handshake(LocalHello{}), {area->fd()}).ok());
  CHECK(again.hung_up());
  Liar empty_handed(daemon.socket());
  REQUIRE(ipc::send_message(empty_handed.socket, encode_handshake(LocalAddSegment{1, false})).ok());
  CHECK(empty_handed.hung_up());
  CHECK(daemon.eventually([&] { return daemon.server->stats().sessions == 0; }));
  CHECK(daemon.server->stats().mapped_bytes == 0);
}

TEST_CASE("bytes exist only inside a segment, and a one-off only until it was named") {
  LocalMemory memory({64 << 20, 64 << 20, 0}, std::make_shared<MappedUse>(),
                     std::make_shared<MappedUse>());
  auto own = ipc::Segment::create({});
  REQUIRE(own.ok());
  REQUIRE(memory.adopt_own(ipc::UniqueFd(dup((*own)->fd()))).ok());
  const auto area = further(Kind::kArea);
  std::memcpy(area->data().data() + 4090, "end...", 6);
  REQUIRE(memory.adopt_further(5, ipc::UniqueFd(dup(area->fd())), Kind::kArea).ok());
  CHECK(memory.bytes(5, 4090, 6)->text() == "end...");
  CHECK(memory.bytes(5, 4096, 0).has_value());
  CHECK_FALSE(memory.bytes(5, 4090, 7).has_value());
  CHECK_FALSE(memory.bytes(5, 4097, 0).has_value());
  CHECK_FALSE(memory.bytes(5, ~0ULL, 2).has_value());
  CHECK_FALSE(memory.bytes(5, 1, ~0ULL).has_value());
  CHECK_FALSE(memory.bytes(4, 0, 1).has_value());
  CHECK_FALSE(memory.bytes(0, 0, 1).has_value());  // the rings are no payload
  const auto one_off = further(Kind::kOneOff);
  REQUIRE(one_off->freeze().ok());
  REQUIRE(memory.adopt_further(6, ipc::UniqueFd(dup(one_off->fd())), Kind::kOneOff).ok());
  memory.let_go_of_named();
  const auto view = memory.bytes(6, 0, 4096);
  REQUIRE(view.has_value());
  CHECK(memory.bytes(6, 0, 1).has_value());  // the same request may name it again
  memory.let_go_of_named();
  CHECK_FALSE(memory.bytes(6, 0, 1).has_value());
  CHECK(view->size() == 4096);
}
