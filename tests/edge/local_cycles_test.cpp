// What many sessions leave behind: nothing. Clients that connect, submit and are killed at any
// moment, and a thousand that sit idle.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "common/base/clock.h"
#include "common/ipc/doorbell.h"
#include "common/ipc/unix_socket.h"
#include "common/message/handshake.h"
#include "edge/client/local_client.h"
#include "edge/local_server.h"
#include "tests/support/early_child.h"
#include "tests/support/shared_data.h"

using namespace updraft;

namespace {

// Answers every second request at once and keeps the others until they are cancelled.
class HalfService final : public InferenceService {
 public:
  void submit(Request request, EventSink sink) override {
    sink(Started{});
    {
      const std::lock_guard lock(mutex_);
      if (++count_ % 2 == 0) {
        held_[request.id] = std::move(sink);
        return;
      }
    }
    TokenChunk chunk;
    chunk.ids = {1};
    chunk.text = std::string(2000, 'a');
    sink(std::move(chunk));
    sink(Finished{});
  }
  void cancel(const RequestId& id) override {
    EventSink sink;
    {
      const std::lock_guard lock(mutex_);
      const auto it = held_.find(id);
      if (it == held_.end()) return;
      sink = std::move(it->second);
      held_.erase(it);
    }
    RequestError error;
    error.code = ErrorCode::kCancelled;
    sink(error);
  }
  std::vector<ModelInfo> models() const override { return {}; }
  bool ready(std::string*) const override { return true; }
  size_t held() {
    const std::lock_guard lock(mutex_);
    return held_.size();
  }

 private:
  std::mutex mutex_;
  int count_ = 0;
  std::map<RequestId, EventSink> held_;
};

// The address sanitizer keeps freed memory for a while.
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kGrowthKibMax = 256 * 1024;
#else
constexpr int64_t kGrowthKibMax = 4096;
#endif

template <typename Condition>
bool eventually(Condition done) {
  const int64_t deadline_ns = monotonic_ns() + 20 * kNsPerSecond;
  while (!done()) {
    if (monotonic_ns() > deadline_ns) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

size_t entries_of(const char* folder) {
  size_t count = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    (void)entry;
    ++count;
  }
  return count;
}

size_t mapped_segments() {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    // Sessions' own segments and further ones.
    count += line.find("updraft-session") != std::string::npos ||
                     line.find("updraft-payload") != std::string::npos
                 ? 1
                 : 0;
  }
  return count;
}

int64_t anonymous_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("RssAnon:", 0) == 0) return std::atoll(line.c_str() + 8);
  }
  return 0;
}

int64_t cpu_us() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL + usage.ru_utime.tv_usec +
         usage.ru_stime.tv_usec;
}

// One client's life in its own process: connects, submits and reads for as long as it is let.
[[noreturn]] void live(const std::string& socket_path, uint32_t seed) {
  std::mt19937 random(seed);
  LocalClientOptions options;
  options.socket_path = socket_path;
  options.payload_bytes = 128 << 10;
  Result<std::unique_ptr<LocalClient>> client = LocalClient::connect(options);
  if (!client) _exit(1);
  for (;;) {
    Request request;
    request.model = "half";
    ContentPart part;
    part.text = std::string(random() % 3 == 0 ? 20000 : 10, 'c');
    request.messages.push_back({"user", {part}});
    const auto handle = (*client)->submit(std::move(request));
    if (handle && random() % 4 == 0) (*client)->cancel(*handle);
    if (!(*client)->next(static_cast<int>(random() % 2))) _exit(2);
  }
}

}  // namespace

