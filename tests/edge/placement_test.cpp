// Where a request is answered: the rule's table, row by row.
#include "edge/placement.h"

#include <doctest/doctest.h>

#include <string>

using namespace updraft;
using Place = EdgeDecision::Place;

namespace {

EdgeState connected() {
  EdgeState s;
  s.context_tokens = 1000;
  s.slots_total = 2;
  s.slots_free = 2;
  s.kv_tokens_total = 2000;
  s.kv_tokens_free = 2000;
  s.pool_configured = true;
  s.pool_connected = true;
  s.model_in_pool = true;
  return s;
}
EdgeState away() {
  EdgeState s = connected();
  s.pool_connected = false;
  s.model_in_pool = false;
  return s;
}
EdgeState alone() {
  EdgeState s = away();
  s.pool_configured = false;
  return s;
}
EdgeNeed need(int64_t prompt, int64_t wanted) {
  EdgeNeed n;
  n.prompt_tokens = prompt;
  n.wanted_tokens = wanted;
  return n;
}
EdgeDecision decide(const EdgeNeed& n, const EdgeState& s, Hints hints = {},
                    SessionPast past = SessionPast::kNone) {
  return place_at_edge(hints, n, s, past);
}
Hints tier(Tier t) {
  Hints h;
  h.tier = t;
  return h;
}
Hints local_only() {
  Hints h;
  h.local_only = true;
  return h;
}

}  // namespace

TEST_CASE("what fits the context and a free slot stays") {
  CHECK(decide(need(100, 100), connected()).place == Place::kLocal);
  CHECK(std::string(decide(need(100, 100), connected()).reason) == "fits the edge");
  CHECK(decide(need(900, 100), connected()).place == Place::kLocal);
  CHECK(decide(need(900, 101), connected()).place == Place::kRise);
}

