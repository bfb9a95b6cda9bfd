// Idempotency-Key: the store on a virtual clock, and what clients see of it.
#include "common/http/idempotency.h"

#include <doctest/doctest.h>

#include <string>

#include "common/base/clock.h"
#include "tests/common/http/http_fixture.h"

using namespace updraft;
using namespace updraft::testing;
using Verdict = IdempotencyStore::Verdict;

namespace {

StoredAnswer answer_of(size_t bytes) { return {200, "", std::string(bytes, 'x'), false}; }

void run(IdempotencyStore& store, const std::string& tenant, const std::string& key, size_t bytes,
         int64_t now_ns) {
  REQUIRE(store.begin(tenant, key, "d", now_ns).verdict == Verdict::kRun);
  store.finish(tenant, key, answer_of(bytes), now_ns);
}

}  // namespace

TEST_CASE("a key runs once, is in flight, then stored, then forgotten") {
  IdempotencyStore store({10, 1 << 20, 1 << 18, 1000});
  CHECK(store.begin("t", "k", "d", 0).verdict == Verdict::kRun);
  CHECK(store.begin("t", "k", "d", 0).verdict == Verdict::kInFlight);
  CHECK(store.begin("t", "k", "other", 0).verdict == Verdict::kOtherRequest);
  CHECK(store.begin("u", "k", "d", 0).verdict == Verdict::kRun);  // another tenant's
  store.finish("t", "k", {200, "h", "body", true}, 5 * kNsPerMs);
  const auto again = store.begin("t", "k", "d", 6 * kNsPerMs);
  REQUIRE(again.verdict == Verdict::kStored);
  CHECK(again.stored->body == "body");
  CHECK(again.stored->headers == "h");
  CHECK(again.stored->is_stream);
  CHECK(store.begin("t", "k", "other", 6 * kNsPerMs).verdict == Verdict::kOtherRequest);
  CHECK(store.begin("t", "k", "d", 1004 * kNsPerMs).verdict == Verdict::kStored);
  CHECK(store.begin("t", "k", "other", 1005 * kNsPerMs).verdict == Verdict::kRun);
  store.abandon("t", "k");
  CHECK(store.begin("t", "k", "d", 1006 * kNsPerMs).verdict == Verdict::kRun);
}

TEST_CASE("names of tenant and key never run together") {
  IdempotencyStore store({10, 1 << 20, 1 << 18, 1000});
  CHECK(store.begin("ab", "c", "d", 0).verdict == Verdict::kRun);
  CHECK(store.begin("a", "bc", "d", 0).verdict == Verdict::kRun);
  CHECK(store.begin("", "abc", "d", 0).verdict == Verdict::kRun);
}

