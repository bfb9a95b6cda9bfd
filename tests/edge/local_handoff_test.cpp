// The local handoff through real sockets and segments, with a service that echoes: what goes in
// comes out, and a client that dies, lies or sleeps hurts only itself.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "common/base/clock.h"
#include "common/ipc/doorbell.h"
#include "common/ipc/unix_socket.h"
#include "common/message/handshake.h"
#include "common/message/pool_message.h"
#include "edge/client/local_client.h"
#include "edge/local_server.h"
#include "tests/support/early_child.h"
#include "tests/support/images.h"
#include "tests/support/shared_data.h"

using namespace updraft;

namespace {

// Answers with the text of the request's parts (long ones and images as their byte count); holds
// requests whose model is "hold" until they are cancelled; floods those whose model is "flood";
// sends those named "spill" a little more than the client's ring holds, "spill-hold" without an
// end.
constexpr int kSpillChunks = 1050;
constexpr int kStreamChunks = 4000;
class EchoService final : public InferenceService {
 public:
  void expect() override { ++expected_; }
  int expected() const { return expected_; }
  int submitted() const { return submitted_; }
  // To every request that is held; an end lets it go.
  void emit_held(const Event& event) {
    std::map<RequestId, EventSink> sinks;
    {
      const std::lock_guard lock(mutex_);
      sinks = is_end(event) ? std::exchange(held_, {}) : held_;
    }
    for (auto& [id, sink] : sinks) sink(event);
  }
  int cancelled() {
    const std::lock_guard lock(mutex_);
    return cancelled_;
  }
  void submit(Request request, EventSink sink) override {
    ++submitted_;
    Started started;
    started.node_id = "echo";
    started.tier = Tier::kEdge;
    sink(started);
    if (request.model == "hold" && !answers_held_) {
      const std::lock_guard lock(mutex_);
      held_[request.id] = std::move(sink);
      return;
    }
    if (request.model == "stream") return start_stream(request.id, std::move(sink));
    if (request.model == "flood" || request.model.rfind("spill", 0) == 0) {
      const int chunks = request.model == "flood" ? 4000 : kSpillChunks;
      for (int i = 0; i < chunks; ++i) {
        TokenChunk chunk;
        chunk.offset = i;
        chunk.ids = {i};
        chunk.text = std::string(1000, 'x');
        sink(std::move(chunk));
      }
      if (request.model == "spill") return sink(Finished{});
      const std::lock_guard lock(mutex_);
      held_[request.id] = std::move(sink);
      return;
    }
    TokenChunk chunk;
    chunk.ids = {1};
    for (const ChatMessage& message : request.messages) {
      for (const ContentPart& part : message.parts) {
        const std::string bytes(part.kind == ContentPart::Kind::kText ? part.text
                                                                      : part.bytes.text());
        chunk.text += bytes.size() < 1000
                          ? bytes
                          : "[" + std::to_string(bytes.size()) + " " + bytes.substr(1, 3) + "]";
      }
    }
    sink(std::move(chunk));
    sink(Finished{});
  }
  void cancel(const RequestId& id) override {
    EventSink sink;
    {
      const std::lock_guard lock(mutex_);
      const auto it = held_.find(id);
      if (it == held_.end()) {
        const auto stream = streams_.find(id);
        if (stream == streams_.end()) return;
        stream->second.cancelled = true;
        ++cancelled_;
        changed_.notify_all();
        return;
      }
      sink = std::move(it->second);
      held_.erase(it);
      ++cancelled_;
    }
    changed_.notify_all();
    RequestError error;
    error.code = ErrorCode::kCancelled;
    sink(error);
  }
  // "stream": chunks without end or haste, on a thread of its own, while nobody pauses it.
  void pause(const RequestId& id) override { set_paused(id, true); }
  void resume(const RequestId& id) override { set_paused(id, false); }
  bool wait_pauses(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return pauses_ >= count; });
  }
  int resumes() {
    const std::lock_guard lock(mutex_);
    return resumes_;
  }
  std::vector<ModelInfo> models() const override {
    ModelInfo model;
    model.id = "echo";
    model.context_tokens = 512;
    return {model};
  }
  bool ready(std::string*) const override { return true; }

  // From now on "hold" is answered like everything else.
  void answer_held() { answers_held_ = true; }
  bool wait_cancelled(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return cancelled_ >= count; });
  }

  ~EchoService() override {
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  struct Stream {
    bool paused = false;
    bool cancelled = false;
  };
  void set_paused(const RequestId& id, bool paused) {
    const std::lock_guard lock(mutex_);
    const auto it = streams_.find(id);
    if (it == streams_.end()) return;
    it->second.paused = paused;
    ++(paused ? pauses_ : resumes_);
    changed_.notify_all();
  }
  void start_stream(const RequestId& id, EventSink sink) {
    const std::lock_guard lock(mutex_);
    streams_[id] = {};
    threads_.emplace_back([this, id, sink = std::move(sink)] {
      for (int i = 0; i < kStreamChunks; ++i) {
        {
          std::unique_lock lock(mutex_);
          changed_.wait(lock, [&] { return !streams_[id].paused || streams_[id].cancelled; });
          if (streams_[id].cancelled) break;
        }
        TokenChunk chunk;
        chunk.offset = i;
        chunk.ids = {i};
        chunk.text = std::string(1000, 'x');
        sink(std::move(chunk));
        // As a model would: slow enough for somebody to say stop.
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
      bool cancelled = false;
      {
        const std::lock_guard lock(mutex_);
        cancelled = streams_[id].cancelled;
        streams_.erase(id);
      }
      if (!cancelled) return sink(Finished{});
      sink(error_of(ErrorCode::kCancelled, "cancelled"));
    });
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Stream> streams_;
  std::vector<std::thread> threads_;
  int pauses_ = 0;
  int resumes_ = 0;
  std::atomic<int> expected_ = 0;
  std::atomic<int> submitted_ = 0;
  std::atomic<bool> answers_held_ = false;
  std::map<RequestId, EventSink> held_;
  int cancelled_ = 0;
};

struct Daemon {
  explicit Daemon(LocalServerConfig config = {}) { start(std::move(config)); }
  void start(LocalServerConfig config) {
    config.socket_path = dir.file("edge.sock");
    Result<std::unique_ptr<LocalServer>> started = LocalServer::start(config, service);
    REQUIRE_MESSAGE(started.ok(), started.message());
    server = std::move(started).value();
  }
  std::unique_ptr<LocalClient> client(bool map_memory = true, int32_t reconnect_ms = 0) {
    LocalClientOptions options;
    options.reconnect_ms = reconnect_ms;
    options.socket_path = dir.file("edge.sock");
    options.map_memory = map_memory;
    options.payload_bytes = 2 << 20;
    Result<std::unique_ptr<LocalClient>> connected = LocalClient::connect(options);
    REQUIRE_MESSAGE(connected.ok(), connected.message());
    return std::move(connected).value();
  }
  // Waits until `done` holds; the daemon works on its own thread.
  template <typename Condition>
  bool eventually(Condition done) {
    const int64_t deadline_ns = monotonic_ns() + 10 * kNsPerSecond;
    while (!done()) {
      if (monotonic_ns() > deadline_ns) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  testing::TempDir dir;
  EchoService service;
  std::unique_ptr<LocalServer> server;
};

Request chat(const std::string& text, const std::string& model = "echo") {
  Request request;
  request.model = model;
  ContentPart part;
  part.text = text;
  request.messages.push_back({"user", {part}});
  return request;
}

// All events of one request up to its end.
std::vector<Event> collect(LocalClient& client, uint32_t handle) {
  std::vector<Event> events;
  while (events.empty() || !is_end(events.back())) {
    auto next = client.next(10000);
    REQUIRE_MESSAGE(next.ok(), next.message());
    REQUIRE(next->has_value());
    if ((*next)->first == handle) events.push_back(std::move((*next)->second));
  }
  return events;
}

std::string answer(const std::vector<Event>& events) {
  std::string text;
  for (const Event& event : events) {
    if (const auto* chunk = std::get_if<TokenChunk>(&event)) text += chunk->text;
  }
  return text;
}

}  // namespace

TEST_CASE("a request crosses shared memory and its answer comes back") {
  Daemon daemon;
  const auto client = daemon.client();
  CHECK(client->welcome().models.at(0).id == "echo");
  const Result<uint32_t> handle = client->submit(chat("hello"));
  REQUIRE_MESSAGE(handle.ok(), handle.message());
  const std::vector<Event> events = collect(*client, *handle);
  CHECK(std::get<Started>(events.front()).node_id == "echo");
  CHECK(answer(events) == "hello");
  CHECK(std::holds_alternative<Finished>(events.back()));
  CHECK(daemon.service.expected() == 1);  // it could wake up while the request was read
}

TEST_CASE("a client without shared memory sends whole requests over the control channel") {
  Daemon daemon;
  const auto client = daemon.client(false);
  const Result<uint32_t> handle = client->submit(chat(std::string(100000, 'y')));
  REQUIRE(handle.ok());
  CHECK(answer(collect(*client, *handle)) == "[100000 yyy]");
}

TEST_CASE("large texts and images lie in the payload area and arrive whole") {
  Daemon daemon;
  const auto client = daemon.client();
  const std::string text(100000, 'p');
  Request request = chat(text);
  ContentPart image;
  image.kind = ContentPart::Kind::kImage;
  image.mime = "image/png";
  request.messages[0].parts.push_back(image);
  Result<LocalClient::Buffer> buffer = client->allocate(913728);
  REQUIRE(buffer.ok());
  const std::string png = testing::png_of_bytes(buffer->bytes.size());
  std::memcpy(buffer->bytes.data(), png.data(), png.size());
  const Result<uint32_t> handle = client->submit(std::move(request), {{0, 1, *buffer}});
  REQUIRE_MESSAGE(handle.ok(), handle.message());
  CHECK(answer(collect(*client, *handle)) == "[100000 ppp][913728 PNG]");
  // Everything was freed with the end: the same again many times fits the same area.
  for (int i = 0; i < 20; ++i) {
    const Result<uint32_t> again = client->submit(chat(std::string(900000, 'q')));
    REQUIRE_MESSAGE(again.ok(), again.message());
    CHECK(answer(collect(*client, *again)) == "[900000 qqq]");
  }
}

TEST_CASE("a cancelled request ends with one last event") {
  Daemon daemon;
  const auto client = daemon.client();
  const Result<uint32_t> handle = client->submit(chat("x", "hold"));
  REQUIRE(handle.ok());
  auto started = client->next(10000);
  REQUIRE(started.ok());
  client->cancel(*handle);
  const std::vector<Event> events = collect(*client, *handle);
  CHECK(std::get<RequestError>(events.back()).code == ErrorCode::kCancelled);
}

TEST_CASE("many requests in flight keep their answers apart, and one too many is refused") {
  Daemon daemon;
  const auto client = daemon.client();
  std::map<uint32_t, std::string> expected;
  for (int i = 0; i < 64; ++i) {
    const Result<uint32_t> handle = client->submit(chat("request " + std::to_string(i)));
    REQUIRE(handle.ok());
    expected[*handle] = "request " + std::to_string(i);
  }
  CHECK(client->submit(chat("one more")).message().find("too many requests in flight") !=
        std::string::npos);
  std::map<uint32_t, std::string> got;
  for (size_t ended = 0; ended < 64;) {
    auto next = client->next(10000);
    REQUIRE(next.ok());
    REQUIRE(next->has_value());
    if (const auto* chunk = std::get_if<TokenChunk>(&(*next)->second))
      got[(*next)->first] += chunk->text;
    ended += is_end((*next)->second) ? 1 : 0;
  }
  CHECK(got == expected);
}

TEST_CASE("a client killed with requests in flight is reclaimed within a second") {
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  testing::EarlyChild child([&](const std::string& path) {
    LocalClientOptions options;
    options.socket_path = path;
    Result<std::unique_ptr<LocalClient>> client = LocalClient::connect(options);
    if (!client) return 1;
    // The payload is large, so that the daemon may well be reading it at the moment of the kill.
    for (int i = 0; i < 8; ++i) {
      if (!(*client)->submit(chat(std::string(500000, 'k'), "hold"))) return 2;
    }
    if (write(ready[1], "x", 1) != 1) return 3;
    pause();
    return 0;
  });
  Daemon daemon;
  child.begin(daemon.dir.file("edge.sock"));
  char byte = 0;
  REQUIRE(read(ready[0], &byte, 1) == 1);
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().requests_in_flight == 8; }));
  CHECK(daemon.server->stats().mapped_bytes > 0);
  const int64_t killed_ns = monotonic_ns();
  child.end_at_once();
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 0; }));
  CHECK(monotonic_ns() - killed_ns < kNsPerSecond);
  CHECK(daemon.server->stats().mapped_bytes == 0);
  CHECK(daemon.server->stats().requests_in_flight == 0);
  CHECK(daemon.service.wait_cancelled(8));
  close(ready[0]);
  close(ready[1]);
  // The daemon serves the next client.
  const auto client = daemon.client();
  const Result<uint32_t> handle = client->submit(chat("still here"));
  REQUIRE(handle.ok());
  CHECK(answer(collect(*client, *handle)) == "still here");
}

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

