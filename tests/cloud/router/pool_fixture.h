// A pool on a virtual clock for tests of the router's core: nodes are a few numbers, time is an
// integer, and everything the core decides is kept for the test to look at.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cloud/router/core.h"
#include "common/base/clock.h"

namespace updraft::test {

inline constexpr const char* kModel = "demo";

struct FakeNode {
  NodeHello hello;
  NodeBeat beat;  // what its next beat says; seq and last_assignment_seq are kept by the pool
  PeerInfo peer;
  bool beating = true;
  bool grants = false;            // its beats and ends carry credit: what the beat shows free
  int32_t granted_max = 1 << 20;  // of its free slots
  uint64_t arrived = 0;           // slots of the Submits of this session
  uint64_t grant_epoch = 0;
  int64_t next_beat_ns = 0;
  std::vector<Submit> work;  // Submits it was sent
  std::vector<Cancel> cancels;
  std::vector<PoolMessage> other;  // everything else
};

class PoolFixture {
 public:
  explicit PoolFixture(RouterCoreConfig config = {})
      : core(std::move(config), kStartNs), now_ns(kStartNs) {}

  static constexpr int64_t kStartNs = 1'000'000 * kNsPerMs;
  RouterCore core;
  int64_t now_ns;
  std::map<std::string, FakeNode> nodes;
  std::map<ClientId, std::vector<Event>> events;
  std::function<void(FakeNode&, const Submit&)> on_work;  // called as the core decides it

  FakeNode& add(const std::string& id, Tier tier, int32_t context_tokens, int32_t slots = 4,
                const std::string& model = kModel) {
    FakeNode& node = nodes[id];
    node.hello.node_id = id;
    node.hello.boot_epoch = 1;
    node.hello.tier = tier;
    node.hello.device = "test";
    ModelInfo info;
    info.id = model;
    info.context_tokens = context_tokens;
    node.hello.models = {info};
    node.peer = {"peer-" + id, "key-" + id, id};
    node.beat.boot_epoch = 1;
    node.beat.interval_ms = tier == Tier::kEdge ? 250 : 100;
    node.beat.lease_ttl_ms = 2000;
    node.beat.state = NodeState::kReady;
    node.beat.slots_total = node.beat.slots_free = slots;
    node.beat.kv_tokens_total = node.beat.kv_tokens_free =
        static_cast<int64_t>(slots) * context_tokens;
    return node;
  }
  // Added, announced, and known by one beat.
  FakeNode& join(const std::string& id, Tier tier, int32_t context_tokens, int32_t slots = 4,
                 const std::string& model = kModel) {
    FakeNode& node = add(id, tier, context_tokens, slots, model);
    say(node, node.hello);
    beat(node);
    tick();
    return node;
  }
  // A pool past its first seconds.
  void settle() { advance_ms(4000); }

  void say(FakeNode& node, PoolMessage message) {
    Actions out;
    core.on_message(node.peer, std::move(message), now_ns, out);
    take(std::move(out));
  }
  void beat(FakeNode& node) {
    ++node.beat.seq;
    node.next_beat_ns = now_ns + node.beat.interval_ms * kNsPerMs;
    node.beat.credit.reset();
    if (node.grants) node.beat.credit = credit(node);
    say(node, node.beat);
  }
  static Credit credit(FakeNode& node) {
    return {++node.grant_epoch, node.arrived, std::min(node.beat.slots_free, node.granted_max),
            node.beat.kv_tokens_free, 600};
  }
  void tick() {
    Actions out;
    core.on_tick(now_ns, out);
    take(std::move(out));
  }
  void advance_ms(int64_t ms) {
    const int64_t until_ns = now_ns + ms * kNsPerMs;
    while (now_ns < until_ns) {
      now_ns += 10 * kNsPerMs;
      for (auto& [id, node] : nodes) {
        if (node.beating && now_ns >= node.next_beat_ns) beat(node);
      }
      tick();
    }
  }

  static Request chat(const std::string& id, size_t text_bytes, const std::string& model = kModel) {
    Request request;
    request.id = id;
    request.model = model;
    ChatMessage message;
    message.role = "user";
    ContentPart part;
    part.text = std::string(text_bytes, 'a');
    message.parts.push_back(std::move(part));
    request.messages.push_back(std::move(message));
    request.sampling.max_tokens = 16;
    return request;
  }
  ClientId submit(Request request) {
    const ClientId client = ++last_client_;
    events[client];
    Actions out;
    core.submit(std::move(request), client, now_ns, out);
    take(std::move(out));
    return client;
  }
  void cancel(const RequestId& id) {
    Actions out;
    core.cancel(id, now_ns, out);
    take(std::move(out));
  }