TEST_CASE("entries and bytes are bounded, in all and of one tenant; the oldest go first") {
  IdempotencyStore store({8, 1 << 20, 1 << 18, 1000});
  for (int i = 0; i < 5; ++i) run(store, "t", std::to_string(i), 10, i);
  CHECK(store.entries() == 2);  // a quarter of all
  CHECK(store.begin("t", "2", "d", 9).verdict == Verdict::kRun);
  CHECK(store.begin("t", "3", "d", 9).verdict == Verdict::kStored);
  for (int tenant = 0; tenant < 6; ++tenant) {
    for (int i = 0; i < 2; ++i) run(store, "u" + std::to_string(tenant), std::to_string(i), 10, 10);
  }
  CHECK(store.entries() == 8 + 1);  // and the one in flight
  CHECK(store.begin("t", "3", "d", 11).verdict == Verdict::kRun);
  CHECK(store.begin("u5", "1", "d", 11).verdict == Verdict::kStored);

  IdempotencyStore bytes({1000, 40'000, 1 << 18, 1000});
  for (int i = 0; i < 20; ++i) run(bytes, "t", std::to_string(i), 4000, i);
  CHECK(bytes.bytes() <= 10'000);
  CHECK(bytes.begin("t", "19", "d", 30).verdict == Verdict::kStored);
  for (int tenant = 0; tenant < 20; ++tenant)
    run(bytes, "u" + std::to_string(tenant), "k", 4000, 40);
  CHECK(bytes.bytes() <= 40'000);
  run(bytes, "v", "large", 20'000, 50);  // more than a tenant's part
  CHECK(bytes.begin("v", "large", "d", 51).verdict == Verdict::kRun);
  bytes.set_limits({4, 5000, 1 << 18, 1000}, 60);
  CHECK(bytes.bytes() <= 5000);
}

TEST_CASE("an answer that is too long is not kept, nor is any when nothing may be") {
  IdempotencyStore store({10, 1 << 20, 100, 1000});
  run(store, "t", "k", 101, 0);
  CHECK(store.begin("t", "k", "d", 1).verdict == Verdict::kRun);
  store.finish("t", "k", answer_of(100), 1);
  CHECK(store.begin("t", "k", "d", 1).verdict == Verdict::kStored);
  IdempotencyStore off({0, 0, 100, 1000});
  run(off, "t", "k", 1, 0);
  CHECK(off.begin("t", "k", "d", 1).verdict == Verdict::kRun);
  CHECK(off.bytes() == 0);
}

TEST_CASE("expired answers leave without being asked for") {
  IdempotencyStore store({100, 1 << 20, 1 << 18, 1000});
  for (int i = 0; i < 10; ++i) run(store, "t", std::to_string(i), 10, 0);
  run(store, "u", "k", 10, 2000 * kNsPerMs);
  CHECK(store.entries() == 1);
}

TEST_CASE("the same request again gets the same answer, whole or streamed, without another run") {
  HttpFixture f;
  f.start();
  for (const std::string& body : {kChatBody, kStreamBody}) {
    const size_t runs_before = f.service.request_count();
    const std::string key = body == kChatBody ? "key-1" : "key-2";
    const HttpFields fields = {{"Idempotency-Key", key}};
    const HttpResponse first = f.post(kChatPath, body, fields);
    const HttpResponse again = f.post(kChatPath, body, fields);
    CHECK(first.status == 200);
    CHECK(again.status == 200);
    CHECK(first.field("idempotent-replayed").empty());
    CHECK(again.field("idempotent-replayed") == "true");
    CHECK(again.body == first.body);
    CHECK(again.field("content-type") == first.field("content-type"));
    CHECK(again.field("x-updraft-node") == "edge-1");
    CHECK(again.field("x-request-id") != first.field("x-request-id"));
    CHECK(f.service.request_count() == runs_before + 1);
  }
  CHECK(f.post(kChatPath, kStreamBody, {{"Idempotency-Key", "key-1"}}).status == 422);
  CHECK(f.post(kChatPath, kChatBody, {{"Idempotency-Key", "key-1"}, {"x-updraft-tier", "edge"}})
            .status == 422);
  CHECK(f.post(kChatPath, kChatBody, {{"Idempotency-Key", std::string(256, 'k')}}).status == 400);
  CHECK(f.post(kChatPath, kChatBody, {{"Idempotency-Key", "a b"}}).status == 400);
  CHECK_FALSE(f.record(0).replayed);
  CHECK(f.record(1).replayed);
}

TEST_CASE("while a request is answered its key is taken; when its client leaves it is free again") {
  HttpFixture f;
  f.service.hold();
  f.start();
  RawSocket first(f.server->port());
  REQUIRE(first.send_all(raw_post(kChatPath, kStreamBody, "Idempotency-Key: k\r\n")));
  const auto request = f.service.wait_request(0);
  REQUIRE(request);
  const HttpResponse busy = f.post(kChatPath, kStreamBody, {{"Idempotency-Key", "k"}});
  CHECK(busy.status == 409);
  CHECK_FALSE(busy.field("retry-after").empty());
  CHECK(f.post(kChatPath, kChatBody, {{"Idempotency-Key", "k"}}).status == 422);
  f.service.send(request->id, started_event());
  f.service.send(request->id, text_chunk("Hel"));
  first.read_until("Hel");
  first.reset();
  REQUIRE(f.service.wait_cancelled(request->id, 5000));
  CHECK(f.record(2).status == 499);
  f.service.answer = nullptr;
  const HttpResponse anew = f.post(kChatPath, kStreamBody, {{"Idempotency-Key", "k"}});
  CHECK(anew.status == 200);
  CHECK(anew.field("idempotent-replayed").empty());
  CHECK(f.service.request_count() == 2);
}

TEST_CASE("errors are not kept, and one tenant's keys are not another's") {
  HttpFixture f;
  f.config.auth = door_of({api_key("one", Role::kDeveloper), api_key("two", Role::kDeveloper),
                           api_key("few", Role::kDeveloper, {1, 0, 0})});
  f.service.answer = [](const Request& request, const EventSink& sink) {
    if (request.choice_count == 1) sink(started_event());
    sink(error_of(ErrorCode::kNodeLost, "gone"));
  };
  f.start();
  const auto ask = [&](const char* who, const std::string& body) {
    return f.post(kChatPath, body, {bearer(who), {"Idempotency-Key", "k"}});
  };
  CHECK(ask("one", kChatBody).status == 502);
  CHECK(ask("one", kStreamBody).body.find("gone") != std::string::npos);
  f.service.answer = nullptr;
  CHECK(ask("one", kChatBody).field("idempotent-replayed").empty());
  CHECK(ask("one", kChatBody).field("idempotent-replayed") == "true");
  CHECK(ask("two", kChatBody).field("idempotent-replayed").empty());
  // Over its limit a request never ran, so its key is free; a replay costs nothing of the limit.
  CHECK(f.post(kChatPath, kChatBody, {bearer("few"), {"Idempotency-Key", "a"}}).status == 200);
  CHECK(f.post(kChatPath, kChatBody, {bearer("few"), {"Idempotency-Key", "b"}}).status == 429);
  CHECK(f.post(kChatPath, kChatBody, {bearer("few"), {"Idempotency-Key", "b"}}).status == 429);
  CHECK(f.post(kChatPath, kChatBody, {bearer("few"), {"Idempotency-Key", "a"}}).status == 200);
}