TEST_CASE("an open-ended answer needs room for an answer") {
  CHECK(decide(need(750, 0), connected()).place == Place::kLocal);  // a quarter of 1,000
  CHECK(decide(need(751, 0), connected()).place == Place::kRise);
  EdgeState big = connected();
  big.context_tokens = 100'000;
  big.kv_tokens_total = big.kv_tokens_free = 100'000;
  CHECK(decide(need(100'000 - 256, 0), big).place == Place::kLocal);
  CHECK(decide(need(100'000 - 255, 0), big).place == Place::kRise);
}

TEST_CASE("a KV pool smaller than the context is the limit") {
  EdgeState s = connected();
  s.kv_tokens_total = 500;
  s.kv_tokens_free = 500;
  CHECK(decide(need(400, 101), s).place == Place::kRise);
  const EdgeDecision refused = decide(need(400, 101), s, local_only());
  CHECK(refused.error.limit_tokens == 500);
}

TEST_CASE("a busy edge sends up what the pool can take, and keeps it when the pool is away") {
  EdgeState s = connected();
  s.slots_free = 0;
  CHECK(decide(need(10, 10), s).place == Place::kRise);
  CHECK(std::string(decide(need(10, 10), s).reason) == "the edge is busy");
  s.model_in_pool = false;
  CHECK(decide(need(10, 10), s).place == Place::kLocal);
  s = away();
  s.slots_free = 0;
  CHECK(decide(need(10, 10), s).place == Place::kLocal);
  s = connected();
  s.kv_tokens_free = 100;
  CHECK(decide(need(90, 20), s).place == Place::kRise);
  EdgeNeed many = need(10, 10);
  many.choice_count = 3;
  CHECK(decide(many, connected()).place == Place::kRise);
}

TEST_CASE(
    "too long with the pool away is 503 with Retry-After, without a pool the caller's error with "
    "both numbers") {
  const EdgeDecision offline = decide(need(5000, 0), away());
  CHECK(offline.place == Place::kRefuse);
  CHECK(offline.error.code == ErrorCode::kOverloaded);
  CHECK(offline.error.retry_after_ms >= 1000);
  CHECK(offline.error.retry_after_ms <= 5000);
  const EdgeDecision lonely = decide(need(5000, 50), alone());
  CHECK(lonely.error.code == ErrorCode::kContextLength);
  CHECK(lonely.error.prompt_tokens == 5050);
  CHECK(lonely.error.limit_tokens == 1000);
  CHECK(lonely.error.message.find("5000 tokens") != std::string::npos);
  CHECK(lonely.error.message.find("1000 fit") != std::string::npos);
}

TEST_CASE("local-only never leaves, whatever else is true") {
  for (const EdgeState& state : {connected(), away(), alone()}) {
    CHECK(decide(need(10, 10), state, local_only()).place == Place::kLocal);
    const EdgeDecision long_one = decide(need(5000, 0), state, local_only());
    CHECK(long_one.place == Place::kRefuse);
    CHECK(long_one.error.code == ErrorCode::kContextLength);
    CHECK(decide(need(10, 10), state, local_only(), SessionPast::kRose).place == Place::kLocal);
    EdgeState elsewhere = state;
    elsewhere.model_here = false;
    CHECK(decide(need(10, 10), elsewhere, local_only()).error.code == ErrorCode::kModelNotFound);
    EdgeNeed image = need(10, 10);
    image.has_image = true;
    CHECK(decide(image, state, local_only()).error.code == ErrorCode::kUnsupported);
    EdgeState full = state;
    full.slots_free = 0;
    CHECK(decide(need(10, 10), full, local_only()).place == Place::kLocal);
  }
  Hints both = local_only();
  both.tier = Tier::kCloud;  // contradictory: residency wins
  CHECK(decide(need(10, 10), connected(), both).place == Place::kLocal);
}

TEST_CASE("the tier hint narrows the choice") {
  CHECK(decide(need(10, 10), connected(), tier(Tier::kCloud)).place == Place::kRise);
  CHECK(decide(need(10, 10), away(), tier(Tier::kCloud)).error.code == ErrorCode::kOverloaded);
  CHECK(decide(need(10, 10), alone(), tier(Tier::kCloud)).error.code == ErrorCode::kUnsupported);
  EdgeState full = connected();
  full.slots_free = 0;
  CHECK(decide(need(10, 10), full, tier(Tier::kEdge)).place == Place::kLocal);
  CHECK(decide(need(5000, 0), connected(), tier(Tier::kEdge)).error.code ==
        ErrorCode::kContextLength);
}

TEST_CASE("a model that is not here is asked for in the pool") {
  EdgeState s = connected();
  s.model_here = false;
  CHECK(decide(need(10, 10), s).place == Place::kRise);
  s = away();
  s.model_here = false;
  CHECK(decide(need(10, 10), s).error.code == ErrorCode::kOverloaded);
  s = alone();
  s.model_here = false;
  CHECK(decide(need(10, 10), s).error.code == ErrorCode::kModelNotFound);
}

TEST_CASE("images and chats go where they can be answered") {
  EdgeNeed image = need(10, 10);
  image.has_image = true;
  CHECK(decide(image, connected()).place == Place::kRise);
  CHECK(decide(image, away()).error.code == ErrorCode::kOverloaded);
  CHECK(decide(image, alone()).error.code == ErrorCode::kUnsupported);
  EdgeState base = connected();
  base.chat_here = false;
  CHECK(decide(need(10, 10), base).place == Place::kRise);
  EdgeNeed completion = need(10, 10);
  completion.is_chat = false;
  CHECK(decide(completion, base).place == Place::kLocal);
  base = alone();
  base.chat_here = false;
  CHECK(decide(need(10, 10), base).place == Place::kLocal);  // the model says what is missing
}

TEST_CASE("input embeddings are answered here or not at all") {
  EdgeNeed rows = need(900, 200);
  rows.has_embeddings = true;
  rows.is_chat = false;
  // What would rise for its length, for the load or for its past stays, or is refused.
  CHECK(decide(rows, connected()).error.code == ErrorCode::kContextLength);
  rows.wanted_tokens = 50;
  EdgeState busy = connected();
  busy.slots_free = 0;
  for (const EdgeState& s : {connected(), busy, away(), alone()}) {
    const EdgeDecision stays = decide(rows, s, {}, SessionPast::kRose);
    CHECK(stays.place == Place::kLocal);
    CHECK(std::string(stays.reason) == "input embeddings");
  }
  const EdgeDecision cloud = decide(rows, connected(), tier(Tier::kCloud));
  CHECK(cloud.place == Place::kRefuse);
  CHECK(cloud.error.code == ErrorCode::kUnsupported);
  CHECK(cloud.error.message.find("input embeddings") != std::string::npos);
  EdgeState elsewhere = connected();
  elsewhere.model_here = false;
  CHECK(decide(rows, elsewhere).error.code == ErrorCode::kModelNotFound);
}

TEST_CASE("what the tokenizer refuses is answered by the model itself") {
  EdgeNeed odd = need(0, 0);
  odd.countable = false;
  CHECK(decide(odd, connected()).place == Place::kLocal);
  CHECK(decide(odd, alone(), local_only()).place == Place::kLocal);
}

TEST_CASE("a draining edge takes nothing") {
  EdgeState s = connected();
  s.draining = true;
  CHECK(decide(need(10, 10), s).error.code == ErrorCode::kOverloaded);
  CHECK(decide(need(10, 10), s, local_only()).error.code == ErrorCode::kOverloaded);
}

TEST_CASE(
    "a session that rose stays above while the pool is there; one that is here waits a little") {
  CHECK(decide(need(10, 10), connected(), {}, SessionPast::kRose).place == Place::kRise);
  CHECK(decide(need(10, 10), away(), {}, SessionPast::kRose).place == Place::kLocal);
  EdgeState full = connected();
  full.slots_free = 0;
  full.waiting = 1;
  CHECK(decide(need(10, 10), full, {}, SessionPast::kStayed).place == Place::kLocal);
  full.waiting = 2;
  CHECK(decide(need(10, 10), full, {}, SessionPast::kStayed).place == Place::kRise);
  CHECK(decide(need(2000, 0), connected(), {}, SessionPast::kStayed).place == Place::kRise);
}

TEST_CASE("sessions are remembered, forgotten after ten idle minutes, and bounded") {
  EdgeSessions sessions;
  CHECK(sessions.past("a", 0) == SessionPast::kNone);
  sessions.note("a", true, 0);
  sessions.note("", true, 0);
  CHECK(sessions.size() == 1);
  CHECK(sessions.past("a", EdgeSessions::kForgetNs) == SessionPast::kRose);
  CHECK(sessions.past("a", EdgeSessions::kForgetNs + 1) == SessionPast::kNone);
  CHECK(sessions.size() == 0);
  sessions.note("a", false, 0);
  CHECK(sessions.past("a", 1) == SessionPast::kStayed);
  sessions.note("a", true, 1);
  CHECK(sessions.past("a", 2) == SessionPast::kRose);
  for (size_t i = 0; i < 2 * EdgeSessions::kSessionsMax; ++i)
    sessions.note("s" + std::to_string(i), false, 3);
  CHECK(sessions.size() == EdgeSessions::kSessionsMax);
  CHECK(sessions.past("a", 4) == SessionPast::kNone);
  CHECK(sessions.past("s" + std::to_string(2 * EdgeSessions::kSessionsMax - 1), 4) ==
        SessionPast::kStayed);
}

TEST_CASE("a gateway that is short of memory sends up what may rise and refuses the rest") {
  const auto of = [](MemoryLevel level, EdgeState state) {
    state.memory = level;
    return state;
  };
  Hints urgent;
  urgent.priority = Priority::kInteractive;
  const EdgeDecision shed = decide(need(100, 100), of(MemoryLevel::kShed, connected()));
  CHECK(shed.place == Place::kRise);
  CHECK(std::string(shed.reason) == "the edge is short of memory");
  CHECK(decide(need(100, 100), of(MemoryLevel::kShed, connected()), urgent).place == Place::kLocal);
  CHECK(decide(need(100, 100), of(MemoryLevel::kRefuse, connected()), urgent).place ==
        Place::kRise);
  for (const EdgeState& cut_off : {away(), alone()}) {
    CHECK(decide(need(100, 100), of(MemoryLevel::kShed, cut_off), urgent).place == Place::kLocal);
    const EdgeDecision refused = decide(need(100, 100), of(MemoryLevel::kRefuse, cut_off), urgent);
    CHECK(refused.place == Place::kRefuse);
    CHECK(refused.for_memory);
    CHECK(refused.error.code == ErrorCode::kOverloaded);
    CHECK(refused.error.retry_after_ms > 0);
    CHECK(decide(need(100, 100), of(MemoryLevel::kShed, cut_off)).place == Place::kRefuse);
    EdgeNeed strange = need(100, 100);
    strange.countable = false;
    CHECK(decide(strange, of(MemoryLevel::kRefuse, cut_off)).for_memory);
  }
  // Who may not leave, or wants to stay, is refused with the pool in reach, too.
  EdgeNeed rows = need(100, 100);
  rows.has_embeddings = true;
  CHECK(decide(rows, of(MemoryLevel::kRefuse, connected())).for_memory);
  CHECK(decide(need(100, 100), of(MemoryLevel::kRefuse, connected()), local_only()).for_memory);
  CHECK(
      decide(need(100, 100), of(MemoryLevel::kRefuse, connected()), tier(Tier::kEdge)).for_memory);
  // What is not for this gateway's memory goes its way.
  CHECK(decide(need(5000, 100), of(MemoryLevel::kRefuse, connected())).place == Place::kRise);
  CHECK(decide(need(100, 100), of(MemoryLevel::kRefuse, connected()), tier(Tier::kCloud)).place ==
        Place::kRise);
}
