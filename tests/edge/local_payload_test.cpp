// What a local client placed in shared memory, as the service gets it: images where they lie, texts
// as snapshots.
#include "edge/local_payload.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>
#include <thread>

#include "common/image/decode.h"
#include "common/message/request_check.h"
#include "edge/client/local_client.h"
#include "tests/edge/client/echo_daemon.h"
#include "tests/support/images.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using updraft::testing::EchoDaemon;

namespace {

// The name of this process's mapping that holds `at` ("/memfd:..."), empty when it has none.
std::string mapping_at(const void* at) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream fields(line);
    uintptr_t from = 0, to = 0;
    char dash = 0;
    std::string mode, offset, device, inode, name;
    fields >> std::hex >> from >> dash >> to >> mode >> offset >> device >> inode >> name;
    if (address >= from && address < to) return name;
  }
  return "";
}

std::unique_ptr<LocalClient> connect(EchoDaemon& daemon) {
  LocalClientOptions options;
  options.socket_path = daemon.socket();
  options.payload_bytes = 4 << 20;
  auto client = LocalClient::connect(options);
  REQUIRE_MESSAGE(client.ok(), client.message());
  return std::move(client).value();
}

LocalClient::Buffer filled(LocalClient& client, std::string_view bytes) {
  auto buffer = client.allocate(bytes.size());
  REQUIRE_MESSAGE(buffer.ok(), buffer.message());
  std::memcpy(buffer->bytes.data(), bytes.data(), bytes.size());
  return *buffer;
}

Request with_image(const char* model) {
  Request request;
  request.model = model;
  ContentPart text;
  text.text = "What is this?";
  ContentPart image;
  image.kind = ContentPart::Kind::kImage;
  image.mime = "image/png";
  request.messages.push_back({"user", {text, image}});
  return request;
}

void wait_started(LocalClient& client) {
  auto event = client.next(10000);
  REQUIRE_MESSAGE(event.ok(), event.message());
  REQUIRE(event->has_value());
  REQUIRE(std::holds_alternative<Started>((*event)->second));
}

}  // namespace

TEST_CASE("an image that a client placed reaches its reader where it lies, no byte copied") {
  EchoDaemon daemon;
  const auto client = connect(daemon);
  const std::string file = testing::png_of_bytes(1'200'000);
  const LocalClient::Buffer buffer = filled(*client, file);
  REQUIRE(client->submit(with_image("hold"), {{0, 1, buffer}}).ok());
  wait_started(*client);
  const Request seen = daemon.service.last();
  const SharedBytes& bytes = seen.messages.at(0).parts.at(1).bytes;
  CHECK(bytes.text() == file);
  CHECK(mapping_at(bytes.data()).find("memfd:updraft-session") != std::string::npos);
  // The same memory, not a copy that happens to lie in a segment: what the client writes shows.
  buffer.bytes.back() = std::byte{'!'};
  CHECK(bytes.text().back() == '!');
}

TEST_CASE(
    "an image stays readable until its request is dropped, also when the client is gone (Triton "
    "#3207)") {
  EchoDaemon daemon;
  auto client = connect(daemon);
  const std::string file = testing::png_of_bytes(500'000);
  REQUIRE(client->submit(with_image("hold"), {{0, 1, filled(*client, file)}}).ok());
  wait_started(*client);
  Request seen = daemon.service.last();
  const std::byte* const data = seen.messages.at(0).parts.at(1).bytes.data();
  client.reset();
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 0; }));
  CHECK(seen.messages.at(0).parts.at(1).bytes.text() == file);
  daemon.service.forget();
  const std::string name = "memfd:updraft-session";
  CHECK(mapping_at(data).find(name) != std::string::npos);
  seen = {};
  CHECK(mapping_at(data).find(name) == std::string::npos);
}