TEST_CASE("a user's requests in flight are limited over all its sessions") {
  LocalServerConfig config;
  config.requests_per_uid_max = 3;
  Daemon daemon(config);
  const auto first = daemon.client();
  const auto second = daemon.client();
  for (int i = 0; i < 3; ++i) REQUIRE(first->submit(chat("x", "hold")).ok());
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().requests_in_flight == 3; }));
  const Result<uint32_t> handle = second->submit(chat("one more"));
  REQUIRE(handle.ok());
  const std::vector<Event> events = collect(*second, *handle);
  const auto* error = std::get_if<RequestError>(&events.back());
  REQUIRE(error != nullptr);
  CHECK(error->code == ErrorCode::kRateLimited);
  CHECK(error->message.find("has 3 requests in flight") != std::string::npos);
}

TEST_CASE("the daemon's end is an error at the client, and every request in flight ends") {
  Daemon daemon;
  const auto client = daemon.client();
  const Result<uint32_t> handle = client->submit(chat("x", "hold"));
  REQUIRE(handle.ok());
  auto started = client->next(10000);
  REQUIRE(started.ok());
  daemon.server.reset();
  const std::vector<Event> events = collect(*client, *handle);
  CHECK(std::get<RequestError>(events.back()).code == ErrorCode::kNodeLost);
  CHECK_FALSE(client->next(100).ok());
  CHECK_FALSE(client->submit(chat("y")).ok());
}

