// The router as its nodes see it: who may join, what absurd or dead nodes do to requests, and work
// over the nodes' own link.
#include <doctest/doctest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/pool/pool_link.h"
#include "tests/support/resident_memory.h"
#include "tests/support/scripted_model.h"
#include "wire_node.h"

using namespace updraft;
using namespace updraft::test;

TEST_CASE("a node killed while it streams ends the stream with an error within three seconds") {
  CloudPool pool;
  pool.cloud.set_mood(WireNode::Mood::kStall);
  std::vector<std::string> events;
  int64_t killed_ns = 0;
  int64_t error_ns = 0;
  const auto answer =
      pool.router.client().post_events(kChat, chat_body(60, true), [&](std::string_view data) {
        events.emplace_back(data);
        if (data.find("one") != std::string_view::npos) {
          pool.cloud.kill();
          killed_ns = monotonic_ns();
        }
        if (data.find("\"error\"") != std::string_view::npos) error_ns = monotonic_ns();
        return true;
      });
  REQUIRE(killed_ns > 0);
  REQUIRE(error_ns > 0);
  CHECK(error_ns - killed_ns <= 3 * kNsPerSecond);
  CHECK(events.back().find("node_lost") != std::string::npos);  // and no [DONE] after it
}

TEST_CASE("a node killed before its first token is replaced by another") {
  TestRouter router;
  router.start();
  WireNode second(router, router.allow("cloud-2"), "cloud-2", Tier::kCloud, 4096);
  REQUIRE(router.wait_for("cloud-2", "fresh"));
  second.edit([](NodeBeat& beat) { beat.slots_free = 0; });
  auto first =
      std::make_unique<WireNode>(router, router.allow("cloud-1"), "cloud-1", Tier::kCloud, 4096);
  REQUIRE(router.wait_for("cloud-1", "fresh"));
  REQUIRE(eventually([&] { return router.state_of("cloud-2") == "fresh"; }));
  first->kill();  // its lease still stands, so the request goes there
  std::string body;
  std::thread client([&] {
    const auto answer = router.client().post_json(kChat, chat_body(60));
    body = answer ? answer->body : answer.message();
  });
  second.edit([](NodeBeat& beat) { beat.slots_free = 4; });
  client.join();
  CHECK(body.find("one two three") != std::string::npos);
  CHECK(second.works() == 1);
}

TEST_CASE(
    "a node that begins a new life on its connection ends the streams of the old one at once") {
  CloudPool pool;
  pool.cloud.set_mood(WireNode::Mood::kStall);
  std::string last;
  const int64_t begin_ns = monotonic_ns();
  const auto done =
      pool.router.client().post_events(kChat, chat_body(60, true), [&](std::string_view data) {
        if (data.find("one") != std::string_view::npos) pool.cloud.live_again();
        last = std::string(data);
        return true;
      });
  REQUIRE_MESSAGE(done.ok(), done.message());
  CHECK(last.find("\"error\"") != std::string::npos);
  CHECK(last.find("restarted while it was answering") != std::string::npos);
  CHECK(monotonic_ns() - begin_ns < 20 * kNsPerSecond);
  pool.cloud.set_mood(WireNode::Mood::kAnswer);
  REQUIRE(pool.router.wait_for("cloud-1", "fresh"));  // with its first beat
  const auto next = pool.router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(next.ok(), next.message());
  CHECK(next->status == 200);
  CHECK(pool.cloud.works() == 2);
}

TEST_CASE("an unknown key gets no connection; once its file is there it does, without a restart") {
  TestRouter router;
  router.start();
  const CurveKeys stranger = new_curve_keys();
  {
    WireNode node(router, stranger, "cloud-9", Tier::kCloud, 4096);
    // Refusals are counted and shown; nothing else happens.
    REQUIRE(eventually([&] {
      const auto metrics = router.client().get("/metrics");
      const size_t at =
          metrics ? metrics->body.find("updraft_router_keys_refused_total ") : std::string::npos;
      return at != std::string::npos &&
             metrics->body[at + std::string("updraft_router_keys_refused_total ").size()] != '0';
    }));
    CHECK_FALSE(node.connected());
    CHECK(router.router().nodes().empty());
  }
  const CurveKeys known = router.allow("cloud-9");
  WireNode node(router, known, "cloud-9", Tier::kCloud, 4096);
  CHECK(router.wait_for("cloud-9", "fresh"));
}