  // --- a node's answers to its oldest or a given Submit ---
  static Accepted accepted(const Submit& submit, int32_t prompt_tokens = 10) {
    return Accepted{submit.request.id, submit.epoch, prompt_tokens, {}};
  }
  static Tokens tokens(const Submit& submit, int32_t offset, std::vector<int32_t> ids,
                       bool last = false, int32_t choice = 0) {
    TokenChunk chunk;
    chunk.choice = choice;
    chunk.offset = offset;
    chunk.ids = std::move(ids);
    chunk.text = "x";
    if (last) chunk.finish = FinishReason::kStop;
    Tokens message{submit.request.id, submit.epoch, {}};
    message.chunks.push_back(std::move(chunk));
    return message;
  }
  static Done done(const Submit& submit) { return Done{submit.request.id, submit.epoch, {}}; }
  static Rejected rejected(const Submit& submit, ErrorCode code, int32_t prompt_tokens = 0,
                           int32_t limit_tokens = 0) {
    RequestError error;
    error.code = code;
    error.message = "test";
    error.prompt_tokens = prompt_tokens;
    error.limit_tokens = limit_tokens;
    return Rejected{submit.request.id, submit.epoch, error};
  }
  static Failed failed(const Submit& submit, ErrorCode code) {
    RequestError error;
    error.code = code;
    error.message = "test";
    return Failed{submit.request.id, submit.epoch, error};
  }
  // Accepts and answers completely with three tokens.
  void serve(FakeNode& node, const Submit& submit) {
    const Submit copy = submit;
    say(node, accepted(copy));
    for (int32_t choice = 0; choice < total_choices(copy.request); ++choice) {
      say(node, tokens(copy, 0, {1, 2}, false, choice));
      say(node, tokens(copy, 2, {3}, true, choice));
    }
    Done last = done(copy);
    if (node.grants) last.credit = credit(node);
    say(node, last);
  }

  // --- what a client saw ---
  template <typename T>
  std::vector<T> seen(ClientId client) const {
    std::vector<T> out;
    for (const Event& event : events.at(client)) {
      if (const T* value = std::get_if<T>(&event)) out.push_back(*value);
    }
    return out;
  }
  int ends(ClientId client) const {
    return static_cast<int>(
        std::count_if(events.at(client).begin(), events.at(client).end(), is_end));
  }
  bool finished(ClientId client) const {
    return seen<Finished>(client).size() == 1 && ends(client) == 1;
  }
  // The error that ended it, or one with an impossible message.
  RequestError error(ClientId client) const {
    const std::vector<RequestError> errors = seen<RequestError>(client);
    if (errors.size() == 1 && ends(client) == 1) return errors[0];
    RequestError none;
    none.message = "(not ended by one error)";
    return none;
  }

  void take(Actions out) {
    std::vector<FakeNode*> told_anew;
    for (Action& action : out) {
      if (auto* deliver = std::get_if<Deliver>(&action)) {
        events[deliver->client].push_back(std::move(deliver->event));
        continue;
      }
      auto& send = std::get<Send>(action);
      for (auto& [id, node] : nodes) {
        if (node.peer.peer != send.peer) continue;
        if (auto* submit = std::get_if<Submit>(&send.message)) {
          if (on_work) on_work(node, *submit);
          node.beat.last_assignment_seq =
              std::max(node.beat.last_assignment_seq, submit->assignment_seq);
          node.arrived += static_cast<uint64_t>(submit->slots);
          node.work.push_back(std::move(*submit));
        } else if (auto* cancel = std::get_if<Cancel>(&send.message)) {
          node.cancels.push_back(std::move(*cancel));
        } else {
          const auto* welcome = std::get_if<Welcome>(&send.message);
          if (welcome != nullptr && welcome->router_epoch != 1) told_anew.push_back(&node);
          node.other.push_back(std::move(send.message));
        }
      }
    }
    // As nodes do when the router's epoch changes.
    for (FakeNode* node : told_anew) say(*node, node->hello);
  }

 private:
  ClientId last_client_ = 0;
};

}  // namespace updraft::test