TEST_CASE(
    "after a restart of the daemon what had not begun to answer is answered by the next one") {
  Daemon daemon;
  const auto client = daemon.client(true, 10000);
  // One whose answer has begun, two that wait, one of them with its text in the payload area.
  const Result<uint32_t> begun = client->submit(chat("x", "spill-hold"));
  const Result<uint32_t> small = client->submit(chat("small", "hold"));
  const Result<uint32_t> large = client->submit(chat(std::string(100000, 'p'), "hold"));
  REQUIRE((begun.ok() && small.ok() && large.ok()));
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().requests_in_flight == 3; }));
  const std::string before = client->welcome().session_token;
  daemon.server.reset();
  daemon.service.answer_held();
  daemon.start({});
  std::map<uint32_t, std::vector<Event>> events;
  for (int ends = 0; ends < 3;) {
    auto next = client->next(10000);
    REQUIRE_MESSAGE(next.ok(), next.message());
    REQUIRE(next->has_value());
    ends += is_end((*next)->second) ? 1 : 0;
    events[(*next)->first].push_back(std::move((*next)->second));
  }
  CHECK(client->welcome().session_token != before);
  CHECK(std::get<RequestError>(events[*begun].back()).code == ErrorCode::kNodeLost);
  CHECK(answer(events[*small]) == "small");
  CHECK(std::holds_alternative<Finished>(events[*small].back()));
  CHECK(answer(events[*large]) == "[100000 ppp]");
  // And it goes on as before, cancels included.
  const Result<uint32_t> again = client->submit(chat("x", "spill-hold"));
  REQUIRE(again.ok());
  client->cancel(*again);
  CHECK(std::holds_alternative<RequestError>(collect(*client, *again).back()));
}

namespace {

// Shuts this process's connections to the daemon, as if they had been lost.
void cut_connections(const std::string& path) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::atoi(entry.path().filename().c_str());
    sockaddr_un peer{};
    socklen_t bytes = sizeof peer;
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &bytes) != 0) continue;
    if (peer.sun_family == AF_UNIX && bytes > sizeof(sa_family_t) && path == peer.sun_path)
      shutdown(fd, SHUT_RDWR);
  }
}

TokenChunk chunk_at(int32_t offset) {
  TokenChunk chunk;
  chunk.offset = offset;
  chunk.ids = {offset};
  chunk.text = std::to_string(offset);
  return chunk;
}

}  // namespace

TEST_CASE("a client that lost its session goes on with the same daemon, which runs nothing twice") {
  Daemon daemon;
  const auto client = daemon.client(true, 30000);
  const Result<uint32_t> handle = client->submit(chat("x", "hold"));
  REQUIRE(handle.ok());
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  std::string text;
  int ends = 0;
  const auto read = [&](size_t until_bytes) {
    while (text.size() < until_bytes && ends == 0) {
      auto next = client->next(10000);
      REQUIRE_MESSAGE(next.ok(), next.message());
      REQUIRE(next->has_value());
      if (const auto* chunk = std::get_if<TokenChunk>(&(*next)->second)) text += chunk->text;
      REQUIRE_FALSE(std::holds_alternative<RequestError>((*next)->second));
      ends += is_end((*next)->second) ? 1 : 0;
    }
  };
  daemon.service.emit_held(chunk_at(0));
  read(1);
  for (int round = 1; round <= 3; ++round) {
    // Lost in the middle of the answer; it goes on while nobody is there.
    cut_connections(daemon.dir.file("edge.sock"));
    REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 0; }));
    daemon.service.emit_held(chunk_at(2 * round - 1));
    read(static_cast<size_t>(2 * round));
    daemon.service.emit_held(chunk_at(2 * round));
    read(static_cast<size_t>(2 * round) + 1);
  }
  cut_connections(daemon.dir.file("edge.sock"));
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 0; }));
  daemon.service.emit_held(Finished{});
  read(100);
  CHECK(text == "0123456");
  CHECK(ends == 1);
  CHECK(daemon.service.submitted() == 1);
  CHECK(daemon.service.cancelled() == 0);
  CHECK(daemon.server->stats().requests_in_flight == 0);
  // And on with the next.
  const Result<uint32_t> again = client->submit(chat("awake"));
  REQUIRE(again.ok());
  CHECK(answer(collect(*client, *again)) == "awake");
}

