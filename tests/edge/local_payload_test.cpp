// What a local client placed in shared memory, as the service gets it: images where they lie, texts
// as snapshots.
#include "edge/local_payload.h"

#include <doctest/doctest.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "edge/client/local_client.h"
#include "tests/edge/client/echo_daemon.h"

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
  const std::string file = std::string("\x89PNG\r\n\x1a\n") + std::string(1'200'000, 'i');
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

TEST_CASE("an image stays readable until its request is dropped, also when the client is gone") {
  EchoDaemon daemon;
  auto client = connect(daemon);
  const std::string file(500'000, 'i');
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