TEST_CASE("a text is a snapshot: what the client writes later changes nothing") {
  EchoDaemon daemon;
  const auto client = connect(daemon);
  const std::string text(100'000, 't');
  const LocalClient::Buffer buffer = filled(*client, text);
  Request request = with_image("hold");
  request.messages[0].parts.pop_back();
  request.messages[0].parts[0].text.clear();
  REQUIRE(client->submit(std::move(request), {{0, 0, buffer}}).ok());
  wait_started(*client);
  std::memset(buffer.bytes.data(), 0xFF, buffer.bytes.size());
  CHECK(daemon.service.last().messages.at(0).parts.at(0).text == text);
}

namespace {

// The end of a request that was refused before the service saw it.
RequestError refusal_of(EchoDaemon& daemon, Request request, const SharedBytes& bytes) {
  request.messages[0].parts[1].bytes = bytes;
  const auto client = connect(daemon);
  REQUIRE(client->submit(std::move(request)).ok());
  auto event = client->next(10000);
  REQUIRE_MESSAGE(event.ok(), event.message());
  REQUIRE(event->has_value());
  const auto* error = std::get_if<RequestError>(&(*event)->second);
  REQUIRE(error != nullptr);
  return *error;
}

}  // namespace

TEST_CASE("a broken or lying image is refused by name before any model sees it") {
  EchoDaemon daemon;
  const auto refused = [&](const char* mime, const SharedBytes& bytes) {
    Request request = with_image("echo");
    request.messages[0].parts[1].mime = mime;
    const RequestError error = refusal_of(daemon, std::move(request), bytes);
    CHECK(error.code == ErrorCode::kInvalidRequest);
    CHECK(http_status(error.code) == 400);
    CHECK(error.param == "messages[0].content[1]");
    return error.message;
  };
  const std::string png = testing::png_of_bytes(100'000);
  CHECK(refused("image/png", std::string(50'000, 'x')) ==
        "messages[0].content[1] is neither PNG nor JPEG: it starts with 'xxxxxxxx'");
  CHECK(refused("image/png", png.substr(0, 20)).find("ends before its header") !=
        std::string::npos);
  CHECK(refused("image/jpeg", png).find("a PNG that is said to be image/jpeg") !=
        std::string::npos);
  CHECK(refused("image/x-raw-rgb;width=100;height=50", std::string(14'999, 'p'))
            .find("has 14999 bytes instead of 15000") != std::string::npos);
  CHECK_FALSE(daemon.service.wait_submitted(1, 0));
}

TEST_CASE("raw pixels are handed over when their count is right") {
  EchoDaemon daemon;
  const auto client = connect(daemon);
  const std::string pixels(100 * 50 * 3, 'p');
  Request request = with_image("hold");
  request.messages[0].parts[1].mime = "image/x-raw-rgb;width=100;height=50";
  REQUIRE(client->submit(std::move(request), {{0, 1, filled(*client, pixels)}}).ok());
  wait_started(*client);
  CHECK(daemon.service.last().messages.at(0).parts.at(1).bytes.text() == pixels);
}

TEST_CASE("a raw frame of a large screen is handed over whole; the quota is its limit") {
  EchoDaemon daemon;
  const auto client = connect(daemon);
  constexpr size_t kFrameBytes = size_t{3840} * 2160 * 3;
  const auto frame = [&](uint32_t width) {
    Request request = with_image("hold");
    request.messages[0].parts[1].mime =
        "image/x-raw-rgb;width=" + std::to_string(width) + ";height=2160";
    return request;
  };
  auto buffer = client->allocate_once(kFrameBytes);
  REQUIRE_MESSAGE(buffer.ok(), buffer.message());
  std::memset(buffer->bytes.data(), 7, kFrameBytes);
  REQUIRE(client->submit(frame(3840), {{0, 1, *buffer}}).ok());
  wait_started(*client);
  const SharedBytes seen = daemon.service.last().messages.at(0).parts.at(1).bytes;
  CHECK(seen.size() == kFrameBytes);
  CHECK(seen.view().back() == std::byte{7});
  CHECK(mapping_at(seen.data()).find("memfd:") != std::string::npos);
  // An encoded image of that size is refused as ever, and so is what exceeds the quota.
  const std::string file = testing::png_of_bytes(RequestLimits::kPayloadBytes + 1);
  CHECK(refusal_of(daemon, with_image("echo"), file).code == ErrorCode::kPayloadTooLarge);
  auto beyond = client->allocate_once(2 * kFrameBytes);
  REQUIRE(beyond.ok());
  const auto refused = client->submit(frame(7680), {{0, 1, *beyond}});
  CHECK(refused.kind() == static_cast<int>(LocalFailure::kNoRoom));
}

TEST_CASE("whole requests over the control channel have their images checked, too") {
  EchoDaemon daemon;
  LocalClientOptions options;
  options.socket_path = daemon.socket();
  options.map_memory = false;
  auto client = LocalClient::connect(options);
  REQUIRE_MESSAGE(client.ok(), client.message());
  Request request = with_image("echo");
  request.messages[0].parts[1].bytes = "GIF89a";
  REQUIRE((*client)->submit(std::move(request)).ok());
  auto event = (*client)->next(10000);
  REQUIRE((event.ok() && event->has_value()));
  const auto* error = std::get_if<RequestError>(&(*event)->second);
  REQUIRE(error != nullptr);
  CHECK(error->message.find("neither PNG nor JPEG") != std::string::npos);
}

TEST_CASE("a client that rewrites an image while it is decoded gets wrong pixels or an error") {
  EchoDaemon daemon;
  const auto client = connect(daemon);
  for (const char* name : {"adam7.png", "palette.png", "progressive.jpg", "baseline.jpg"}) {
    std::ifstream in(testing::repo_file(std::string("tests/common/image/golden/") + name),
                     std::ios::binary);
    const std::string file((std::istreambuf_iterator<char>(in)), {});
    REQUIRE_FALSE(file.empty());
    Request request = with_image("hold");
    const char* mime = file[0] == '\x89' ? "image/png" : "image/jpeg";
    request.messages[0].parts[1].mime = mime;
    const LocalClient::Buffer buffer = filled(*client, file);
    REQUIRE(client->submit(std::move(request), {{0, 1, buffer}}).ok());
    wait_started(*client);
    const SharedBytes bytes = daemon.service.last().messages.at(0).parts.at(1).bytes;
    REQUIRE(decode_rgb(mime, bytes.view()).ok());
    std::atomic<bool> stop = false;
    // Turn by turn: lies that stay for a while, lies that last for a moment only (between a check
    // and a use, say), and the truth.
    std::thread mutator([&] {
      std::minstd_rand random(7);
      const auto write = [&](bool stays) {
        auto* at = reinterpret_cast<volatile unsigned char*>(buffer.bytes.data()) +
                   random() % buffer.bytes.size();
        const unsigned char kept = *at;
        *at = static_cast<unsigned char>(random());
        if (!stays) *at = kept;
      };
      while (!stop) {
        for (int i = 0; i < 8; ++i) write(true);
        std::this_thread::sleep_for(std::chrono::microseconds(300));
        std::memcpy(buffer.bytes.data(), file.data(), file.size());
        std::this_thread::sleep_for(std::chrono::microseconds(300));
        for (int i = 0; i < 4096; ++i) write(false);
      }
    });
    int decoded = 0;
    int refused = 0;
    // On a machine with one core the two take turns: until both have been seen.
    for (int i = 0; i < 100'000 && (i < 2000 || decoded < 10 || refused < 10); ++i) {
      const Result<RgbImage> image = decode_rgb(mime, bytes.view());
      if (!image) {
        ++refused;
        continue;
      }
      ++decoded;
      // Whatever size it says, it has the pixels for it.
      volatile uint64_t sum = 0;
      for (uint32_t y = 0; y < image->height; ++y) sum = sum + image->row(y)[image->width * 3 - 1];
    }
    stop = true;
    mutator.join();
    CHECK(decoded > 0);
    CHECK(refused > 0);
    std::memcpy(buffer.bytes.data(), file.data(), file.size());
    CHECK(decode_rgb(mime, bytes.view()).ok());
  }
}

namespace {

Request with_rows(const char* model, int32_t row_count, int32_t dim) {
  Request request;
  request.kind = Request::Kind::kCompletion;
  request.model = model;
  request.prompt_parts.resize(3);
  request.prompt_parts[1].kind = PromptPart::Kind::kEmbeddings;
  request.prompt_parts[1].rows = {EmbeddingRows::Type::kF16, row_count, dim, {}};
  request.prompt_parts[2].kind = PromptPart::Kind::kIds;
  return request;
}

}  // namespace

TEST_CASE("rows of embeddings reach their reader where they lie, text and ids as snapshots") {
  EchoDaemon daemon;
  const auto client = connect(daemon);
  const std::string rows(300L * 512 * 2, 'r');
  const std::string text(5000, 't');
  const std::string ids(8000, '\x01');
  const std::vector<LocalClient::Buffer> buffers = {filled(*client, text), filled(*client, rows),
                                                    filled(*client, ids)};
  std::vector<LocalClient::PlacedPart> placed;
  for (uint32_t i = 0; i < 3; ++i)
    placed.push_back({i, 0, buffers[i], ipc::SpanTarget::kPromptPart});
  REQUIRE(client->submit(with_rows("hold", 300, 512), placed).ok());
  wait_started(*client);
  const Request seen = daemon.service.last();
  const SharedBytes& bytes = seen.prompt_parts.at(1).rows.bytes;
  CHECK(bytes.text() == rows);
  CHECK(mapping_at(bytes.data()).find("memfd:updraft-session") != std::string::npos);
  for (const LocalClient::Buffer& buffer : buffers) buffer.bytes.back() = std::byte{'!'};
  CHECK(bytes.text().back() == '!');
  CHECK(seen.prompt_parts.at(0).text == text);
  CHECK(seen.prompt_parts.at(2).ids == std::vector<int32_t>(2000, 0x01010101));
}

TEST_CASE("rows that are not placed are moved into shared memory, few of them ride along") {
  EchoDaemon daemon;
  const auto client = connect(daemon);
  for (const int32_t row_count : {2, 400}) {
    Request request = with_rows("echo", row_count, 64);
    const std::string rows(static_cast<size_t>(row_count) * 128, 'q');
    request.prompt_parts[1].rows.bytes = rows;
    REQUIRE(client->submit(std::move(request)).ok());
    wait_started(*client);
    const SharedBytes bytes = daemon.service.last().prompt_parts.at(1).rows.bytes;
    CHECK(bytes.text() == rows);
    CHECK((mapping_at(bytes.data()).find("memfd:") != std::string::npos) == (row_count == 400));
    auto end = client->next(10000);
    REQUIRE(end.ok());
  }
}

TEST_CASE("rows that their bytes do not hold are refused before the service sees them") {
  EchoDaemon daemon;
  const auto client = connect(daemon);
  const auto refused = [&](int32_t row_count, int32_t dim, size_t bytes) {
    Request request = with_rows("echo", row_count, dim);
    const LocalClient::Buffer buffer = filled(*client, std::string(bytes, 'r'));
    REQUIRE(
        client->submit(std::move(request), {{1, 0, buffer, ipc::SpanTarget::kPromptPart}}).ok());
    auto event = client->next(10000);
    REQUIRE_MESSAGE(event.ok(), event.message());
    REQUIRE(event->has_value());
    const auto* error = std::get_if<RequestError>(&(*event)->second);
    REQUIRE(error != nullptr);
    CHECK(error->code == ErrorCode::kInvalidRequest);
    return error->message;
  };
  CHECK(refused(3, 100, 598) ==
        "prompt_parts[1] has 598 bytes, but 3 rows of 100 f16 values have 600");
  CHECK(refused(1 << 22, 1000, 600).find("has 600 bytes, but 4194304 rows") != std::string::npos);
  CHECK(refused(1 << 22, 1 << 17, 600).find("bytes of embeddings") != std::string::npos);
  CHECK(refused(0, 100, 600).find("embedding rows = 0") != std::string::npos);
  CHECK(refused(-3, -100, 600).find("embedding rows = -3") != std::string::npos);
  CHECK(daemon.service.last().id.empty());
}

TEST_CASE("spans that fit nothing are refused by name") {
  auto made = ipc::Segment::create({});
  REQUIRE(made.ok());
  const std::unique_ptr<ipc::Segment> segment = std::move(made).value();
  LocalMemory memory({64 << 20, 64 << 20, 0}, std::make_shared<MappedUse>(),
                     std::make_shared<MappedUse>());
  REQUIRE(memory.adopt_own(ipc::UniqueFd(dup(segment->fd()))).ok());
  const uint64_t at = segment->header().payload_offset;
  Request request = with_image("echo");
  request.prompt_ids.resize(1);
  const auto refused = [&](const ipc::PartSpan& span) {
    const auto error = place_span(request, span, memory);
    return error ? error->message : "accepted";
  };
  using ipc::SpanTarget;
  CHECK(refused({0, 2, at, 8, SpanTarget::kPart, 0}) ==
        "messages[0].parts[2]: a shared-memory part that the request does not have");
  CHECK(refused({0, 0, at, 8, SpanTarget::kPrompt, 0}) ==
        "prompts[0]: a shared-memory part that the request does not have");
  CHECK(refused({1, 0, at, 8, SpanTarget::kPromptIds, 0}) ==
        "prompt_ids[1]: a shared-memory part that the request does not have");
  CHECK(refused({0, 0, at, 8, SpanTarget::kPromptPart, 0}) ==
        "prompt_parts[0]: a shared-memory part that the request does not have");
  request.prompt_parts = with_rows("echo", 2, 3).prompt_parts;
  CHECK(refused({1, 0, at, 10, SpanTarget::kPromptPart, 0}) ==
        "prompt_parts[1] has 10 bytes, but 2 rows of 3 f16 values have 12");
  CHECK(refused({1, 0, at + 1, 12, SpanTarget::kPromptPart, 0}) == "accepted");
  CHECK(refused({2, 0, at, 7, SpanTarget::kPromptPart, 0}) ==
        "prompt_parts[2]: 7 bytes are no whole number of token ids of 4 bytes");
  CHECK(refused({1, 0, at - 1, 12, SpanTarget::kPromptPart, 0}).find("outside the payload area") !=
        std::string::npos);
  CHECK(refused({0, 0, at, 8, static_cast<SpanTarget>(77), 0}).find("does not have") !=
        std::string::npos);
  CHECK(refused({0, 0, at, 7, SpanTarget::kPromptIds, 0}) ==
        "prompt_ids[0]: 7 bytes are no whole number of token ids of 4 bytes");
  CHECK(refused({0, 0, at, ~0ULL, SpanTarget::kPromptIds, 0}).find("outside the payload area") !=
        std::string::npos);
  const int32_t ids[] = {5, -6};
  std::memcpy(segment->payload().data(), ids, sizeof ids);
  CHECK(refused({0, 0, at, 8, SpanTarget::kPromptIds, 0}) == "accepted");
  CHECK(request.prompt_ids[0] == std::vector<int32_t>{5, -6});
}

TEST_CASE(
    "a text that its client rewrites while it is checked arrives as what was checked, or not") {
  const std::shared_ptr<ipc::Segment> theirs =
      std::move(ipc::Segment::create(ipc::SegmentShape{4096, 65536, 8, 1 << 18})).value();
  LocalMemory memory({1 << 20, 1 << 20, 0}, std::make_shared<MappedUse>(),
                     std::make_shared<MappedUse>());
  REQUIRE(memory.adopt_own(ipc::UniqueFd(dup(theirs->fd()))).ok());
  constexpr size_t kBytes = 100'000;
  std::byte* const text = theirs->payload().data();
  std::memset(text, 'x', kBytes);
  std::atomic<bool> stop = false;
  std::thread writer([&]() __attribute__((no_sanitize("thread"))) {
    auto* const at = reinterpret_cast<volatile uint8_t*>(text + kBytes / 2);
    while (!stop) {
      *at = 0xC3;  // the begin of a character that does not go on
      *at = 'x';
    }
  });
  Request request;
  request.prompts.resize(1);
  const ipc::PartSpan span{0, 0, theirs->header().payload_offset, kBytes, ipc::SpanTarget::kPrompt};
  int broken = 0;
  for (int i = 0; i < 5000; ++i) {
    if (place_span(request, span, memory)) continue;
    broken += utf8_valid_prefix_bytes(request.prompts[0]) == kBytes ? 0 : 1;
  }
  stop = true;
  writer.join();
  CHECK(broken == 0);
}

TEST_CASE(
    "a session reaches no memory but its own, and its errors name none (Triton CVE-2025-23319, "
    "Triton CVE-2025-23320, Triton CVE-2025-23334)") {
  const auto of_daemon = std::make_shared<MappedUse>();
  const auto entries = [] {
    return std::distance(std::filesystem::directory_iterator("/dev/shm"), {});
  };
  const auto files = entries();
  // What a victim has: its own segment, an area and a one-off, under numbers that anybody can
  // guess.
  const auto own = std::move(ipc::Segment::create({})).value();
  LocalMemory victim({64 << 20, 64 << 20, 0}, std::make_shared<MappedUse>(), of_daemon);
  REQUIRE(victim.adopt_own(ipc::UniqueFd(dup(own->fd()))).ok());
  using Kind = ipc::PayloadSegment::Kind;
  const auto area = std::move(ipc::PayloadSegment::create(4096, Kind::kArea)).value();
  const auto once = std::move(ipc::PayloadSegment::create(4096, Kind::kOneOff)).value();
  REQUIRE(once->freeze().ok());
  REQUIRE(victim.adopt_further(1, ipc::UniqueFd(dup(area->fd())), Kind::kArea).ok());
  REQUIRE(victim.adopt_further(2, ipc::UniqueFd(dup(once->fd())), Kind::kOneOff).ok());
  REQUIRE(victim.bytes(1, 0, 8));
  REQUIRE(victim.bytes(2, 0, 8));
  // There is no name by which another process could open them.
  CHECK(entries() == files);

  const auto theirs = std::move(ipc::Segment::create({})).value();
  LocalMemory attacker({64 << 20, 64 << 20, 0}, std::make_shared<MappedUse>(), of_daemon);
  REQUIRE(attacker.adopt_own(ipc::UniqueFd(dup(theirs->fd()))).ok());
  Request request;
  request.prompts = {""};
  const auto refused = [&](uint32_t segment, uint64_t offset) {
    const auto error =
        place_span(request, {0, 0, offset, 8, ipc::SpanTarget::kPrompt, segment}, attacker);
    REQUIRE(error);
    return error->message;
  };
  // What an error says is what the caller itself had said: no path, no descriptor, no address.
  for (uint32_t segment = 1; segment < 100; ++segment) {
    CHECK(refused(segment, 0) == "prompts[0]: [0, +8) lies outside the payload area of segment " +
                                     std::to_string(segment) + ", or there is no such segment");
  }
  // Nor does an offset lead from its own segment into what lies beside it.
  const auto distance = static_cast<uint64_t>(own->payload().data() - theirs->payload().data());
  (void)refused(0, theirs->header().payload_offset + distance);
  (void)refused(0, ~0ULL - 4);
}