TEST_CASE("requests whose client does not come back in time are cancelled") {
  Daemon daemon;
  const auto client = daemon.client(true, 100);
  REQUIRE(client->submit(chat("x", "hold")).ok());
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  cut_connections(daemon.dir.file("edge.sock"));
  CHECK(daemon.service.wait_cancelled(1));
}

TEST_CASE("requests whose client came back are not cancelled when its time would have been over") {
  Daemon daemon;
  const auto returns = daemon.client(true, 2000);
  const auto stays_away = daemon.client(true, 2000);
  const Result<uint32_t> kept = returns->submit(chat("x", "hold"));
  REQUIRE(kept.ok());
  REQUIRE(stays_away->submit(chat("x", "hold")).ok());
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 2; }));
  cut_connections(daemon.dir.file("edge.sock"));
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 0; }));
  while (daemon.server->stats().requests_in_flight != 1) REQUIRE(returns->next(1).ok());
  // Both were lost at once, so that the end of one says that the other's time is over, too.
  REQUIRE(daemon.service.wait_cancelled(1));
  daemon.service.emit_held(Finished{});
  CHECK(std::holds_alternative<Finished>(collect(*returns, *kept).back()));
}

TEST_CASE("a client that could come back and says that it will not is believed at once") {
  Daemon daemon;
  auto client = daemon.client(true, 60000);
  REQUIRE(client->submit(chat("x", "hold")).ok());
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  client.reset();
  CHECK(daemon.service.wait_cancelled(1));  // within 10 s, not after a minute
}

TEST_CASE("a killed client that could have come back is reclaimed within a second") {
  testing::EarlyChild child([](const std::string& path) {
    LocalClientOptions options;
    options.socket_path = path;
    options.reconnect_ms = 60000;
    auto client = LocalClient::connect(options);
    if (!client || !(*client)->submit(chat("x", "hold"))) return 2;
    pause();
    return 0;
  });
  Daemon daemon;
  child.begin(daemon.dir.file("edge.sock"));
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  const int64_t killed_ns = monotonic_ns();
  child.end_at_once();
  REQUIRE(daemon.service.wait_cancelled(1));
  CHECK(monotonic_ns() - killed_ns < kNsPerSecond);
}

TEST_CASE("the same request handed over by two sessions runs once, and is answered to the second") {
  Daemon daemon;
  const auto first = daemon.client(true, 30000);
  const auto second = daemon.client(true, 30000);
  Request request = chat("x", "hold");
  request.id = "one-and-the-same";
  const Result<uint32_t> before = first->submit(request);
  REQUIRE(before.ok());
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  daemon.service.emit_held(chunk_at(0));
  const Result<uint32_t> after = second->submit(request);
  REQUIRE(after.ok());
  CHECK(std::get<RequestError>(collect(*first, *before).back()).code == ErrorCode::kCancelled);
  daemon.service.emit_held(chunk_at(1));
  daemon.service.emit_held(Finished{});
  const std::vector<Event> events = collect(*second, *after);
  CHECK(std::holds_alternative<Started>(events.front()));
  CHECK(answer(events) == "01");
  CHECK(std::holds_alternative<Finished>(events.back()));
  CHECK(daemon.service.submitted() == 1);
  CHECK(daemon.service.cancelled() == 0);
  // Once more after its end: from what is known.
  const Result<uint32_t> late = first->submit(request);
  REQUIRE(late.ok());
  CHECK(answer(collect(*first, *late)) == "01");
  CHECK(daemon.service.submitted() == 1);
}

TEST_CASE("another request under an id that is still known is refused, not answered") {
  Daemon daemon;
  const auto client = daemon.client(true, 30000);
  const auto ask = [&](Request request) {
    request.id = "mine";
    const Result<uint32_t> handle = client->submit(std::move(request));
    REQUIRE_MESSAGE(handle.ok(), handle.message());
    return collect(*client, *handle);
  };
  CHECK(answer(ask(chat("one"))) == "one");
  const std::vector<Event> other = ask(chat("two"));
  REQUIRE(std::holds_alternative<RequestError>(other.back()));
  CHECK(std::get<RequestError>(other.back()).message.find("stands for another request") !=
        std::string::npos);
  Request warmer = chat("one");
  warmer.sampling.temperature = 0.5F;
  CHECK(std::holds_alternative<RequestError>(ask(warmer).back()));
  CHECK(answer(ask(chat("one"))) == "one");  // the first one's answer is still known
  CHECK(daemon.service.submitted() == 1);
}

TEST_CASE("a look at a lost session waits for nobody, and says busy until it is back") {
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  const auto client = daemon.client(true, 30000);
  daemon.server.reset();
  // Somebody listens there, and never answers.
  std::optional<ipc::UniqueFd> mute = std::move(ipc::listen_unix(path)).value();
  const int64_t begin_ns = monotonic_ns();
  CHECK(daemon.eventually([&] {
    const auto nothing = client->next(0);
    REQUIRE_MESSAGE(nothing.ok(), nothing.message());
    CHECK_FALSE(nothing->has_value());
    const Result<uint32_t> refused = client->submit(chat("x"));
    return !refused && refused.kind() == static_cast<int>(LocalFailure::kBusy);
  }));
  for (int i = 0; i < 20; ++i) CHECK_FALSE(std::move(client->next(0)).value().has_value());
  // Less than any of them would have waited for a handshake.
  CHECK(monotonic_ns() - begin_ns < 4 * kNsPerSecond);
  mute.reset();
  std::filesystem::remove(path);
  daemon.start({});
  std::optional<uint32_t> handle;
  CHECK(daemon.eventually([&] {
    CHECK(client->next(0).ok());
    const Result<uint32_t> again = client->submit(chat("again"));
    if (again) handle = *again;
    return again.ok();
  }));
  REQUIRE(handle.has_value());
  CHECK(answer(collect(*client, *handle)) == "again");
}

TEST_CASE("a daemon that does not come back is an error after the time to wait for it") {
  Daemon daemon;
  const auto client = daemon.client(true, 50);
  const Result<uint32_t> handle = client->submit(chat("x", "hold"));
  REQUIRE(handle.ok());
  daemon.server.reset();
  CHECK(std::get<RequestError>(collect(*client, *handle).back()).code == ErrorCode::kNodeLost);
  CHECK_FALSE(client->next(0).ok());
}

