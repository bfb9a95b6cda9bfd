// The edge's service between a scripted model and a scripted pool: every request ends exactly once,
// from the right side.
#include "edge/edge_service.h"

#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "tests/support/fake_memory.h"
#include "tests/support/scripted_model.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

// Waits for another thread's doing, with a deadline.
bool eventually(const std::function<bool()>& done) {
  const int64_t end_ns = monotonic_ns() + 10 * kNsPerSecond;
  while (monotonic_ns() < end_ns) {
    if (done()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

std::string words(int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += "w ";
  return out;
}

struct Setup {
  FakeMemory fake_memory;
  MemoryWatch memory{{95, 98}, fake_memory.root()};
  ScriptedModel model{1000};
  ScriptedService pool;
  std::unique_ptr<Metrics> metrics = Metrics::create();
  std::unique_ptr<EdgeService> service;
  Answer answer;

  explicit Setup(bool pool_connected = true, bool pool_configured = true) {
    ModelInfo big;
    big.id = "big";
    big.context_tokens = 32768;
    ModelInfo tiny;
    tiny.id = "tiny";
    pool.set_models({big, tiny});
    pool.set_ready(pool_connected);
    EdgeServiceConfig config;
    config.aliases = {"phone"};
    config.pool_configured = pool_configured;
    config.memory = &memory;
    service = std::make_unique<EdgeService>(config, model, pool, *metrics);
  }
  void submit(Request request) { service->submit(std::move(request), answer.sink()); }
};

TokenChunk chunk(const std::string& text) {
  TokenChunk c;
  c.ids = {1};
  c.text = text;
  return c;
}

}  // namespace

TEST_CASE("a short request is answered here, at once and without counting") {
  Setup s;
  s.submit(chat_request("a", "hello", "tiny"));
  REQUIRE(s.model.has("a"));
  CHECK(s.model.measured_count() == 0);
  CHECK(s.service->in_flight() == 1);
  CHECK(s.model.emit("a", Started{"edge-1", Tier::kEdge, "tiny", "", 5}));
  CHECK(s.model.emit("a", chunk("hi")));
  CHECK(s.model.emit("a", Finished{}));
  CHECK(s.answer.text() == "hi");
  CHECK(s.answer.end_count() == 1);
  CHECK(s.answer.started().decision == "fits the edge");
  CHECK(s.service->in_flight() == 0);
  CHECK(s.pool.submitted_count() == 0);
}

TEST_CASE("an alias and no name at all mean the local model") {
  Setup s;
  s.submit(chat_request("a", "hello", "phone"));
  s.submit(chat_request("b", "hello", ""));
  CHECK(s.model.has("a"));
  CHECK(s.model.has("b"));
}

TEST_CASE("a long request is counted exactly and rises under a name the pool knows") {
  Setup s;
  s.submit(chat_request("a", words(2000), "phone"));
  REQUIRE(eventually([&] { return s.pool.has("a"); }));
  CHECK(s.model.measured_count() == 1);
  CHECK(s.pool.request("a").model == "tiny");
  CHECK(s.pool.emit("a", Started{"cloud-1", Tier::kCloud, "tiny", "least wait", 2000}));
  CHECK(s.pool.emit("a", chunk("far")));
  CHECK(s.pool.emit("a", Finished{}));
  CHECK(s.answer.text() == "far");
  CHECK(s.answer.started().node_id == "cloud-1");
  CHECK(s.answer.started().decision == "least wait");
  CHECK(s.answer.end_count() == 1);
  CHECK(s.model.submitted_count() == 0);
}

TEST_CASE("many bytes that are few tokens stay") {
  Setup s;
  s.submit(chat_request("a", std::string(50'000, 'x') + " y", "tiny"));  // two tokens
  REQUIRE(eventually([&] { return s.model.has("a"); }));
  CHECK(s.model.measured_count() == 1);
}

TEST_CASE("a payload that can go nowhere else is handed on, not copied") {
  Setup bound;
  Request request = chat_request("a", std::string(50'000, 'x') + " y", "tiny");
  request.hints.local_only = true;
  const char* place = request.messages[0].parts[0].text.data();
  bound.submit(std::move(request));
  REQUIRE(eventually([&] { return bound.model.has("a"); }));
  CHECK(bound.model.payload_place("a") == place);
}

TEST_CASE(
    "router away: what fits is served, the rest is 503 with Retry-After, local-only names both "
    "numbers") {
  Setup s(false);
  s.submit(chat_request("short", "hello", "tiny"));
  CHECK(s.model.has("short"));
  Answer long_answer;
  s.service->submit(chat_request("long", words(2000), "tiny"), long_answer.sink());
  REQUIRE(eventually([&] { return long_answer.end_count() == 1; }));
  CHECK(long_answer.error().code == ErrorCode::kOverloaded);
  CHECK(long_answer.error().retry_after_ms >= 1000);
  CHECK(long_answer.error().retry_after_ms <= 5000);
  Answer bound;
  Request request = chat_request("bound", words(2000), "tiny");
  request.hints.local_only = true;
  s.service->submit(request, bound.sink());
  REQUIRE(eventually([&] { return bound.end_count() == 1; }));
  CHECK(bound.error().code == ErrorCode::kContextLength);
  CHECK(bound.error().prompt_tokens == 2001);
  CHECK(bound.error().limit_tokens == 1000);
}

TEST_CASE("an unknown model is the pool's to answer, and not found without one") {
  Setup s;
  s.submit(chat_request("a", "hello", "big"));
  CHECK(s.pool.has("a"));
  CHECK(s.pool.request("a").model == "big");
  Setup lonely(false, false);
  lonely.submit(chat_request("b", "hello", "big"));
  CHECK(lonely.answer.error().code == ErrorCode::kModelNotFound);
  CHECK(lonely.answer.error().message.find("\"big\"") != std::string::npos);
  CHECK(lonely.answer.error().param == "model");
}

TEST_CASE("a pool that refuses before the start hands back what fits here") {
  Setup s;
  ServiceLoad busy = s.model.load();
  busy.slots_free = 0;
  s.model.set_load(busy);
  s.submit(chat_request("a", "hello", "tiny"));
  REQUIRE(s.pool.has("a"));
  CHECK(s.pool.emit("a", make_error(ErrorCode::kOverloaded)));
  REQUIRE(s.model.has("a"));
  CHECK(s.answer.end_count() == 0);
  CHECK(s.model.emit("a", Started{}));
  CHECK(s.answer.started().decision == "the pool had no room");
  CHECK(s.model.emit("a", Finished{}));
  CHECK(s.answer.end_count() == 1);
}

TEST_CASE("a local refusal before the start rises, once, and a second refusal is the answer") {
  Setup s;
  s.submit(chat_request("a", "hello", "tiny"));
  CHECK(s.model.emit("a", make_error(ErrorCode::kOverloaded, "full here")));
  REQUIRE(s.pool.has("a"));
  CHECK(s.answer.end_count() == 0);
  CHECK(s.pool.emit("a", make_error(ErrorCode::kOverloaded, "full there")));
  CHECK(s.answer.end_count() == 1);
  CHECK(s.answer.error().message == "full there");
  CHECK(s.model.submitted_count() == 1);
}

TEST_CASE("a request that began stays with its side: its failure is the answer") {
  Setup s;
  s.submit(chat_request("a", words(2000), "tiny"));
  REQUIRE(eventually([&] { return s.pool.has("a"); }));
  CHECK(s.pool.emit("a", Started{}));
  CHECK(s.pool.emit("a", make_error(ErrorCode::kNodeLost)));
  CHECK(s.answer.error().code == ErrorCode::kNodeLost);
  CHECK(s.answer.end_count() == 1);
  CHECK(s.model.submitted_count() == 0);
}

TEST_CASE("what is bound to the gateway does not rise after a local refusal") {
  Setup s;
  Request request = chat_request("a", "hello", "tiny");
  request.hints.local_only = true;
  s.submit(request);
  CHECK(s.model.emit("a", make_error(ErrorCode::kOverloaded)));
  CHECK(s.answer.error().code == ErrorCode::kOverloaded);
  CHECK(s.pool.submitted_count() == 0);
}

TEST_CASE("input embeddings do not rise, neither for their length nor after a local refusal") {
  Setup s;
  Request request = chat_request("a", "", "tiny");
  request.kind = Request::Kind::kCompletion;
  request.messages.clear();
  request.prompt_parts.resize(1);
  request.prompt_parts[0].kind = PromptPart::Kind::kEmbeddings;
  request.prompt_parts[0].rows = {EmbeddingRows::Type::kF32, 10, 4, std::string(160, 'e')};
  s.submit(request);
  CHECK(s.model.emit("a", make_error(ErrorCode::kOverloaded)));
  CHECK(s.answer.error().code == ErrorCode::kOverloaded);
  request.id = "b";
  request.hints.tier = Tier::kCloud;
  Answer cloud;
  s.service->submit(request, cloud.sink());
  CHECK(cloud.error().code == ErrorCode::kUnsupported);
  CHECK(s.pool.submitted_count() == 0);
}

TEST_CASE("cancel reaches whichever side has the request, also while it is being counted") {
  Setup s;
  s.submit(chat_request("a", "hello", "tiny"));
  s.service->cancel("a");
  CHECK(s.answer.error().code == ErrorCode::kCancelled);
  CHECK(s.answer.end_count() == 1);
  s.service->cancel("a");
  s.service->cancel("unknown");
  CHECK(s.answer.end_count() == 1);

  Answer up;
  s.service->submit(chat_request("b", words(2000), "tiny"), up.sink());
  s.service->cancel("b");  // maybe before, maybe after it was counted
  REQUIRE(eventually([&] { return up.end_count() == 1; }));
  CHECK(up.error().code == ErrorCode::kCancelled);
}

TEST_CASE("a session that rose stays above, and comes back when the pool is away") {
  Setup s;
  Request first = chat_request("a", words(2000), "tiny");
  first.hints.session = "s";
  s.submit(first);
  REQUIRE(eventually([&] { return s.pool.has("a"); }));
  CHECK(s.pool.emit("a", Started{}));
  CHECK(s.pool.emit("a", Finished{}));
  Answer second;
  Request short_one = chat_request("b", "hello", "tiny");
  short_one.hints.session = "s";
  s.service->submit(short_one, second.sink());
  CHECK(s.pool.has("b"));
  s.pool.set_ready(false);
  Answer third;
  short_one.id = "c";
  s.service->submit(short_one, third.sink());
  CHECK(s.model.has("c"));
}

TEST_CASE("the deadline that a side sees is what is left of it") {
  Setup s;
  Request request = chat_request("a", "hello", "tiny");
  request.hints.deadline_ms = 60'000;
  s.submit(request);
  CHECK(s.model.request("a").hints.deadline_ms <= 60'000);
  CHECK(s.model.request("a").hints.deadline_ms > 50'000);
}

TEST_CASE(
    "models are the local one, its aliases and the pool's; draining refuses and says not ready") {
  Setup s;
  const std::vector<ModelInfo> models = s.service->models();
  REQUIRE(models.size() == 3);
  CHECK(models[0].id == "tiny");
  CHECK(models[1].id == "phone");
  CHECK(models[2].id == "big");
  CHECK(s.service->ready(nullptr));
  s.service->drain();
  std::string why;
  CHECK_FALSE(s.service->ready(&why));
  CHECK(why == "draining");
  s.submit(chat_request("a", "hello", "tiny"));
  CHECK(s.answer.error().code == ErrorCode::kOverloaded);
}

TEST_CASE("requests that still wait to be counted end when the service closes") {
  Setup s;
  std::vector<Answer> answers(50);
  for (size_t i = 0; i < answers.size(); ++i) {
    s.service->submit(chat_request("r" + std::to_string(i), words(5000), "tiny"),
                      answers[i].sink());
  }
  s.service->close();
  size_t ended = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    const bool above = s.pool.has("r" + std::to_string(i));
    CHECK(answers[i].end_count() == (above ? 0 : 1));
    ended += answers[i].end_count() == 1 ? 1 : 0;
  }
  CHECK(s.service->in_flight() == answers.size() - ended);
}

TEST_CASE("metrics count where requests went") {
  Setup s;
  s.submit(chat_request("a", "hello", "tiny"));
  s.submit(chat_request("b", "hello", "big"));
  const std::string text = s.metrics->text();
  CHECK(text.find("updraft_edge_placed_total{place=\"local\"} 1") != std::string::npos);
  CHECK(text.find("updraft_edge_placed_total{place=\"pool\"} 1") != std::string::npos);
}

// --- sides that do not end a request in time ---

namespace {

// Works on a long step: hears no cancel, and measures nothing while it is told to stand still.
class BusyModel : public ScriptedModel {
 public:
  using ScriptedModel::ScriptedModel;
  void cancel(const RequestId&) override { ++cancels; }
  Result<Size> measure(const Request& request) const override {
    ++measuring;
    while (still.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return ScriptedModel::measure(request);
  }
  std::atomic<int> cancels{0};
  mutable std::atomic<int> measuring{0};
  std::atomic<bool> still{false};
};

struct BusySetup {
  BusyModel model{1000};
  ScriptedService pool;
  std::unique_ptr<Metrics> metrics = Metrics::create();
  std::unique_ptr<EdgeService> made;
  EdgeService& service;
  BusySetup()
      : made(std::make_unique<EdgeService>(config(), model, pool, *metrics)), service(*made) {
    ModelInfo above;
    above.id = "tiny";
    above.context_tokens = 32768;
    pool.set_models({above});
  }
  static EdgeServiceConfig config() {
    EdgeServiceConfig config;
    config.pool_configured = true;
    return config;
  }
};

}  // namespace

TEST_CASE("a deadline is kept although the model is busy with a long step") {
  BusySetup s;
  Answer answer;
  Request request = chat_request("a", "hello", "tiny");
  request.hints.deadline_ms = 50;
  const int64_t begin_ns = monotonic_ns();
  s.service.submit(std::move(request), answer.sink());
  CHECK(s.model.emit("a", Started{"edge-1", Tier::kEdge, "tiny", "", 5}));
  REQUIRE(eventually([&] { return answer.end_count() == 1; }));
  CHECK(monotonic_ns() - begin_ns >= 50 * kNsPerMs);
  CHECK(answer.error().code == ErrorCode::kDeadline);
  CHECK(answer.error().message.find("50 ms") != std::string::npos);
  CHECK(s.service.in_flight() == 0);
  CHECK(eventually([&] { return s.model.cancels.load() == 1; }));
  // What the model says after its step is nobody's.
  const size_t events = answer.events().size();
  CHECK(s.model.emit("a", chunk("late")));
  CHECK(s.model.emit("a", Finished{}));
  CHECK(answer.events().size() == events);
  CHECK(answer.end_count() == 1);
}

TEST_CASE("a request that ends by itself before its deadline is left alone") {
  BusySetup s;
  Answer answer;
  for (int i = 0; i < 3; ++i) {  // one id again and again, each with its own deadline
    Request request = chat_request("a", "hello", "tiny");
    request.hints.deadline_ms = 30;
    s.service.submit(std::move(request), answer.sink());
    CHECK(s.model.emit("a", Finished{}));
  }
  Answer last;
  s.service.submit(chat_request("a", "hello", "tiny"), last.sink());
  Answer other;
  Request request = chat_request("b", "hello", "tiny");
  request.hints.deadline_ms = 60;
  s.service.submit(std::move(request), other.sink());
  REQUIRE(eventually([&] { return other.end_count() == 1; }));  // later than the first three's
  CHECK(answer.end_count() == 3);
  CHECK(last.end_count() == 0);
  CHECK(eventually([&] { return s.model.cancels.load() == 1; }));  // of "b"
  CHECK(s.model.emit("a", Finished{}));
}

TEST_CASE("who leaves is let go although the model is busy, also while others are counted") {
  BusySetup s;
  Answer running;
  s.service.submit(chat_request("a", "hello", "tiny"), running.sink());
  s.service.cancel("a");
  REQUIRE(eventually([&] { return running.end_count() == 1; }));
  CHECK(running.error().code == ErrorCode::kCancelled);
  CHECK(s.model.emit("a", Finished{}));
  s.model.still.store(true);
  Answer counted;
  Answer waits;
  s.service.submit(chat_request("long", words(2000), "tiny"), counted.sink());
  REQUIRE(eventually([&] { return s.model.measuring.load() == 1; }));
  s.service.submit(chat_request("next", words(2000), "tiny"), waits.sink());
  s.service.cancel("next");
  CHECK(eventually([&] { return waits.end_count() == 1; }));
  CHECK(waits.error().code == ErrorCode::kCancelled);
  CHECK(counted.end_count() == 0);
  s.model.still.store(false);
  CHECK(eventually([&] { return s.pool.has("long"); }));
  CHECK(s.pool.emit("long", Finished{}));
  CHECK(counted.end_count() == 1);
  CHECK(waits.end_count() == 1);
  CHECK_FALSE(s.pool.has("next"));
}

TEST_CASE("a gateway short of memory sends its clients' requests up, and none comes back down") {
  Setup s;
  s.submit(chat_request("before", "hello", "tiny"));
  REQUIRE(s.model.has("before"));
  s.fake_memory.set(99.0);
  REQUIRE(eventually([&] { return s.memory.level() == MemoryLevel::kRefuse; }));
  CHECK_FALSE(s.service->short_of_memory());  // the pool takes them
  CHECK(s.service->ready(nullptr));
  Answer up;
  s.service->submit(chat_request("a", "hello", "tiny"), up.sink());
  REQUIRE(s.pool.has("a"));
  // A refusal above would otherwise bring it to the local model.
  CHECK(s.pool.emit("a", error_of(ErrorCode::kOverloaded, "no room", 1000)));
  CHECK(up.end_count() == 1);
  CHECK(up.error().code == ErrorCode::kOverloaded);
  CHECK(s.model.submitted_count() == 1);
  // What runs goes on.
  CHECK(s.model.emit("before", chunk("still here")));
  CHECK(s.model.emit("before", Finished{}));
  CHECK(s.answer.text() == "still here");

  s.pool.set_ready(false);
  REQUIRE(s.service->short_of_memory());
  CHECK(s.service->short_of_memory()->code == ErrorCode::kOverloaded);
  std::string why;
  CHECK_FALSE(s.service->ready(&why));
  CHECK(why.find("memory") != std::string::npos);
  Answer refused;
  s.service->submit(chat_request("b", "hello", "tiny"), refused.sink());
  CHECK(refused.error().code == ErrorCode::kOverloaded);
  CHECK(refused.error().retry_after_ms > 0);
  CHECK(s.metrics->text().find("updraft_memory_refused_total{reason=\"refuse\"} 1") !=
        std::string::npos);
  s.fake_memory.set(20.0);
  REQUIRE(eventually([&] { return s.memory.level() == MemoryLevel::kNormal; }));
  s.service->submit(chat_request("c", "hello", "tiny"), s.answer.sink());
  CHECK(s.model.has("c"));
}