// $UPDRAFT_KILL_CYCLES: how many (200 when it is not set).
TEST_CASE(
    "clients killed at random moments leave no descriptor, no map, no request and no file (Triton "
    "#2274, Triton #7481)") {
  const char* asked = std::getenv("UPDRAFT_KILL_CYCLES");
  const int cycles = asked != nullptr ? std::atoi(asked) : 200;
  const testing::TempDir dir;
  HalfService service;
  LocalServerConfig config;
  config.socket_path = dir.file("edge.sock");
  auto server = std::move(LocalServer::start(config, service)).value();
  const size_t files = entries_of("/dev/shm");
  size_t descriptors = 0;
  int64_t anonymous = 0;
  std::mt19937 random(11);
  for (int cycle = 0; cycle < cycles; ++cycle) {
    const pid_t child = fork();
    if (child == 0) live(config.socket_path, static_cast<uint32_t>(cycle));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 6000));
    kill(child, SIGKILL);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK_MESSAGE(WIFSIGNALED(status), "the client gave up by itself: ", WEXITSTATUS(status));
    // The baseline is what the first cycles left: caches of allocator and libraries.
    if (cycle == cycles / 10) {
      REQUIRE(eventually([&] { return server->stats().sessions == 0; }));
      descriptors = entries_of("/proc/self/fd");
      anonymous = anonymous_kib();
    }
  }
  REQUIRE(eventually([&] { return server->stats().sessions == 0; }));
  // A session is gone before what it had asked for is: the service lets go of its memory last.
  CHECK(eventually([&] { return service.held() == 0 && server->stats().mapped_bytes == 0; }));
  CHECK(server->stats().requests_taken > cycles / 4);
  CHECK(server->stats().requests_in_flight == 0);
  CHECK(server->stats().sessions_broken == 0);
  CHECK(eventually([&] { return mapped_segments() == 0; }));
  CHECK(eventually([&] { return entries_of("/proc/self/fd") <= descriptors; }));
  CHECK(entries_of("/dev/shm") == files);
  CHECK(anonymous_kib() - anonymous < kGrowthKibMax);
}

TEST_CASE("a thousand idle sessions cost at most 40 KiB each and no CPU") {
  constexpr int kSessions = 1000;
  rlimit limit{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  if (limit.rlim_cur < 5 * kSessions) {
    MESSAGE("skipped: this system allows ", limit.rlim_cur, " descriptors");
    return;
  }
  int gate[2];
  REQUIRE(pipe(gate) == 0);
  testing::EarlyChild child([&](const std::string& path) {
    // One small segment for all of them: the daemon maps and keeps each on its own.
    using namespace ipc;
    const auto segment = std::move(Segment::create(SegmentShape{4096, 65536, 8, 1 << 18})).value();
    const Doorbell mine = std::move(Doorbell::create()).value();
    const Doorbell theirs = std::move(Doorbell::create()).value();
    std::vector<UniqueFd> sockets;
    for (int i = 0; i < kSessions; ++i) {
      sockets.push_back(std::move(connect_unix(path)).value());
      const LocalHello hello{kAbiVersion, kLocalProtocolVersion, "idle"};
      if (!send_message(sockets.back(), encode_handshake(hello),
                        {segment->fd(), mine.fd(), theirs.fd()})
               .ok())
        return 1;
      if (std::move(receive_message(sockets.back(), 10000)).value().bytes.empty()) return 2;
    }
    char byte = 0;
    [[maybe_unused]] const ssize_t got = read(gate[0], &byte, 1);
    return 0;
  });
  const testing::TempDir dir;
  HalfService service;
  LocalServerConfig config;
  config.socket_path = dir.file("edge.sock");
  config.sessions_max = config.sessions_per_uid_max = kSessions;
  config.segment_bytes_per_uid_max = 1LL << 30;
  auto server = std::move(LocalServer::start(config, service)).value();
  const int64_t before_kib = anonymous_kib();
  child.begin(config.socket_path);
  REQUIRE(eventually([&] { return server->stats().sessions == kSessions; }));
  const int64_t each_kib = (anonymous_kib() - before_kib) / kSessions;
  CHECK(each_kib <= 40);
  MESSAGE("anonymous memory per session: ", each_kib, " KiB");
  const int64_t cpu_before_us = cpu_us();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  CHECK(cpu_us() - cpu_before_us < 4000);  // this thread's look at the clock included
  REQUIRE(write(gate[1], "x", 1) == 1);
  CHECK(WEXITSTATUS(child.wait()) == 0);
  CHECK(eventually([&] { return server->stats().sessions == 0; }));
  CHECK(mapped_segments() == 0);
  close(gate[0]);
  close(gate[1]);
}