TEST_CASE("after a fork the session stays the parent's, and the child is told so") {
  Daemon daemon;
  const auto client = daemon.client();
  const Result<uint32_t> held = client->submit(chat("x", "hold"));
  REQUIRE(held.ok());
  // Then the daemon's threads sleep, and hold no lock of the allocator that the child would miss.
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  const pid_t child = fork();
  if (child == 0) {
    const auto refused = client->submit(chat("from the child"));
    const bool told = refused.message().find("belongs to the parent process") != std::string::npos;
    _exit(told && !client->next(0).ok() && !client->allocate(64).ok() && !client->event_fd().ok()
              ? 0
              : 1);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  client->cancel(*held);
  CHECK(std::get<RequestError>(collect(*client, *held).back()).code == ErrorCode::kCancelled);
}

TEST_CASE("the event descriptor is readable exactly while there is something to take") {
  Daemon daemon;
  const auto client = daemon.client();
  const Result<int> fd = client->event_fd();
  REQUIRE_MESSAGE(fd.ok(), fd.message());
  CHECK(*client->event_fd() == *fd);
  const auto readable = [&](int timeout_ms) {
    pollfd entry{*fd, POLLIN, 0};
    return ::poll(&entry, 1, timeout_ms) == 1;
  };
  const auto take = [&] {
    auto next = client->next(0);
    REQUIRE_MESSAGE(next.ok(), next.message());
    return std::move(*next);
  };
  CHECK_FALSE(readable(0));
  for (int round = 0; round < 50; ++round) {
    REQUIRE(client->submit(chat("hello")).ok());
    // Waits with the descriptor alone; each time it is readable there is an event, and not before.
    for (bool ended = false; !ended;) {
      REQUIRE(readable(10000));
      const auto event = take();
      REQUIRE(event.has_value());
      ended = is_end(event->second);
    }
    CHECK_FALSE(readable(0));
    CHECK_FALSE(take().has_value());
    CHECK_FALSE(readable(0));
  }
  // An end that nobody waits for in next() is told as well, and stays.
  daemon.server.reset();
  REQUIRE(readable(10000));
  CHECK(client->next(0).kind() == static_cast<int>(LocalFailure::kGone));
  CHECK(readable(0));
}

TEST_CASE("the event descriptor survives a lost session") {
  Daemon daemon;
  const auto client = daemon.client(true, 30000);
  const int fd = client->event_fd().value();
  const auto readable = [&](int timeout_ms) {
    pollfd entry{fd, POLLIN, 0};
    return ::poll(&entry, 1, timeout_ms) == 1;
  };
  cut_connections(daemon.dir.file("edge.sock"));
  // It tells of the loss, and then whenever it is time for the next step back.
  std::optional<uint32_t> again;
  REQUIRE(daemon.eventually([&] {
    REQUIRE(readable(10000));
    const auto nothing = client->next(0);
    REQUIRE_MESSAGE(nothing.ok(), nothing.message());
    CHECK_FALSE(nothing->has_value());
    const Result<uint32_t> submitted = client->submit(chat("again"));
    if (submitted) again = *submitted;
    return submitted.ok();
  }));
  CHECK(readable(10000));
  CHECK(answer(collect(*client, *again)) == "again");
  CHECK_FALSE(client->next(0)->has_value());
  CHECK_FALSE(readable(0));
  // And of the new session's end it tells, too.
  daemon.server.reset();
  CHECK(readable(10000));
}

TEST_CASE("who only ever looks learns of the daemon's end") {
  Daemon daemon;
  const auto client = daemon.client();
  daemon.server.reset();
  CHECK(daemon.eventually([&] { return !client->next(0).ok(); }));
}

TEST_CASE("cancel comes from any thread, while the session's own waits") {
  for (const bool mapped : {true, false}) {
    CAPTURE(mapped);
    Daemon daemon;
    const auto client = daemon.client(mapped);
    std::vector<uint32_t> handles;
    for (int i = 0; i < 40; ++i)
      handles.push_back(std::move(client->submit(chat("x", "hold"))).value());
    REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 40; }));
    std::vector<std::thread> threads;
    for (size_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (size_t i = t; i < handles.size(); i += 4) {
          client->cancel(handles[i]);
          client->cancel(handles[i] + 1);  // no such request
        }
      });
    }
    for (int ends = 0; ends < 40;) {
      auto next = client->next(10000);
      REQUIRE(next.ok());
      REQUIRE(next->has_value());
      if (!is_end((*next)->second)) continue;
      CHECK(std::get<RequestError>((*next)->second).code == ErrorCode::kCancelled);
      ++ends;
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_CASE("failures tell their kind") {
  const auto kind = [](LocalFailure failure) { return static_cast<int>(failure); };
  LocalServerConfig config;
  config.sessions_max = 1;
  config.segment_bytes_max = 4 << 20;
  Daemon daemon(config);
  LocalClientOptions options;
  options.socket_path = "/tmp/updraft-no-such-daemon.sock";
  CHECK(LocalClient::connect(options).kind() == kind(LocalFailure::kNoDaemon));
  const auto client = daemon.client();
  options.socket_path = daemon.dir.file("edge.sock");
  CHECK(LocalClient::connect(options).kind() == kind(LocalFailure::kRefused));
  CHECK(client->allocate(0).kind() == kind(LocalFailure::kBadArgument));
  CHECK(client->allocate(4 << 20).kind() == kind(LocalFailure::kNoRoom));
  CHECK(client->submit(chat(std::string(4 << 20, 'x'))).kind() == kind(LocalFailure::kNoRoom));
  Request many = chat("x");
  many.messages[0].parts.resize(300'000);
  CHECK(client->submit(many).kind() == kind(LocalFailure::kTooLarge));
  const Result<LocalClient::Buffer> buffer = client->allocate(64);
  CHECK(client->submit(chat("x"), {{7, 0, *buffer}}).kind() == kind(LocalFailure::kBadArgument));
  for (int i = 0; i < 64; ++i) REQUIRE(client->submit(chat("x", "hold")).ok());
  CHECK(client->submit(chat("x")).kind() == kind(LocalFailure::kBusy));
  daemon.server.reset();
  while (client->next(10000).ok()) {
  }
  CHECK(client->next(0).kind() == kind(LocalFailure::kGone));
  CHECK(client->submit(chat("x")).kind() == kind(LocalFailure::kGone));
}

TEST_CASE("nothing of a session survives an exec") {
  Daemon daemon;
  const auto client = daemon.client();
  REQUIRE(client->event_fd().ok());
  const Result<uint32_t> handle = client->submit(chat("x", "hold"));
  REQUIRE(handle.ok());
  client->cancel(*handle);  // and the control channel's
  (void)collect(*client, *handle);
  int out[2];
  REQUIRE(pipe(out) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(out[1], STDOUT_FILENO);
    close(out[0]);
    execl("/bin/sh", "sh", "-c",
          "for f in /proc/self/fd/*; do readlink $f; done; cat /proc/self/maps",
          static_cast<char*>(nullptr));
    _exit(127);
  }
  close(out[1]);
  std::string seen;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(out[0], buffer, sizeof buffer)) > 0;)
    seen.append(buffer, static_cast<size_t>(got));
  close(out[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(seen.find("[stack]") != std::string::npos);  // it looked
  for (const char* what : {"updraft-session", "eventfd", "eventpoll", "socket:", "pidfd"}) {
    CAPTURE(what);
    CHECK(seen.find(what) == std::string::npos);
  }
}

TEST_CASE("sessions and memory are limited, and the refusal says so") {
  LocalServerConfig config;
  config.sessions_max = 2;
  config.segment_bytes_max = 4 << 20;
  config.segment_bytes_per_uid_max = 5 << 20;
  Daemon daemon(config);
  LocalClientOptions options;
  options.socket_path = daemon.dir.file("edge.sock");
  options.payload_bytes = 16 << 20;
  CHECK(LocalClient::connect(options).message().find("allowed are") != std::string::npos);
  const auto first = daemon.client();
  options.payload_bytes = 2 << 20;
  CHECK(LocalClient::connect(options).message().find("allowed are") !=
        std::string::npos);  // the user's share is used up
  const auto second = daemon.client(false);
  CHECK(LocalClient::connect(options).message().find("all 2 sessions are taken") !=
        std::string::npos);
}

TEST_CASE("a user's sessions are limited, and one that ends makes room") {
  LocalServerConfig config;
  config.sessions_per_uid_max = 2;
  Daemon daemon(config);
  LocalClientOptions options;
  options.socket_path = daemon.dir.file("edge.sock");
  auto first = daemon.client();
  const auto second = daemon.client(false);
  CHECK(LocalClient::connect(options).message().find(
            "user " + std::to_string(getuid()) + " has 2 sessions already") != std::string::npos);
  CHECK(daemon.server->stats().sessions_refused == 1);
  first.reset();
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 1; }));
  CHECK(LocalClient::connect(options).ok());
}

