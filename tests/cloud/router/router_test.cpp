// The router as its users see it: HTTP on one side, nodes that speak the pool's protocol over real
// sockets on the other.
#include "cloud/router/router.h"

#include <doctest/doctest.h>
#include <poll.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "common/base/clock.h"
#include "common/http/client.h"
#include "common/message/chunker.h"
#include "common/net/pool_socket.h"
#include "common/pool/pool_link.h"

using namespace updraft;

namespace {

constexpr int kWaitMs = 10'000;

// Waits for something to become true; false when it did not in time.
bool eventually(const std::function<bool()>& condition, int wait_ms = kWaitMs) {
  const int64_t until_ns = monotonic_ns() + wait_ms * kNsPerMs;
  while (!condition()) {
    if (monotonic_ns() > until_ns) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

// A router with its keys in a folder of its own, on ports of its own.
class TestRouter {
 public:
  explicit TestRouter(int32_t queue_max = 1024) {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "updraft-router-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
    std::filesystem::create_directory(folder_ + "/nodes");
    router_keys_ = new_curve_keys();
    REQUIRE(save_curve_keys(router_keys_, folder_ + "/router").ok());
    config_.http.port = 0;
    config_.pool_endpoint = "tcp://127.0.0.1:0";
    config_.key_file = folder_ + "/router";
    config_.allowed_keys_folder = folder_ + "/nodes";
    config_.queue_max = queue_max;
    // Known from the start; others are found by the watch on the folder, which takes its time.
    for (const char* name : {"edge-1", "cloud-1", "cloud-2"}) known_[name] = add_key(name);
  }
  ~TestRouter() {
    router_.reset();
    std::filesystem::remove_all(folder_);
  }

  void start() {
    Result<std::unique_ptr<Router>> started = Router::start(config_);
    REQUIRE_MESSAGE(started.ok(), started.message());
    router_ = std::move(started).value();
  }
  // The keys of a node on the allow-list.
  CurveKeys allow(const std::string& name) {
    const auto known = known_.find(name);
    return known != known_.end() ? known->second : add_key(name);
  }
  Router& router() { return *router_; }
  RouterConfig& config() { return config_; }
  const std::string& public_key() const { return router_keys_.public_key; }
  HttpClient client(HttpFields fields = {}) {
    HttpUrl url;
    url.host = "127.0.0.1";
    url.port = router_->http_port();
    return HttpClient(url, std::move(fields));
  }
  std::string state_of(const std::string& id) {
    for (const Router::NodeView& node : router_->nodes()) {
      if (node.id == id) return node.state;
    }
    return "unknown";
  }
  bool wait_for(const std::string& id, const std::string& state) {
    return eventually([&] { return state_of(id) == state; });
  }

 private:
  CurveKeys add_key(const std::string& name) {
    const CurveKeys keys = new_curve_keys();
    const std::string path = folder_ + "/" + name;
    REQUIRE(save_curve_keys(keys, path).ok());
    std::filesystem::rename(path + ".pub", folder_ + "/nodes/" + name + ".pub");
    return keys;
  }

  std::string folder_;
  CurveKeys router_keys_;
  std::map<std::string, CurveKeys> known_;
  RouterConfig config_;
  std::unique_ptr<Router> router_;
};

// A node made of the protocol alone. Its thread owns the socket; what a test wants of it goes
// through `edit`.
class WireNode {
 public:
  enum class Mood { kAnswer, kStall, kTooLong, kFail };

  WireNode(TestRouter& router, CurveKeys keys, const std::string& id, Tier tier,
           int32_t context_tokens)
      : endpoint_(router.router().pool_endpoint()),
        router_key_(router.public_key()),
        keys_(std::move(keys)) {
    hello_.node_id = id;
    hello_.boot_epoch = static_cast<uint64_t>(monotonic_ns());
    hello_.tier = tier;
    hello_.device = "test";
    ModelInfo info;
    info.id = "demo";
    info.context_tokens = context_tokens;
    hello_.models = {info};
    beat_.boot_epoch = hello_.boot_epoch;
    beat_.interval_ms = 50;
    beat_.lease_ttl_ms = 2000;
    beat_.state = NodeState::kReady;
    beat_.slots_total = beat_.slots_free = 4;
    beat_.kv_tokens_total = beat_.kv_tokens_free = 4LL * context_tokens;
    thread_ = std::thread([this] { run(); });
  }
  ~WireNode() { kill(); }

  // Gone without a word: no drain, no goodbye.
  void kill() {
    stop_.store(true);
    if (thread_.joinable()) thread_.join();
  }
  void set_mood(Mood mood) { mood_.store(mood); }
  void edit(const std::function<void(NodeBeat&)>& change) {
    const std::lock_guard lock(mutex_);
    change(beat_);
  }
  int works() const { return works_.load(); }
  int cancels() const { return cancels_.load(); }
  bool connected() const { return connected_.load(); }
  bool welcomed() const { return welcomed_.load(); }
  size_t largest_prompt_bytes() const { return largest_prompt_bytes_.load(); }

 private:
  void run() {
    std::unique_ptr<NetContext> context = NetContext::create();
    auto dialer = PoolDialer::connect(*context, endpoint_, router_key_, keys_);
    if (!dialer) return;
    dialer_ = dialer->get();
    uint64_t session = 0;
    int64_t beat_due_ns = 0;
    while (!stop_.load()) {
      pollfd fd{dialer_->poll_fd(), POLLIN, 0};
      poll(&fd, 1, 5);
      while (dialer_->receive(64, [&](std::vector<std::byte>&& frame) { take(frame); }) > 0) {
      }
      connected_.store(dialer_->connected());
      if (dialer_->connected() && dialer_->connection_count() != session) {
        session = dialer_->connection_count();
        out_.clear();
        reader_.clear();
        out_.push_urgent(hello_);
      }
      if (welcomed_.load() && monotonic_ns() >= beat_due_ns) {
        beat_due_ns = monotonic_ns() + 50 * kNsPerMs;
        send_beat();
      }
      flush();
    }
    dialer_ = nullptr;
  }
  void flush() {
    while (const std::vector<std::byte>* frame = out_.front()) {
      if (!dialer_->send(*frame)) return;
      out_.pop();
    }
  }
  void send_beat() {
    NodeBeat beat;
    {
      const std::lock_guard lock(mutex_);
      ++beat_.seq;
      beat_.last_assignment_seq = counted_;
      beat = beat_;
    }
    // Encoded as it is, absurd or not: the encoder is not the judge.
    out_.set_beat(beat);
  }
  void take(const std::vector<std::byte>& frame) {
    Result<std::optional<PoolMessage>> message = reader_.add(frame);
    if (!message || !message->has_value()) return;
    if (const auto* welcome = std::get_if<Welcome>(&**message)) {
      // Another epoch than before: the session is over, a new one begins with a hello.
      const bool session_over = welcomed_.load() && welcome->router_epoch != router_epoch_;
      if (session_over) out_.push_urgent(hello_);
      router_epoch_ = welcome->router_epoch;
      welcomed_.store(!session_over);
    }
    if (std::holds_alternative<Cancel>(**message)) ++cancels_;
    if (auto* submit = std::get_if<Submit>(&**message)) work(*submit);
  }
  void say(const PoolMessage& message) { REQUIRE(out_.push("", message)); }
  void work(const Submit& submit) {
    counted_ = submit.assignment_seq;
    const size_t prompt_bytes = static_cast<size_t>(prompt_text_bytes(submit.request));
    largest_prompt_bytes_.store(std::max(largest_prompt_bytes_.load(), prompt_bytes));
    ++works_;
    const RequestId& id = submit.request.id;
    const Mood mood = mood_.load();
    if (mood == Mood::kTooLong) {
      RequestError error;
      error.code = ErrorCode::kRejectedTooLong;
      error.message = "too long";
      error.prompt_tokens = 5000;
      error.limit_tokens = hello_.models[0].context_tokens;
      say(Rejected{id, submit.epoch, error});
      return;
    }
    say(Accepted{id, submit.epoch, 7, {}});
    if (mood == Mood::kFail) {
      RequestError error;
      error.code = ErrorCode::kInvalidRequest;
      error.message = "no such thing";
      say(Failed{id, submit.epoch, error});
      return;
    }
    const char* words[] = {"one ", "two ", "three"};
    for (int i = 0; i < 3; ++i) {
      TokenChunk chunk;
      chunk.offset = i;
      chunk.ids = {100 + i};
      chunk.text = words[i];
      if (i == 2) chunk.finish = FinishReason::kStop;
      say(Tokens{id, submit.epoch, {chunk}});
      if (mood == Mood::kStall) return;
    }
    Finished finished;
    finished.usage = {7, 3, 0};
    say(Done{id, submit.epoch, finished});
  }

  const std::string endpoint_;
  const std::string router_key_;
  const CurveKeys keys_;
  NodeHello hello_;
  PoolDialer* dialer_ = nullptr;  // of the node's thread, as are the next four
  SendQueue out_;
  MessageReader reader_;
  uint64_t counted_ = 0;
  uint64_t router_epoch_ = 0;
  std::mutex mutex_;
  NodeBeat beat_;  // guarded by mutex_
  std::atomic<Mood> mood_{Mood::kAnswer};
  std::atomic<bool> stop_{false};
  std::atomic<bool> connected_{false};
  std::atomic<bool> welcomed_{false};
  std::atomic<int> works_{0};
  std::atomic<int> cancels_{0};
  std::atomic<size_t> largest_prompt_bytes_{0};
  std::thread thread_;
};

std::string chat_body(size_t text_bytes, bool stream = false, int max_tokens = 16) {
  return "{\"model\":\"demo\",\"max_tokens\":" + std::to_string(max_tokens) +
         ",\"stream\":" + (stream ? "true" : "false") +
         ",\"messages\":[{\"role\":\"user\",\"content\":\"" + std::string(text_bytes, 'a') +
         "\"}]}";
}

const std::string kChat = "/v1/chat/completions";

// Edge (512 tokens) and cloud (4,096) under one name, both ready.
struct DemoPool {
  explicit DemoPool(TestRouter& router)
      : edge(router, router.allow("edge-1"), "edge-1", Tier::kEdge, 512),
        cloud(router, router.allow("cloud-1"), "cloud-1", Tier::kCloud, 4096) {
    REQUIRE(router.wait_for("edge-1", "fresh"));
    REQUIRE(router.wait_for("cloud-1", "fresh"));
  }
  WireNode edge;
  WireNode cloud;
};

}  // namespace

TEST_CASE("short requests are answered by the edge, long ones by the cloud, behind one endpoint") {
  TestRouter router;
  router.start();
  DemoPool pool(router);
  const auto small = router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(small.ok(), small.message());
  CHECK(small->status == 200);
  CHECK(small->field("x-updraft-node") == "edge-1");
  CHECK(small->field("x-updraft-tier") == "edge");
  CHECK(small->field("x-updraft-decision") == "fits the edge");
  CHECK(small->body.find("one two three") != std::string::npos);
  const auto large = router.client().post_json(kChat, chat_body(6000));
  REQUIRE_MESSAGE(large.ok(), large.message());
  CHECK(large->status == 200);
  CHECK(large->field("x-updraft-node") == "cloud-1");
  CHECK(large->field("x-updraft-decision") == "too long for the edge");
  CHECK(pool.edge.works() == 1);
  CHECK(pool.cloud.works() == 1);
}

TEST_CASE(
    "a request that the edge counts as too long is answered by the cloud, unseen by the client") {
  TestRouter router;
  router.start();
  DemoPool pool(router);
  pool.edge.set_mood(WireNode::Mood::kTooLong);
  const auto answer = router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(answer.ok(), answer.message());
  // Counted as 5,000 tokens: too long for the cloud as well.
  CHECK(answer->status == 400);
  CHECK(answer->body.find("context_length_exceeded") != std::string::npos);
  CHECK(answer->body.find("5000") != std::string::npos);
  CHECK(answer->body.find("4096") != std::string::npos);
  CHECK(pool.edge.works() == 1);
  CHECK(pool.cloud.works() == 0);
}

TEST_CASE("a prompt of a megabyte goes out in parts while beats and other requests pass") {
  TestRouter router;
  router.start();
  WireNode cloud(router, router.allow("cloud-1"), "cloud-1", Tier::kCloud, 2'000'000);
  REQUIRE(router.wait_for("cloud-1", "fresh"));
  const auto answer = router.client().post_json(kChat, chat_body(3'000'000));
  REQUIRE_MESSAGE(answer.ok(), answer.message());
  CHECK(answer->status == 200);
  CHECK(cloud.largest_prompt_bytes() == 3'000'000);
  CHECK(router.state_of("cloud-1") == "fresh");
}

TEST_CASE("a node killed while it streams ends the stream with an error within three seconds") {
  TestRouter router;
  router.start();
  WireNode cloud(router, router.allow("cloud-1"), "cloud-1", Tier::kCloud, 4096);
  REQUIRE(router.wait_for("cloud-1", "fresh"));
  cloud.set_mood(WireNode::Mood::kStall);
  std::vector<std::string> events;
  int64_t killed_ns = 0;
  int64_t error_ns = 0;
  const auto answer =
      router.client().post_events(kChat, chat_body(60, true), [&](std::string_view data) {
        events.emplace_back(data);
        if (data.find("one") != std::string_view::npos) {
          cloud.kill();
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

TEST_CASE("when the client leaves, the node is told to stop") {
  TestRouter router;
  router.start();
  WireNode cloud(router, router.allow("cloud-1"), "cloud-1", Tier::kCloud, 4096);
  REQUIRE(router.wait_for("cloud-1", "fresh"));
  cloud.set_mood(WireNode::Mood::kStall);
  (void)router.client().post_events(kChat, chat_body(60, true), [](std::string_view data) {
    return data.find("one") == std::string_view::npos;
  });
  CHECK(eventually([&] { return cloud.cancels() == 1; }));
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
  TestRouter router;
  router.start();
  WireNode cloud(router, router.allow("cloud-1"), "cloud-1", Tier::kCloud, 4096);
  REQUIRE(router.wait_for("cloud-1", "fresh"));
  cloud.edit([](NodeBeat& beat) { beat.kv_tokens_free = beat.kv_tokens_total + 1; });
  const auto count_of = [&](const char* name) {
    const auto metrics = router.client().get("/metrics");
    const std::string key = std::string("\n") + name + " ";
    const size_t at = metrics ? metrics->body.find(key) : std::string::npos;
    return at == std::string::npos ? 0.0 : std::stod(metrics->body.substr(at + key.size()));
  };
  REQUIRE(eventually([&] {
    return count_of("updraft_router_frames_refused_total") +
               count_of("updraft_router_beats_refused_total") >=
           2;
  }));
  cloud.edit([](NodeBeat& beat) { beat.kv_tokens_free = beat.kv_tokens_total; });
  REQUIRE(router.wait_for("cloud-1", "fresh"));
  const auto answer = router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(answer.ok(), answer.message());
  CHECK(answer->status == 200);
}

TEST_CASE("a node's own refusal of a request reaches the client as it is") {
  TestRouter router;
  router.start();
  WireNode cloud(router, router.allow("cloud-1"), "cloud-1", Tier::kCloud, 4096);
  REQUIRE(router.wait_for("cloud-1", "fresh"));
  cloud.set_mood(WireNode::Mood::kFail);
  const auto answer = router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(answer.ok(), answer.message());
  CHECK(answer->status == 400);
  CHECK(answer->body.find("no such thing") != std::string::npos);
}

TEST_CASE("ready, models and errors follow the pool") {
  TestRouter router;
  router.start();
  auto ready = router.client().get("/readyz");
  REQUIRE_MESSAGE(ready.ok(), ready.message());
  CHECK(ready->status == 503);
  CHECK(router.client().get("/livez")->status == 200);
  const auto early = router.client().post_json(kChat, chat_body(60));
  REQUIRE_MESSAGE(early.ok(), early.message());
  CHECK(early->status == 503);
  CHECK(!early->field("retry-after").empty());
  WireNode cloud(router, router.allow("cloud-1"), "cloud-1", Tier::kCloud, 4096);
  REQUIRE(router.wait_for("cloud-1", "fresh"));
  CHECK(eventually([&] { return router.client().get("/readyz")->status == 200; }));
  CHECK(eventually([&] {
    return router.client().get("/v1/models")->body.find("\"demo\"") != std::string::npos;
  }));
  cloud.kill();
  CHECK(eventually([&] { return router.client().get("/readyz")->status == 503; }));
  CHECK(eventually([&] {
    const auto metrics = router.client().get("/metrics");
    return metrics && metrics->body.find("updraft_router_nodes{state=\"dead\",tier=\"cloud\"} 1") !=
                          std::string::npos;
  }));
}

TEST_CASE("many clients at once each get their own whole answer") {
  TestRouter router;
  router.start();
  DemoPool pool(router);
  std::atomic<int> good{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&, i] {
      for (int j = 0; j < 10; ++j) {
        const auto answer = router.client().post_json(kChat, chat_body(i % 2 == 0 ? 60 : 6000));
        if (answer && answer->status == 200 &&
            answer->body.find("one two three") != std::string::npos)
          ++good;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(good.load() == 80);
}

TEST_CASE("a stopping router refuses new requests and ends what does not end in time") {
  TestRouter router;
  router.start();
  WireNode cloud(router, router.allow("cloud-1"), "cloud-1", Tier::kCloud, 4096);
  REQUIRE(router.wait_for("cloud-1", "fresh"));
  cloud.set_mood(WireNode::Mood::kStall);
  std::atomic<bool> streaming{false};
  std::string last;
  std::thread client([&] {
    (void)router.client().post_events(kChat, chat_body(60, true), [&](std::string_view data) {
      streaming.store(true);
      last = std::string(data);
      return true;
    });
  });
  REQUIRE(eventually([&] { return cloud.works() == 1 && streaming.load(); }));
  const int64_t begin_ns = monotonic_ns();
  router.router().stop(200);
  client.join();
  CHECK(monotonic_ns() - begin_ns < 5 * kNsPerSecond);
  CHECK(last.find("[DONE]") == std::string::npos);
  CHECK(router.router().nodes().empty());
  CHECK(eventually([&] { return cloud.cancels() >= 1; }));
}

TEST_CASE("a router that cannot start says why") {
  TestRouter router;
  router.config().key_file += ".missing";
  const Result<std::unique_ptr<Router>> no_key = Router::start(router.config());
  REQUIRE(!no_key.ok());
  CHECK(no_key.message().find("router.missing") != std::string::npos);
  TestRouter other;
  other.config().allowed_keys_folder += ".missing";
  const Result<std::unique_ptr<Router>> no_folder = Router::start(other.config());
  REQUIRE(!no_folder.ok());
  CHECK(no_folder.message().find("nodes.missing") != std::string::npos);
  TestRouter third;
  third.config().pool_endpoint = "udp://nowhere";
  CHECK(!Router::start(third.config()).ok());
}

// --- with the nodes' own link ---

namespace {

// Answers everything with one token, or not at all.
class EchoService : public InferenceService {
 public:
  void submit(Request request, EventSink sink) override {
    ++taken;
    if (silent.load()) {
      const std::lock_guard lock(mutex_);
      open_.emplace_back(request.id, sink);
      sink(Started{"", Tier::kAny, "demo", "", 9});
      return;
    }
    sink(Started{"", Tier::kAny, "demo", "", 9});
    TokenChunk chunk;
    chunk.ids = {1};
    chunk.text = "hello";
    chunk.finish = FinishReason::kStop;
    sink(chunk);
    Finished finished;
    finished.usage = {9, 1, 0};
    sink(finished);
  }
  void cancel(const RequestId& id) override {
    const std::lock_guard lock(mutex_);
    for (auto& [open_id, sink] : open_) {
      if (open_id != id || !sink) continue;
      RequestError error;
      error.code = ErrorCode::kCancelled;
      error.message = "cancelled";
      std::exchange(sink, nullptr)(error);
      ++cancelled;
    }
  }
  std::vector<ModelInfo> models() const override { return {}; }
  bool ready(std::string*) const override { return true; }
  std::atomic<int> taken{0};
  std::atomic<int> cancelled{0};
  std::atomic<bool> silent{false};

 private:
  std::mutex mutex_;
  std::vector<std::pair<RequestId, EventSink>> open_;
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

struct Waiter {
  EventSink sink() {
    return [this](Event event) {
      const std::lock_guard lock(mutex);
      events.push_back(std::move(event));
    };
  }
  bool ended() {
    const std::lock_guard lock(mutex);
    return !events.empty() && is_end(events.back());
  }
  std::vector<Event> all() {
    const std::lock_guard lock(mutex);
    return events;
  }
  std::mutex mutex;
  std::vector<Event> events;
};

Request risen(size_t text_bytes) {
  Request request;
  request.id = new_request_id();
  request.model = "demo";
  ChatMessage message;
  message.role = "user";
  ContentPart part;
  part.text = std::string(text_bytes, 'a');
  message.parts.push_back(part);
  request.messages.push_back(message);
  return request;
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
  Waiter waiter;
  edge.link->upward().submit(risen(3000), waiter.sink());
  REQUIRE(eventually([&] { return waiter.ended(); }));
  const std::vector<Event> events = waiter.all();
  REQUIRE(events.size() == 3);
  CHECK(std::get<Started>(events[0]).node_id == "cloud-1");
  CHECK(std::get<Started>(events[0]).prompt_tokens == 9);
  CHECK(std::get<TokenChunk>(events[1]).text == "hello");
  CHECK(std::get<Finished>(events[2]).usage.completion_tokens == 1);
  CHECK(edge.service.taken.load() == 0);
}

TEST_CASE("a cancel at the edge reaches the cloud through the router") {
  TestRouter router;
  router.start();
  LinkedNode edge(router, "edge-1", Tier::kEdge, 512);
  LinkedNode cloud(router, "cloud-1", Tier::kCloud, 4096);
  cloud.service.silent.store(true);
  REQUIRE(eventually([&] { return edge.link->connected(); }));
  Waiter waiter;
  Request request = risen(3000);
  const RequestId id = request.id;
  edge.link->upward().submit(std::move(request), waiter.sink());
  REQUIRE(eventually([&] { return cloud.service.taken.load() == 1; }));
  edge.link->upward().cancel(id);
  CHECK(eventually([&] { return waiter.ended(); }));
  CHECK(eventually([&] { return cloud.service.cancelled.load() == 1; }));
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
  CHECK(first.service.taken.load() == 0);
}
