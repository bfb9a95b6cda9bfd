// A router with its keys in a folder of its own, on ports of its own, and what tests of it share.
#pragma once

#include <doctest/doctest.h>
#include <stdlib.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "cloud/router/router.h"
#include "common/base/clock.h"
#include "common/http/client.h"
#include "common/net/pool_socket.h"
#include "tests/support/fake_memory.h"

namespace updraft::test {

inline constexpr int kWaitMs = 10'000;

// Waits for something to become true; false when it did not in time.
inline bool eventually(const std::function<bool()>& condition, int wait_ms = kWaitMs) {
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
    config_.memory_root = memory_.root();
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
  testing::FakeMemory& memory() { return memory_; }
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

  testing::FakeMemory memory_;
  std::string folder_;
  CurveKeys router_keys_;
  std::map<std::string, CurveKeys> known_;
  RouterConfig config_;
  std::unique_ptr<Router> router_;
};

inline std::string chat_body(size_t text_bytes, bool stream = false, int max_tokens = 16) {
  return "{\"model\":\"demo\",\"max_tokens\":" + std::to_string(max_tokens) +
         ",\"stream\":" + (stream ? "true" : "false") +
         ",\"messages\":[{\"role\":\"user\",\"content\":\"" + std::string(text_bytes, 'a') +
         "\"}]}";
}

inline const std::string kChat = "/v1/chat/completions";

}  // namespace updraft::test
