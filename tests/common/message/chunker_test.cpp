// Large messages in parts: order per request, beats in between, bounded memory at the receiver.
#include "common/message/chunker.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

using namespace updraft;

namespace {

Submit large(const std::string& id, size_t bytes) {
  Submit s;
  s.request.id = id;
  s.request.messages = {
      {"user", {{ContentPart::Kind::kImage, "", "image/png", std::string(bytes, 'i')}}}};
  return s;
}

// What a peer receives, in order, as short names: "submit a", "cancel a", "beat", "part".
std::vector<std::string> deliver(SendQueue& queue, MessageReader& reader) {
  std::vector<std::string> names;
  while (const auto* frame = queue.front()) {
    CHECK(frame->size() <= kChunkBytes + 1024);
    const auto got = reader.add(*frame);
    REQUIRE_MESSAGE(got.ok(), got.message());
    queue.pop();
    if (!got->has_value()) {
      names.push_back("part");
    } else if (const auto* submit = std::get_if<Submit>(&**got)) {
      names.push_back("submit " + submit->request.id + " " +
                      std::to_string(submit->request.messages[0].parts[0].bytes.size()));
    } else if (const auto* cancel = std::get_if<Cancel>(&**got)) {
      names.push_back("cancel " + cancel->id);
    } else if (std::holds_alternative<NodeBeat>(**got)) {
      names.push_back("beat");
    } else if (std::holds_alternative<Drain>(**got)) {
      names.push_back("drain");
    }
  }
  return names;
}

NodeBeat beat() {
  NodeBeat b;
  b.interval_ms = 100;
  b.lease_ttl_ms = 2000;
  return b;
}

}  // namespace

TEST_CASE("a large message arrives whole, and its cancel does not overtake it") {
  SendQueue queue;
  MessageReader reader;
  CHECK(queue.push("a", large("a", 700'000)));
  CHECK(queue.push("a", Cancel{"a", 1}));
  CHECK(queue.push("b", Cancel{"b", 1}));
  CHECK(deliver(queue, reader) ==
        std::vector<std::string>{"cancel b", "part", "part", "submit a 700000", "cancel a"});
  CHECK(queue.empty());
  CHECK(queue.bytes() == 0);
  CHECK(reader.bytes_held() == 0);
}

TEST_CASE("beats and urgent messages go between the parts, and only the newest beat") {
  SendQueue queue;
  MessageReader reader;
  CHECK(queue.push("a", large("a", 700'000)));
  REQUIRE(queue.front() != nullptr);
  CHECK_FALSE(reader.add(*queue.front())->has_value());
  queue.pop();
  NodeBeat first = beat();
  queue.set_beat(first);
  NodeBeat second = beat();
  second.seq = 5;
  queue.set_beat(second);
  queue.push_urgent(Drain{1});
  CHECK(deliver(queue, reader) ==
        std::vector<std::string>{"drain", "beat", "part", "submit a 700000"});
}

TEST_CASE("large messages take turns, at most four at once") {
  SendQueue queue;
  MessageReader reader;
  for (const char* id : {"a", "b", "c", "d", "e", "f"}) CHECK(queue.push(id, large(id, 400'000)));
  const std::vector<std::string> names = deliver(queue, reader);
  CHECK(names == std::vector<std::string>{"part", "part", "part", "part", "submit a 400000",
                                          "submit b 400000", "submit c 400000", "submit d 400000",
                                          "part", "part", "submit e 400000", "submit f 400000"});
}

TEST_CASE("a message above the limit is refused and nothing is queued") {
  SendQueue queue;
  CHECK_FALSE(queue.push("a", large("a", kMessageBytesMax)));
  CHECK(queue.empty());
}

TEST_CASE("the reader refuses parts out of order, too many streams and a blob in a blob") {
  const auto part = [](uint64_t stream, uint32_t index, uint32_t count) {
    return encode(Blob{stream, index, count, std::vector<std::byte>(1000)});
  };
  MessageReader reader;
  CHECK_FALSE(reader.add(part(1, 1, 3)).ok());
  CHECK(reader.add(part(1, 0, 3)).ok());
  CHECK(reader.bytes_held() == 1000);
  CHECK_FALSE(reader.add(part(1, 2, 3)).ok());
  CHECK(reader.bytes_held() == 0);
  for (uint64_t stream = 1; stream <= kStreamsPerPeerMax; ++stream)
    CHECK(reader.add(part(stream, 0, 3)).ok());
  CHECK(reader.add(part(9, 0, 3)).message().find("stream 9") != std::string::npos);
  CHECK_FALSE(reader.add(part(1, 1, 4)).ok());  // the count changed
  reader.clear();
  CHECK(reader.bytes_held() == 0);

  const std::vector<std::byte> inner = encode(Blob{1, 0, 1, std::vector<std::byte>(10)});
  CHECK(reader.add(encode(Blob{2, 0, 1, inner})).message().find("holds a Blob") !=
        std::string::npos);
}
