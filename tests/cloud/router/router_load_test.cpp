// The router under numbers: a thousand clients at one moment, and thousands of requests one after
// the other.
#include <doctest/doctest.h>
#include <malloc.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/log/log.h"
#include "tests/common/http/http_fixture.h"
#include "tests/support/resident_memory.h"
#include "wire_node.h"

using namespace updraft;
using namespace updraft::test;
using testing::RawSocket;

namespace {

constexpr int kSlots = 1024;

// A line for each of thousands of requests is nothing to read.
struct QuietLog {
  QuietLog() {
    LogConfig config;
    config.level = LogLevel::kWarn;
    REQUIRE(configure_log(config).ok());
  }
  ~QuietLog() { (void)configure_log({}); }
};

// A node with room for all of them.
struct WidePool : QuietLog, CloudPool {
  WidePool() {
    cloud.edit([](NodeBeat& beat) {
      beat.slots_total = beat.slots_free = kSlots;
      beat.kv_tokens_total = beat.kv_tokens_free = kSlots * 4096LL;
    });
  }
};

// Sockets that this process may have for clients: each has two ends here.
int clients_max(int wanted) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  return std::min(wanted, static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 100'000) / 2) - 100);
}

int64_t anonymous_kib() {
  malloc_trim(0);
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return std::stoll(line.substr(8));
  }
  return 0;
}

}  // namespace

TEST_CASE("a thousand requests that run at one moment are all answered (production-stack #448)") {
  WidePool pool;
  pool.cloud.set_mood(WireNode::Mood::kHold);
  const int count = clients_max(1000);
  std::vector<std::unique_ptr<RawSocket>> clients;
  for (int i = 0; i < count; ++i) {
    clients.push_back(std::make_unique<RawSocket>(pool.router.router().http_port()));
    REQUIRE(clients.back()->send_all(
        testing::raw_post(kChat, chat_body(60, i % 2 == 0), "Connection: close\r\n")));
  }
  REQUIRE(eventually([&] { return pool.cloud.works() == count; }, 60'000));
  // All of them wait in the node now; others are served meanwhile.
  CHECK(pool.router.client().get("/readyz")->status == 200);
  pool.cloud.set_mood(WireNode::Mood::kAnswer);
  int answered = 0;
  for (auto& client : clients) {
    if (!client->read_to_end(60'000)) break;
    const std::string& text = client->received();
    answered += text.starts_with("HTTP/1.1 200") && text.find("one ") != std::string::npos &&
                text.find("three") != std::string::npos &&
                text.find("\"finish_reason\":\"stop\"") != std::string::npos;
  }
  CHECK(answered == count);
  CHECK(pool.cloud.works() == count);
  CHECK(pool.router.state_of("cloud-1") == "fresh");
}

TEST_CASE("thousands of requests leave no memory behind in the router (LiteLLM #27954)") {
  WidePool pool;
  // Each brings 2 KiB of text and a session, every fourth streams, every eighth leaves early, every
  // sixteenth asks for what is not there.
  std::atomic<int> good{0};
  const auto ask = [&](int count) {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (int i = t; i < count; i += 4) {
          const HttpClient client =
              pool.router.client({{"x-updraft-session", "s" + std::to_string(i % 100)}});
          if (i % 16 == 5) {
            std::string body = chat_body(2048);
            body.replace(body.find("demo"), 4, "m" + std::to_string(i));
            const auto answer = client.post_json(kChat, body);
            good += answer.ok() && answer->status >= 400;
          } else if (i % 4 == 0) {
            const auto done = client.post_events(kChat, chat_body(2048, true),
                                                 [&](std::string_view) { return i % 8 != 0; });
            good += done.ok();
          } else {
            const auto answer = client.post_json(kChat, chat_body(2048));
            good += answer.ok() && answer->status == 200;
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  };
  constexpr int kWarm = 1500;
  constexpr int kMore = 6000;
  ask(kWarm);
  const int64_t before_kib = anonymous_kib();
  ask(kMore);
  const int64_t grown_kib = anonymous_kib() - before_kib;
  std::printf("%d requests: %lld KiB more\n", kMore, static_cast<long long>(grown_kib));
  CHECK(good.load() == kWarm + kMore);
  // A sixth of what keeping the requests' text alone would take.
  if (testing::kMemoryIsMeant) CHECK(grown_kib < 2048);
}
