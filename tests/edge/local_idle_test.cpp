// A service whose own thread looks at the submission rings while it has nothing to do: who reads
// what, and that no ring of a client gets lost between the two threads.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "edge/client/local_client.h"
#include "edge/local_server.h"
#include "tests/support/shared_data.h"

using namespace updraft;

namespace {

constexpr int kTries = 2000;  // of what hits a thread that is about to sleep, say

// Echoes at once, on whichever thread submits; "hold" is answered by the test.
class IdleService final : public InferenceService {
 public:
  IdleService() : thread_([this] { run(); }) {}
  ~IdleService() override {
    stopping_ = true;
    look_while_idle(nullptr);
    thread_.join();
  }

  void look_while_idle(std::shared_ptr<IdleWork> origin) override {
    {
      const std::lock_guard lock(mutex_);
      origin_.swap(origin);
    }
    changed_.notify_all();
    if (origin) origin->wake();
  }
  void submit(Request request, EventSink sink) override {
    const bool idle = std::this_thread::get_id() == thread_.get_id();
    ++(idle ? (looking_ ? by_look : by_ring) : by_server);
    sink(Started{});
    if (request.model == "hold") {
      const std::lock_guard lock(mutex_);
      held_ = std::move(sink);
      changed_.notify_all();
      return;
    }
    TokenChunk chunk;
    chunk.ids = {1};
    chunk.text = std::to_string(request.messages[0].parts[0].text.size());
    sink(std::move(chunk));
    sink(Finished{});
  }
  EventSink held() {
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, std::chrono::seconds(20), [&] { return held_ != nullptr; }));
    return std::move(held_);
  }
  void cancel(const RequestId&) override {}
  std::vector<ModelInfo> models() const override { return {}; }
  bool ready(std::string*) const override { return true; }

  std::atomic<int> by_ring = 0, by_look = 0, by_server = 0;  // who submitted

 private:
  void run() {
    while (!stopping_) {
      std::shared_ptr<IdleWork> origin;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return origin_ != nullptr || stopping_; });
        origin = origin_;
      }
      if (!origin) continue;
      looking_ = true;
      origin->look([this] { return stopping_.load(); });
      looking_ = false;
      (void)origin->wait(std::chrono::hours(1));
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<IdleWork> origin_;
  EventSink held_;
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> looking_ = false;
  std::thread thread_;
};

struct Daemon {
  explicit Daemon(int64_t spin_us = 5) { start(spin_us); }
  void start(int64_t spin_us = 5) {
    LocalServerConfig config;
    config.socket_path = dir.file("edge.sock");
    config.spin_us = spin_us;
    auto started = LocalServer::start(config, service);
    REQUIRE_MESSAGE(started.ok(), started.message());
    server = std::move(*started);
  }
  std::unique_ptr<LocalClient> client() {
    LocalClientOptions options;
    options.socket_path = dir.file("edge.sock");
    options.payload_bytes = 1 << 20;
    auto connected = LocalClient::connect(options);
    REQUIRE_MESSAGE(connected.ok(), connected.message());
    return std::move(*connected);
  }

  testing::TempDir dir;
  IdleService service;
  std::unique_ptr<LocalServer> server;
};

Request chat(size_t bytes, const char* model = "echo") {
  Request request;
  request.model = model;
  request.messages.push_back({"user", std::vector<ContentPart>(1)});
  request.messages[0].parts[0].text = std::string(bytes, 'x');
  return request;
}

// The answer's chunks, joined; every request must end.
std::string collect(LocalClient& client, uint32_t handle) {
  std::string text;
  for (;;) {
    auto next = client.next(20000);
    REQUIRE_MESSAGE(next.ok(), next.message());
    REQUIRE(next->has_value());
    if ((*next)->first != handle) continue;
    if (const auto* chunk = std::get_if<TokenChunk>(&(*next)->second)) text += chunk->text;
    if (is_end((*next)->second)) {
      CHECK(std::holds_alternative<Finished>((*next)->second));
      return text;
    }
  }
}
std::string ask(LocalClient& client, Request request) {
  const Result<uint32_t> handle = client.submit(std::move(request));
  REQUIRE_MESSAGE(handle.ok(), handle.message());
  return collect(client, *handle);
}

}  // namespace

TEST_CASE("a small request is read by the service's thread that sleeps at the rings") {
  Daemon daemon;
  const auto client = daemon.client();
  for (int i = 0; i < kTries && daemon.service.by_ring < 10; ++i) {
    CHECK(ask(*client, chat(5)) == "5");
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  CHECK(daemon.service.by_ring >= 10);
}

TEST_CASE("what has payload of its own is read by the server's thread, and read at all") {
  Daemon daemon;
  const auto client = daemon.client();
  for (int i = 0; i < 100; ++i) {
    CHECK(ask(*client, chat(20000)) == "20000");
    if (i % 2 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  CHECK(daemon.service.by_server == 100);
}

TEST_CASE("after an answer the service's thread looks for the next request awake") {
  Daemon daemon(10'000'000);
  const auto client = daemon.client();
  for (int i = 0; i < kTries && daemon.service.by_look < 10; ++i)
    CHECK(ask(*client, chat(5)) == "5");
  CHECK(daemon.service.by_look >= 10);
}

TEST_CASE("a large request among those that are looked for is left to the server's thread") {
  Daemon daemon(10'000'000);
  const auto client = daemon.client();
  for (int i = 0; i < 100; ++i) CHECK(ask(*client, chat(i % 3 == 0 ? 20000 : 5)).size() > 0);
  CHECK(daemon.service.by_server >= 34);
}

TEST_CASE("several requests at once are all read, whoever is awake") {
  for (const int64_t spin_us : {0, 5, 10'000}) {
    Daemon daemon(spin_us);
    const auto first = daemon.client();
    const auto second = daemon.client();
    for (int i = 0; i < 200; ++i) {
      std::vector<uint32_t> handles;
      for (int k = 0; k < 5; ++k) {
        const Result<uint32_t> handle = first->submit(chat(k % 2 == 0 ? 7 : 9000));
        REQUIRE_MESSAGE(handle.ok(), handle.message());
        handles.push_back(*handle);
      }
      CHECK(ask(*second, chat(3)) == "3");
      // Answers of small and large ones may change places.
      for (size_t ends = 0; ends < handles.size();) {
        auto next = first->next(20000);
        REQUIRE_MESSAGE(next.ok(), next.message());
        REQUIRE(next->has_value());
        ends += is_end((*next)->second) ? 1 : 0;
      }
    }
  }
}

TEST_CASE("a client that has read on is heard by the thread that sleeps at the rings, too") {
  Daemon daemon;
  const auto client = daemon.client();
  for (int round = 0; round < 5; ++round) {
    const Result<uint32_t> handle = client->submit(chat(5, "hold"));
    REQUIRE(handle.ok());
    const EventSink sink = daemon.service.held();
    constexpr int kChunks = 1050;  // a little more than the ring holds
    for (int i = 0; i < kChunks; ++i) {
      TokenChunk chunk;
      chunk.offset = i;
      chunk.ids = {i};
      chunk.text = std::string(1000, 'x');
      sink(std::move(chunk));
    }
    sink(Finished{});
    CHECK(collect(*client, *handle).size() == 1000 * kChunks);
  }
}

TEST_CASE("servers come and go under a service whose thread sleeps at their rings") {
  Daemon daemon;
  for (int i = 0; i < 20; ++i) {
    {
      const auto client = daemon.client();
      CHECK(ask(*client, chat(5)) == "5");
    }
    daemon.server.reset();
    daemon.start(i % 3 * 1000);
  }
}