TEST_CASE("no daemon at the path is one clear line") {
  LocalClientOptions options;
  options.socket_path = "/tmp/updraft-no-such-daemon.sock";
  CHECK(LocalClient::connect(options).message().find(
            "is `updraft edge` or `updraft up` running?") != std::string::npos);
}

// --- a client that speaks the protocol by hand ---

namespace {

using namespace updraft::ipc;

// These writers race with the daemon on purpose: the thread sanitizer looks elsewhere.
#define UNCHECKED_RACE __attribute__((no_sanitize("thread")))

// Speaks the handshake itself, so that it can lie afterwards.
struct HostileClient {
  explicit HostileClient(const std::string& path, uint32_t abi = kAbiVersion) {
    socket = std::move(connect_unix(path)).value();
    segment = std::move(Segment::create(SegmentShape{4096, 65536, 8, 1 << 20})).value();
    mine.emplace(std::move(Doorbell::create()).value());
    theirs.emplace(std::move(Doorbell::create()).value());
    REQUIRE(send_message(socket,
                         encode_handshake(LocalHello{abi, kLocalProtocolVersion, "hostile"}),
                         {segment->fd(), mine->fd(), theirs->fd()})
                .ok());
    answer = std::move(decode_handshake(std::move(receive_message(socket, 10000)).value().bytes))
                 .value();
  }
  void push(SubmitRecord record) {
    RingProducer producer(segment->submit_ring());
    (void)producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1)));
    theirs->ring();
  }
  bool hung_up() { return std::move(receive_message(socket, 10000)).value().hung_up; }

  UniqueFd socket;
  std::unique_ptr<Segment> segment;
  std::optional<Doorbell> mine, theirs;
  Handshake answer;
};

}  // namespace

TEST_CASE("a daemon told to stay awake takes the next request without a doorbell") {
  LocalServerConfig config;
  config.spin_us = 60'000'000;
  Daemon daemon(config);
  HostileClient client(daemon.dir.file("edge.sock"));
  RingProducer producer(client.segment->submit_ring());
  for (uint32_t generation = 1; generation <= 3; ++generation) {
    client.segment->slot(0).word.store(slot_word(generation, SlotPhase::kFilled));
    // Refused, because it names no frame; that is an answer, too.
    const SubmitRecord record{0, generation, 0, 16, 0, 0};
    const PushOutcome pushed = producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1)));
    // The first one may meet a sleeper; all others find the daemon looking.
    if (generation == 1)
      client.theirs->ring();
    else
      CHECK(pushed == PushOutcome::kPushed);
    REQUIRE(daemon.eventually([&] { return daemon.server->stats().requests_taken == generation; }));
  }
}

TEST_CASE("another ABI version is refused with both versions") {
  Daemon daemon;
  HostileClient client(daemon.dir.file("edge.sock"), 77);
  REQUIRE(std::holds_alternative<LocalRefusal>(client.answer));
  CHECK(std::get<LocalRefusal>(client.answer).message.find("ABI 77") != std::string::npos);
}

