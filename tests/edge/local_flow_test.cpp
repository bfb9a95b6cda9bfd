// Clients that read slowly, or not at all: their streams wait or end, and nobody else notices.
#include "tests/edge/handoff_service.h"

using namespace updraft;
using namespace updraft::testing;

TEST_CASE("a client that does not read gets a typed error, its sibling notices nothing") {
  Daemon daemon;
  const auto sleeper = daemon.client();
  const auto sibling = daemon.client();
  const Result<uint32_t> flood = sleeper->submit(chat("x", "flood"));
  REQUIRE(flood.ok());
  REQUIRE(daemon.service.wait_cancelled(1));  // the daemon gave up on it
  const Result<uint32_t> handle = sibling->submit(chat("unharmed"));
  REQUIRE(handle.ok());
  CHECK(answer(collect(*sibling, *handle)) == "unharmed");
  const std::vector<Event> events = collect(*sleeper, *flood);
  const auto* error = std::get_if<RequestError>(&events.back());
  REQUIRE(error != nullptr);
  CHECK(error->code == ErrorCode::kOverloaded);
  CHECK(error->message.find("does not read") != std::string::npos);
}

TEST_CASE("a full ring makes the stream wait, and nothing is missing when the client reads on") {
  Daemon daemon;
  const auto client = daemon.client();
  const Result<uint32_t> handle = client->submit(chat("x", "spill"));
  REQUIRE(handle.ok());
  // Everything was sent before the first read: what the ring did not hold waits in the daemon.
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().requests_taken == 1; }));
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().requests_in_flight == 0; }));
  const std::vector<Event> events = collect(*client, *handle);
  REQUIRE(events.size() == 1 + kSpillChunks + 1);
  for (int i = 0; i < kSpillChunks; ++i)
    REQUIRE(std::get<TokenChunk>(events[static_cast<size_t>(i) + 1]).offset == i);
  CHECK(std::holds_alternative<Finished>(events.back()));
}

TEST_CASE("a slow reader's stream pauses and goes on until every token is there") {
  Daemon daemon;
  const auto slow = daemon.client();
  const auto sibling = daemon.client();
  const Result<uint32_t> handle = slow->submit(chat("x", "stream"));
  REQUIRE(handle.ok());
  REQUIRE(daemon.service.wait_pauses(1));
  // It stands, and everybody else is served.
  const Result<uint32_t> other = sibling->submit(chat("unharmed"));
  REQUIRE(other.ok());
  CHECK(answer(collect(*sibling, *other)) == "unharmed");
  CHECK(daemon.service.resumes() == 0);
  int next_offset = 0;
  bool ended = false;
  while (!ended) {
    auto next = slow->next(30000);
    REQUIRE(next.ok());
    REQUIRE(next->has_value());
    const Event& event = (*next)->second;
    if (const auto* chunk = std::get_if<TokenChunk>(&event)) {
      REQUIRE(chunk->offset == next_offset);
      ++next_offset;
    }
    REQUIRE_FALSE(std::holds_alternative<RequestError>(event));
    ended = is_end(event);
  }
  // Four times what ring and backlog hold together: it had to stop and was let go on.
  CHECK(next_offset == kStreamChunks);
  CHECK(daemon.service.resumes() >= 1);
}

TEST_CASE("a paused stream whose client never reads ends with the typed error") {
  LocalServerConfig config;
  config.stall_ms = 50;
  Daemon daemon(config);
  const auto sleeper = daemon.client();
  const Result<uint32_t> handle = sleeper->submit(chat("x", "stream"));
  REQUIRE(handle.ok());
  REQUIRE(daemon.service.wait_pauses(1));
  REQUIRE(daemon.service.wait_cancelled(1));
  const std::vector<Event> events = collect(*sleeper, *handle);
  const auto* error = std::get_if<RequestError>(&events.back());
  REQUIRE(error != nullptr);
  CHECK(error->code == ErrorCode::kOverloaded);
}

TEST_CASE("a client that stopped reading loses its stream after the stall's limit") {
  LocalServerConfig config;
  config.stall_ms = 50;
  Daemon daemon(config);
  const auto sleeper = daemon.client();
  const auto sibling = daemon.client();
  const Result<uint32_t> spill = sleeper->submit(chat("x", "spill-hold"));
  REQUIRE(spill.ok());
  REQUIRE(daemon.service.wait_cancelled(1));
  const Result<uint32_t> handle = sibling->submit(chat("unharmed"));
  REQUIRE(handle.ok());
  CHECK(answer(collect(*sibling, *handle)) == "unharmed");
  const std::vector<Event> events = collect(*sleeper, *spill);
  const auto* error = std::get_if<RequestError>(&events.back());
  REQUIRE(error != nullptr);
  CHECK(error->code == ErrorCode::kOverloaded);
  // It reads again: the session serves on.
  const Result<uint32_t> again = sleeper->submit(chat("awake"));
  REQUIRE(again.ok());
  CHECK(answer(collect(*sleeper, *again)) == "awake");
}
