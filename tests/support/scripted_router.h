// The router's end of the pool, written by hand: welcomes nodes, keeps what they say, sends what
// the test wants. Driven by the test's thread.
#pragma once

#include <doctest/doctest.h>
#include <poll.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/message/chunker.h"
#include "common/net/pool_socket.h"

namespace updraft::testing {

struct ScriptedRouter {
  std::unique_ptr<NetContext> context = NetContext::create();
  CurveKeys keys = new_curve_keys();
  CurveKeys node_keys = new_curve_keys();
  std::unique_ptr<PoolListener> listener;
  uint64_t epoch = 1;
  int32_t echo_ms = 0;  // what it promises
  bool echoes = false;  // and whether it keeps to it
  bool grants = false;  // it asks for grants
  std::string peer;
  std::map<std::string, MessageReader> readers;
  std::vector<NodeHello> hellos;
  std::vector<NodeBeat> beats;
  std::vector<PoolMessage> got;  // everything but hellos and beats
  SendQueue out;

  void bind(const std::string& endpoint = "tcp://127.0.0.1:0") {
    auto made = PoolListener::bind(*context, endpoint, keys, {{"edge-1", node_keys.public_key}});
    REQUIRE_MESSAGE(made.ok(), made.message());
    listener = std::move(*made);
  }
  void turn() {
    while (listener->receive(64, [&](PoolListener::Inbound&& in) {
      auto message = readers[in.peer].add(in.frame);
      REQUIRE_MESSAGE(message.ok(), message.message());
      if (!message->has_value()) return;
      if (auto* hello = std::get_if<NodeHello>(&**message)) {
        hellos.push_back(*hello);
        peer = in.peer;
        out.clear();
        out.push_urgent(
            Welcome{"router", epoch, {{"big", "", "", 32768, 0, false}}, grants, echo_ms});
      } else if (auto* beat = std::get_if<NodeBeat>(&**message)) {
        beats.push_back(*beat);
        if (echoes) out.push_urgent(Echo{beat->seq});
      } else {
        got.push_back(std::move(**message));
      }
    }) > 0) {
    }
    while (const auto* frame = out.front()) {
      if (!listener->send(peer, *frame)) break;
      out.pop();
    }
  }
  bool run_until(const std::function<bool()>& done, int seconds = 15) {
    const int64_t end_ns = monotonic_ns() + seconds * kNsPerSecond;
    while (monotonic_ns() < end_ns) {
      if (listener) turn();
      if (done()) return true;
      pollfd item{listener ? listener->poll_fd() : -1, POLLIN, 0};
      poll(&item, 1, 10);
    }
    return false;
  }
  template <typename T>
  const T* find(const RequestId& id) const {
    for (const PoolMessage& message : got) {
      if (const T* m = std::get_if<T>(&message); m != nullptr && m->id == id) return m;
    }
    return nullptr;
  }
  const Submit* find_submit(const RequestId& id) const {
    for (const PoolMessage& message : got) {
      if (const Submit* m = std::get_if<Submit>(&message); m != nullptr && m->request.id == id)
        return m;
    }
    return nullptr;
  }
  void send(const RequestId& id, const PoolMessage& message) { REQUIRE(out.push(id, message)); }
};

}  // namespace updraft::testing