TEST_CASE("impossible ring positions, slots and records end that session only") {
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  const auto sibling = daemon.client();
  {
    HostileClient client(path);
    client.segment->submit_ring().indices->tail.store(1ULL << 40);
    client.theirs->ring();
    CHECK(client.hung_up());
  }
  {
    HostileClient client(path);
    client.push({0xFFFFFFFF, 1, 0, 0, 0, 0});
    CHECK(client.hung_up());
  }
  {
    HostileClient client(path);  // a slot that was never filled
    client.push({0, 1, client.segment->header().payload_offset, 16, 0, 0});
    CHECK(client.hung_up());
  }
  {
    HostileClient client(path);  // a record that is no submission, and one that is half of it
    RingProducer producer(client.segment->submit_ring());
    const SubmitRecord record{};
    (void)producer.push(kEventRecord, std::as_bytes(std::span(&record, 1)));
    client.theirs->ring();
    CHECK(client.hung_up());
    HostileClient half(path);
    RingProducer short_producer(half.segment->submit_ring());
    (void)short_producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1)).first(8));
    half.theirs->ring();
    CHECK(half.hung_up());
  }
  {
    HostileClient client(path);  // a slot filled anew while its request runs
    Request held = chat("x", "hold");
    held.id = new_request_id();
    const std::vector<std::byte> frame = encode(Submit{held, 1, 0});
    std::memcpy(client.segment->payload().data(), frame.data(), frame.size());
    RingProducer producer(client.segment->submit_ring());
    const uint64_t at = client.segment->header().payload_offset;
    for (uint32_t generation = 1; generation <= 2; ++generation) {
      client.segment->slot(3).word.store(slot_word(generation, SlotPhase::kFilled));
      const SubmitRecord record{3, generation, at, static_cast<uint32_t>(frame.size()), 0, at};
      (void)producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1)));
      client.theirs->ring();
      REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
    }
    CHECK(client.hung_up());
    CHECK(daemon.service.wait_cancelled(1));
  }
  CHECK(daemon.server->stats().sessions_broken == 6);
  const Result<uint32_t> handle = sibling->submit(chat("unharmed"));
  REQUIRE(handle.ok());
  CHECK(answer(collect(*sibling, *handle)) == "unharmed");
}

TEST_CASE("what else is wrong with a record is found although the slot that it names is filled") {
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  const auto sibling = daemon.client();
  const auto ends = [&](uint32_t kind, SubmitRecord record, size_t bytes, uint32_t filled) {
    HostileClient client(path);
    record.frame_offset = client.segment->header().payload_offset;
    if (record.slot < client.segment->header().slot_count)
      client.segment->slot(record.slot).word.store(slot_word(filled, SlotPhase::kFilled));
    std::byte content[2 * sizeof(SubmitRecord)] = {};
    std::memcpy(content, &record, sizeof record);
    RingProducer producer(client.segment->submit_ring());
    (void)producer.push(kind, ByteView(content, bytes));
    client.theirs->ring();
    return client.hung_up();
  };
  CHECK(ends(kEventRecord, {0, 1, 0, 16, 0, 0}, sizeof(SubmitRecord), 1));
  CHECK(ends(kSubmitRecord, {0, 1, 0, 16, 0, 0}, sizeof(SubmitRecord) + 8, 1));
  CHECK(ends(kSubmitRecord, {8, 1, 0, 16, 0, 0}, sizeof(SubmitRecord), 1));  // one past the last
  CHECK(ends(kSubmitRecord, {0, 1, 0, 16, 0, 0}, sizeof(SubmitRecord), 2));  // stale
  CHECK(daemon.server->stats().requests_taken == 0);
  CHECK(daemon.eventually([&] { return daemon.server->stats().sessions == 1; }));
}

TEST_CASE("what a submission names wrongly gets a typed answer, not a read") {
  Daemon daemon;
  HostileClient client(daemon.dir.file("edge.sock"));
  REQUIRE(std::holds_alternative<LocalWelcome>(client.answer));
  RingProducer producer(client.segment->submit_ring());
  RingConsumer consumer(client.segment->complete_ring());
  const uint64_t payload = client.segment->header().payload_offset;
  uint32_t generation = 0;
  // The message of the error that the submission ends with; "" for an answer.
  const auto refusal = [&](SubmitRecord record) -> std::string {
    record.slot = 0;
    record.generation = ++generation;
    client.segment->slot(0).word.store(slot_word(generation, SlotPhase::kFilled));
    REQUIRE(producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1))) !=
            PushOutcome::kFull);
    client.theirs->ring();
    std::optional<std::string> message;
    REQUIRE(daemon.eventually([&] {
      Record event;
      bool ring_producer = false;
      if (!std::move(consumer.pop(event, ring_producer)).value()) return false;
      const Result<PoolMessage> got = decode(ByteView(event.content).subspan(sizeof(EventHeader)));
      REQUIRE(got.ok());
      if (const auto* failed = std::get_if<Failed>(&*got)) message = failed->error.message;
      if (std::holds_alternative<Done>(*got)) message = "";
      return message.has_value();
    }));
    // A moment after the end itself, which the client may act on at once.
    CHECK(daemon.eventually([&] {
      return client.segment->slot(0).word.load() == slot_word(generation, SlotPhase::kDone);
    }));
    return *message;
  };
  const auto says = [](const std::string& message, const char* what) {
    return message.find(what) != std::string::npos;
  };
  std::byte* const area = client.segment->payload().data();
  Request request = chat("", "echo");
  request.id = "hostile";
  const std::vector<std::byte> frame = encode(Submit{request, 1, 0});
  std::memcpy(area, frame.data(), frame.size());
  const auto frame_bytes = static_cast<uint32_t>(frame.size());
  const auto span_at = [&](PartSpan span) {
    std::memcpy(area + 4096, &span, sizeof span);
    return SubmitRecord{0, 0, payload, frame_bytes, 1, payload + 4096};
  };
  std::memcpy(area + 8192, "good", 4);
  std::memcpy(area + 8200, "\xC3\x28", 2);
  CHECK(refusal(span_at({0, 0, payload + 8192, 4})) == "");
  CHECK(says(refusal({0, 0, ~0ULL - 8, 16, 0, 0}), "outside the payload area"));
  CHECK(says(refusal({0, 0, payload - 64, 16, 0, payload}), "outside the payload area"));
  CHECK(says(refusal({0, 0, payload, frame_bytes, 2, payload + (1 << 20) - 24}),
             "outside the payload area"));
  CHECK(says(refusal({0, 0, payload, kFrameBytesMax + 1, 0, payload}), "1048577 frame bytes"));
  CHECK(says(refusal({0, 0, payload, frame_bytes, 65, payload + 4096}), "65 spans"));
  CHECK(refusal({0, 0, payload + 4096, 16, 0, payload}) != "");  // no frame at all
  const auto other_frame = [&](const PoolMessage& message) {
    const std::vector<std::byte> bytes = encode(message);
    std::memcpy(area + 12288, bytes.data(), bytes.size());
    return SubmitRecord{0, 0, payload + 12288, static_cast<uint32_t>(bytes.size()), 0, payload};
  };
  CHECK(says(refusal(other_frame(Cancel{"hostile", 1})), "is no request"));
  Request unfit = chat("x", "echo");
  unfit.id = "hostile";
  unfit.sampling.top_p = 2;
  CHECK(says(refusal(other_frame(Submit{unfit, 1, 0})), "top_p"));
  CHECK(says(refusal(span_at({0, 7, payload + 8192, 4})), "that the request does not have"));
  CHECK(says(refusal(span_at({9, 0, payload + 8192, 4})), "that the request does not have"));
  CHECK(says(refusal(span_at({0, 0, payload + 8200, 2})), "not UTF-8 at byte 0"));
  CHECK(says(refusal(span_at({0, 0, payload + (1 << 20) - 2, 4})), "outside the payload area"));
  CHECK(says(refusal(span_at({0, 0, ~0ULL - 1, 4})), "outside the payload area"));
  CHECK(daemon.server->stats().sessions == 1);
}