TEST_CASE("an absurd beat changes nothing but a count") {
  CloudPool pool;
  pool.cloud.edit([](NodeBeat& beat) { beat.kv_tokens_free = beat.kv_tokens_total + 1; });
  const auto count_of = [&](const char* name) {
    const auto metrics = pool.router.client().get("/metrics");
    const std::string key = std::string("\n") + name + " ";
    const size_t at = metrics ? metrics->body.find(key) : std::string::npos;
    return at == std::string::npos ? 0.0 : std::stod(metrics->body.substr(at + key.size()));
  };
  REQUIRE(eventually([&] {
    return count_of("updraft_router_frames_refused_total") +
               count_of("updraft_router_beats_refused_total") >=
           2;
  }));
  pool.cloud.edit([](NodeBeat& beat) { beat.kv_tokens_free = beat.kv_tokens_total; });
  REQUIRE(pool.router.wait_for("cloud-1", "fresh"));
  const auto answer = pool.router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(answer.ok(), answer.message());
  CHECK(answer->status == 200);
}

// --- with the nodes' own link ---

namespace {

// Answers everything with one token, or begins and goes no further.
class EchoService : public testing::ScriptedService {
 public:
  void submit(Request request, EventSink sink) override {
    const RequestId id = request.id;
    testing::ScriptedService::submit(std::move(request), std::move(sink));
    emit(id, Started{"", Tier::kAny, "demo", "", 9});
    if (silent.load()) return;
    TokenChunk chunk;
    chunk.ids = {1};
    chunk.text = "hello";
    chunk.finish = FinishReason::kStop;
    emit(id, chunk);
    Finished finished;
    finished.usage = {9, 1, 0};
    emit(id, finished);
  }
  std::atomic<bool> silent{false};
};

struct LinkedNode {
  LinkedNode(TestRouter& router, const std::string& id, Tier tier, int32_t context_tokens) {
    PoolLinkConfig config;
    config.router_endpoint = router.router().pool_endpoint();
    config.router_public_key = router.public_key();
    config.keys = router.allow(id);
    config.beat_interval_ms = 50;
    NodeHello hello;
    hello.node_id = id;
    hello.boot_epoch = 1;
    hello.tier = tier;
    hello.device = "test";
    ModelInfo info;
    info.id = "demo";
    info.context_tokens = context_tokens;
    hello.models = {info};
    auto started = PoolLink::start(config, hello, service, [context_tokens](NodeBeat& beat) {
      beat.slots_total = beat.slots_free = 4;
      beat.kv_tokens_total = beat.kv_tokens_free = 4LL * context_tokens;
    });
    REQUIRE_MESSAGE(started.ok(), started.message());
    link = std::move(started).value();
    link->set_state(NodeState::kReady);
    REQUIRE(router.wait_for(id, "fresh"));
  }
  EchoService service;
  std::unique_ptr<PoolLink> link;
};

Request risen(size_t text_bytes) {
  return testing::chat_request(new_request_id(), std::string(text_bytes, 'a'), "demo");
}

}  // namespace

TEST_CASE("work rises from an edge through its link to the cloud and the answer comes back down") {
  TestRouter router;
  router.start();
  LinkedNode edge(router, "edge-1", Tier::kEdge, 512);
  LinkedNode cloud(router, "cloud-1", Tier::kCloud, 4096);
  REQUIRE(eventually([&] { return edge.link->connected(); }));
  REQUIRE(eventually([&] {
    const std::vector<ModelInfo> models = edge.link->pool_models();
    return models.size() == 1 && models[0].context_tokens == 4096;
  }));
  testing::Answer answer;
  edge.link->upward().submit(risen(3000), answer.sink());
  REQUIRE(eventually([&] { return answer.end_count() == 1; }));
  const std::vector<Event> events = answer.events();
  REQUIRE(events.size() == 3);
  CHECK(std::get<Started>(events[0]).node_id == "cloud-1");
  CHECK(std::get<Started>(events[0]).prompt_tokens == 9);
  CHECK(std::get<TokenChunk>(events[1]).text == "hello");
  CHECK(std::get<Finished>(events[2]).usage.completion_tokens == 1);
  CHECK(edge.service.submitted_count() == 0);
}

