// A node made of the pool's protocol alone, over a real socket.
#pragma once

#include <doctest/doctest.h>
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/clock.h"
#include "common/message/chunker.h"
#include "common/message/pool_message.h"
#include "common/net/pool_socket.h"
#include "test_router.h"

namespace updraft::test {

// Its thread owns the socket; what a test wants of it goes
// through `edit`.
class WireNode {
 public:
  // kHold: nothing is said to a request before the mood changes.
  enum class Mood { kAnswer, kStall, kTooLong, kFail, kHold };

  WireNode(TestRouter& router, CurveKeys keys, const std::string& id, Tier tier,
           int32_t context_tokens)
      : WireNode(router.router().pool_endpoint(), router.public_key(), std::move(keys), id, tier,
                 context_tokens) {}
  WireNode(std::string endpoint, std::string router_key, CurveKeys keys, const std::string& id,
           Tier tier, int32_t context_tokens)
      : endpoint_(std::move(endpoint)), router_key_(std::move(router_key)), keys_(std::move(keys)) {
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
  // Says hello as a new life of its own, on the connection that it has.
  void live_again() { again_.store(true); }
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
      if (mood_.load() != Mood::kHold) {
        for (const Submit& submit : std::exchange(held_, {})) answer(submit);
      }
      connected_.store(dialer_->connected());
      if (dialer_->connected() && dialer_->connection_count() != session) {
        session = dialer_->connection_count();
        out_.clear();
        reader_.clear();
        out_.push_urgent(hello_);
      }
      if (again_.exchange(false)) {
        out_.clear();
        held_.clear();
        counted_ = 0;
        ++hello_.boot_epoch;
        const std::lock_guard lock(mutex_);
        beat_.boot_epoch = hello_.boot_epoch;
        beat_.seq = 0;
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
    if (mood_.load() == Mood::kHold)
      held_.push_back(submit);
    else
      answer(submit);
  }
  void answer(const Submit& submit) {
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
  PoolDialer* dialer_ = nullptr;  // of the node's thread, as are the next five
  std::vector<Submit> held_;
  SendQueue out_;
  MessageReader reader_;
  uint64_t counted_ = 0;
  uint64_t router_epoch_ = 0;
  std::mutex mutex_;
  NodeBeat beat_;  // guarded by mutex_
  std::atomic<Mood> mood_{Mood::kAnswer};
  std::atomic<bool> stop_{false};
  std::atomic<bool> again_{false};
  std::atomic<bool> connected_{false};
  std::atomic<bool> welcomed_{false};
  std::atomic<int> works_{0};
  std::atomic<int> cancels_{0};
  std::atomic<size_t> largest_prompt_bytes_{0};
  std::thread thread_;
};

struct StartedRouter {
  StartedRouter() { router.start(); }
  TestRouter router;
};

// One cloud node, ready.
struct CloudPool : StartedRouter {
  explicit CloudPool(int32_t context_tokens = 4096)
      : cloud(router, router.allow("cloud-1"), "cloud-1", Tier::kCloud, context_tokens) {
    REQUIRE(router.wait_for("cloud-1", "fresh"));
  }
  WireNode cloud;
};

// Edge (512 tokens) and cloud (4,096) under one name, both ready.
struct DemoPool : CloudPool {
  DemoPool() : edge(router, router.allow("edge-1"), "edge-1", Tier::kEdge, 512) {
    REQUIRE(router.wait_for("edge-1", "fresh"));
  }
  WireNode edge;
};

}  // namespace updraft::test