TEST_CASE(
    "a client that rewrites its request while the daemon reads it gets an answer or an error, "
    "never more") {
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  HostileClient client(path);
  const std::vector<std::byte> frame = encode(Submit{[] {
                                                       Request request = chat("racing", "echo");
                                                       request.id = new_request_id();
                                                       return request;
                                                     }(),
                                                     1, 0});
  std::span<std::byte> payload = client.segment->payload();
  std::memcpy(payload.data(), frame.data(), frame.size());
  std::atomic<bool> stop = false;
  std::thread mutator([&]() UNCHECKED_RACE {
    for (uint32_t i = 0; !stop; ++i) {
      auto* byte =
          reinterpret_cast<volatile unsigned char*>(payload.data() + i * 7919 % frame.size());
      *byte = static_cast<unsigned char>(*byte + 1);
    }
  });
  RingProducer producer(client.segment->submit_ring());
  RingConsumer consumer(client.segment->complete_ring());
  const uint64_t payload_offset = client.segment->header().payload_offset;
  int ended = 0;
  for (uint32_t generation = 1; generation <= 300; ++generation) {
    client.segment->slot(0).word.store(slot_word(generation, SlotPhase::kFilled));
    const SubmitRecord record{0, generation,    payload_offset, static_cast<uint32_t>(frame.size()),
                              0, payload_offset};
    REQUIRE(producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1))) !=
            PushOutcome::kBroken);
    client.theirs->ring();
    REQUIRE(daemon.eventually([&] {
      Record event;
      bool ring_producer = false;
      while (std::move(consumer.pop(event, ring_producer)).value()) {
        const Result<PoolMessage> message =
            decode(ByteView(event.content).subspan(sizeof(EventHeader)));
        REQUIRE(message.ok());
        if (std::holds_alternative<Done>(*message) || std::holds_alternative<Failed>(*message)) {
          ++ended;
          return true;
        }
      }
      return false;
    }));
  }
  stop = true;
  mutator.join();
  CHECK(ended == 300);
  CHECK(daemon.server->stats().sessions == 1);
}

TEST_CASE(
    "a client that rewrites header, rings, slots and payload all the time hurts only itself") {
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  const auto sibling = daemon.client();
  const std::vector<std::byte> frame = encode(Submit{[] {
                                                       Request request = chat("", "echo");
                                                       request.id = new_request_id();
                                                       return request;
                                                     }(),
                                                     1, 0});
  for (uint32_t round = 0; round < 40; ++round) {
    HostileClient client(path);
    REQUIRE(std::holds_alternative<LocalWelcome>(client.answer));
    const SegmentHeader header = client.segment->header();
    std::byte* base = client.segment->payload().data() - header.payload_offset;
    std::memcpy(client.segment->payload().data(), frame.data(), frame.size());
    const PartSpan span{0, 0, header.payload_offset + 4096, 20000, SpanTarget::kPart, 0};
    std::memcpy(client.segment->payload().data() + 2048, &span, sizeof span);
    std::atomic<bool> stop = false;
    // Each round aims at another area: 0 header, 1 submission ring, 2 slots, 3 frame, spans,
    // payload.
    const uint64_t from[] = {0, header.submit_offset, header.slots_offset, header.payload_offset};
    const uint64_t bytes[] = {sizeof(SegmentHeader), sizeof(RingIndices) + 256,
                              header.slot_count * sizeof(SlotState), 4096 + 20000};
    std::thread mutator([&]() UNCHECKED_RACE {
      std::minstd_rand random(round + 1);
      while (!stop) {
        auto* at = reinterpret_cast<volatile uint64_t*>(base + from[round % 4] +
                                                        random() % (bytes[round % 4] / 8) * 8);
        const uint64_t kept = *at;
        *at = random() % 2 == 0 ? ~0ULL - random() % 64 : uint64_t{random()};
        // Half of the lies last only for a moment: between the daemon's check and its use, say.
        if (random() % 2 == 0) *at = kept;
      }
    });
    RingProducer producer(client.segment->submit_ring());
    for (uint32_t generation = 1; generation <= 50; ++generation) {
      client.segment->slot(generation % 8).word.store(slot_word(generation, SlotPhase::kFilled));
      const SubmitRecord record{generation % 8,
                                generation,
                                header.payload_offset,
                                static_cast<uint32_t>(frame.size()),
                                1,
                                header.payload_offset + 2048};
      if (producer.push(kSubmitRecord, std::as_bytes(std::span(&record, 1))) ==
          PushOutcome::kBroken)
        break;
      client.theirs->ring();
    }
    stop = true;
    mutator.join();
  }
  const Result<uint32_t> handle = sibling->submit(chat("unharmed"));
  REQUIRE(handle.ok());
  CHECK(answer(collect(*sibling, *handle)) == "unharmed");
  CHECK(daemon.eventually([&] { return daemon.server->stats().sessions == 1; }));
}

TEST_CASE("another user is refused, whatever the socket's mode says") {
  if (getuid() != 0) {
    MESSAGE("skipped: only root can become somebody else");
    return;
  }
  testing::EarlyChild child([](const std::string& path) {
    if (setresuid(65534, 65534, 65534) != 0) return 2;
    LocalClientOptions options;
    options.socket_path = path;
    options.payload_bytes = 256 << 10;
    const auto client = LocalClient::connect(options);
    return client.message().find("user 65534 may not use this daemon") != std::string::npos ? 0 : 1;
  });
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  REQUIRE(chmod(daemon.dir.path().c_str(), 0755) == 0);
  REQUIRE(chmod(path.c_str(), 0666) == 0);
  child.begin(path);
  const int status = child.wait();
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(daemon.server->stats().sessions_refused == 1);
}