TEST_CASE("a cancel at the edge reaches the cloud through the router") {
  TestRouter router;
  router.start();
  LinkedNode edge(router, "edge-1", Tier::kEdge, 512);
  LinkedNode cloud(router, "cloud-1", Tier::kCloud, 4096);
  cloud.service.silent.store(true);
  REQUIRE(eventually([&] { return edge.link->connected(); }));
  testing::Answer answer;
  Request request = risen(3000);
  const RequestId id = request.id;
  edge.link->upward().submit(std::move(request), answer.sink());
  REQUIRE(eventually([&] { return cloud.service.submitted_count() == 1; }));
  edge.link->upward().cancel(id);
  CHECK(eventually([&] { return answer.end_count() == 1; }));
  CHECK(eventually([&] { return cloud.service.cancelled_count() == 1; }));
}

TEST_CASE("a drained node finishes what it has and gets nothing new") {
  TestRouter router;
  router.start();
  LinkedNode first(router, "cloud-1", Tier::kCloud, 4096);
  first.link->drain(100);
  REQUIRE(router.wait_for("cloud-1", "draining"));
  const auto refused = router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(refused.ok(), refused.message());
  CHECK(refused->status == 503);
  LinkedNode second(router, "cloud-2", Tier::kCloud, 4096);
  const auto answer = router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(answer.ok(), answer.message());
  CHECK(answer->field("x-updraft-node") == "cloud-2");
  CHECK(first.service.submitted_count() == 0);
}

// --- a node that means ill ---

namespace {

// A router in a process of its own, so that its memory can be told from the test's.
class RouterProcess {
 public:
  explicit RouterProcess(TestRouter& router) {
    int ends[2] = {};
    REQUIRE(pipe(ends) == 0);
    pid_ = fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      router.start();
      const std::string endpoint = router.router().pool_endpoint();
      if (write(ends[1], endpoint.data(), endpoint.size()) < 0) _exit(1);
      while (true) pause();
    }
    char endpoint[256] = {};
    close(ends[1]);
    REQUIRE(read(ends[0], endpoint, sizeof endpoint - 1) > 0);
    close(ends[0]);
    endpoint_ = endpoint;
  }
  ~RouterProcess() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  const std::string& endpoint() const { return endpoint_; }
  bool running() const { return waitpid(pid_, nullptr, WNOHANG) == 0; }
  int64_t resident_bytes() const { return testing::resident_bytes(std::to_string(pid_)); }

 private:
  pid_t pid_ = -1;
  std::string endpoint_;
};

}  // namespace

TEST_CASE("a node that floods a router costs it bounded memory, and others still join") {
  TestRouter setup;
  const CurveKeys rude_keys = setup.allow("cloud-1");
  const CurveKeys polite_keys = setup.allow("cloud-2");
  const RouterProcess router(setup);
  const auto context = NetContext::create();
  auto made = PoolDialer::connect(*context, router.endpoint(), setup.public_key(), rude_keys);
  REQUIRE_MESSAGE(made.ok(), made.message());
  PoolDialer& rude = **made;
  const auto turn = [&] {
    while (rude.receive(64, [](std::vector<std::byte>&&) {}) > 0) {
    }
  };
  REQUIRE(eventually([&] {
    turn();
    return rude.connected();
  }));
  const int64_t before = router.resident_bytes();
  int64_t largest = before;
  int64_t sent_bytes = 0;
  const int64_t give_up_ns = monotonic_ns() + 30 * kNsPerSecond;
  const auto send = [&](const std::vector<std::byte>& frame) {
    while (!rude.send(frame) && monotonic_ns() < give_up_ns) {
      turn();
      poll(nullptr, 0, 1);
    }
    sent_bytes += static_cast<int64_t>(frame.size());
    largest = std::max(largest, router.resident_bytes());
  };
  // Parts of messages that never become whole, and frames of nonsense in between.
  constexpr uint32_t kParts = 80;
  for (uint32_t i = 0; sent_bytes < 600 << 20 && monotonic_ns() < give_up_ns; ++i) {
    send(encode(Blob{i / kParts, i % kParts, kParts + 1, std::vector<std::byte>(kChunkBytes)}));
    if (i % 4 == 0) send(std::vector<std::byte>(kPoolFrameBytesMax - 1024));
  }
  REQUIRE(router.running());
  CHECK(sent_bytes > 100 << 20);
  // Four messages of 24 MiB each in the making, and 32 MiB of frames that wait.
  if (testing::kMemoryIsMeant) CHECK(largest - before < 160 << 20);
  WireNode polite(router.endpoint(), setup.public_key(), polite_keys, "cloud-2", Tier::kCloud,
                  4096);
  CHECK(eventually([&] { return polite.welcomed(); }));
}
