// The link's decisions without sockets or clocks: everything that begins ends exactly once,
// whatever order things come in.
#include "common/pool/link_core.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.h"

using namespace updraft;

namespace {

constexpr int64_t kStartNs = 1000 * kNsPerSecond;

Request chat(const std::string& id) {
  Request r;
  r.id = id;
  r.messages = {{"user", {{ContentPart::Kind::kText, "hi", "", ""}}}};
  return r;
}

TokenChunk chunk(int32_t offset, std::vector<int32_t> ids, std::string text, int32_t choice = 0) {
  TokenChunk c;
  c.choice = choice;
  c.offset = offset;
  c.ids = std::move(ids);
  c.text = std::move(text);
  return c;
}

RequestError error(ErrorCode code) {
  RequestError e;
  e.code = code;
  e.message = "because";
  return e;
}

// Drives a core and keeps what came out of it.
struct Harness {
  LinkCore core;
  int64_t now_ns = kStartNs;
  std::vector<PoolMessage> sent;
  std::vector<LinkCore::SubmitLocal> submitted;
  std::vector<RequestId> cancelled;
  MessageReader reader;

  explicit Harness(LinkCoreConfig config = default_config()) : core(std::move(config)) {}

  static LinkCoreConfig default_config() {
    LinkCoreConfig config;
    config.hello.node_id = "edge-1";
    config.hello.boot_epoch = 7;
    return config;
  }

  void settle() {
    for (int round = 0; round < 10; ++round) {
      for (LinkCore::Effect& effect : core.take_effects()) {
        if (auto* submit = std::get_if<LinkCore::SubmitLocal>(&effect)) {
          submitted.push_back(std::move(*submit));
        } else if (auto* cancel = std::get_if<LinkCore::CancelLocal>(&effect)) {
          cancelled.push_back(cancel->id);
        } else {
          auto& deliver = std::get<LinkCore::Deliver>(effect);
          deliver.sink(std::move(deliver.event));
        }
      }
      core.pump();
      while (const auto* frame = core.outgoing().front()) {
        auto message = reader.add(*frame);
        REQUIRE_MESSAGE(message.ok(), message.message());
        core.outgoing().pop();
        if (message->has_value()) sent.push_back(std::move(**message));
      }
    }
  }
  void hear(const PoolMessage& message) {
    REQUIRE(core.on_frame(encode(message), now_ns).ok());
    settle();
  }
  void join(uint64_t router_epoch = 1) {
    core.set_state(NodeState::kReady, now_ns);
    core.on_connected(now_ns);
    hear(Welcome{"router", router_epoch, {{"big", "", "", 32768, 0, false}}});
    sent.clear();
  }
  // A router that keeps to grants; the node has said what it has.
  void join_granting(int32_t slots) {
    core.set_state(NodeState::kReady, now_ns);
    core.on_connected(now_ns);
    hear(Welcome{"router", 1, {}, true});
    beat(slots, slots);
  }
  Credit beat(int32_t slots_total, int32_t slots_free) {
    sent.clear();
    NodeBeat load;
    load.slots_total = slots_total;
    load.slots_free = slots_free;
    load.running = slots_total - slots_free;
    load.kv_tokens_total = load.kv_tokens_free = 1000;
    core.send_beat(load, now_ns);
    settle();
    REQUIRE(all<NodeBeat>().size() == 1);
    REQUIRE(all<NodeBeat>()[0].credit);
    return *all<NodeBeat>()[0].credit;
  }
  void local(const LinkCore::SubmitLocal& work, Event event) {
    core.on_local_event(work.request.id, work.serial, std::move(event), now_ns);
    settle();
  }
  template <typename T>
  std::vector<T> all() const {
    std::vector<T> out;
    for (const PoolMessage& message : sent) {
      if (const T* m = std::get_if<T>(&message)) out.push_back(*m);
    }
    return out;
  }
};

// The events of one risen request.
struct Events {
  std::vector<Event> list;
  EventSink sink() {
    return [this](Event event) { list.push_back(std::move(event)); };
  }
  int end_count() const {
    return static_cast<int>(
        std::count_if(list.begin(), list.end(), [](const Event& e) { return is_end(e); }));
  }
  ErrorCode error_code() const {
    REQUIRE_FALSE(list.empty());
    REQUIRE(std::holds_alternative<RequestError>(list.back()));
    return std::get<RequestError>(list.back()).code;
  }
  std::string text() const {
    std::string out;
    for (const Event& event : list) {
      if (const auto* c = std::get_if<TokenChunk>(&event)) out += c->text;
    }
    return out;
  }
};

}  // namespace

TEST_CASE("a connection begins with hello, repeated until the welcome") {
  Harness h;
  h.core.on_connected(h.now_ns);
  h.settle();
  REQUIRE(h.all<NodeHello>().size() == 1);
  CHECK(h.all<NodeHello>()[0].node_id == "edge-1");
  CHECK_FALSE(h.core.welcomed());
  h.core.tick(h.now_ns + kNsPerSecond / 2);
  h.settle();
  CHECK(h.all<NodeHello>().size() == 1);
  h.core.tick(h.now_ns + kNsPerSecond);
  h.settle();
  CHECK(h.all<NodeHello>().size() == 2);
  h.hear(Welcome{"r", 1, {}});
  CHECK(h.core.welcomed());
  h.core.tick(h.now_ns + 10 * kNsPerSecond);
  h.settle();
  CHECK(h.all<NodeHello>().size() == 2);
}

TEST_CASE("beats come at the interval, at once after the welcome, and soon after a change") {
  Harness h;
  CHECK_FALSE(h.core.beat_due(h.now_ns));
  h.join();
  CHECK(h.core.beat_due(h.now_ns));
  NodeBeat load;
  load.slots_total = 4;
  load.slots_free = 9;
  load.prefill_tokens_per_s = std::numeric_limits<float>::quiet_NaN();
  load.cpu_load = 3.0F;
  h.core.send_beat(load, h.now_ns);
  h.settle();
  REQUIRE(h.all<NodeBeat>().size() == 1);
  const NodeBeat beat = h.all<NodeBeat>()[0];
  CHECK(beat.boot_epoch == 7);
  CHECK(beat.seq == 1);
  CHECK(beat.slots_free == 4);
  CHECK(beat.prefill_tokens_per_s == 0.0F);
  CHECK(beat.cpu_load == 1.0F);
  CHECK(beat.state == NodeState::kReady);
  CHECK_FALSE(h.core.beat_due(h.now_ns + 99 * kNsPerMs));
  CHECK(h.core.beat_due(h.now_ns + 100 * kNsPerMs));
  CHECK(h.core.next_due_ns() == h.now_ns + 100 * kNsPerMs);
  h.core.set_state(NodeState::kDraining, h.now_ns);
  CHECK_FALSE(h.core.beat_due(h.now_ns + 19 * kNsPerMs));
  CHECK(h.core.beat_due(h.now_ns + 20 * kNsPerMs));
}

TEST_CASE("work is accepted, its tokens are merged while they wait, and it ends once") {
  Harness h;
  h.join();
  h.hear(Submit{chat("a"), 3, 41});
  REQUIRE(h.submitted.size() == 1);
  const auto work = h.submitted[0];
  Started started;
  started.node_id = "edge-1";
  started.prompt_tokens = 12;
  // Nothing is pumped in between: the chunks pile up.
  h.core.on_local_event("a", work.serial, started, h.now_ns);
  h.core.on_local_event("a", work.serial, chunk(0, {1}, "A"), h.now_ns);
  h.core.on_local_event("a", work.serial, chunk(1, {2}, "B"), h.now_ns);
  h.core.on_local_event("a", work.serial, chunk(0, {9}, "z", 1), h.now_ns);
  TokenChunk last = chunk(2, {3, 4}, "C");
  last.finish = FinishReason::kStop;
  h.core.on_local_event("a", work.serial, last, h.now_ns);
  h.local(work, Finished{{12, 5, 0}, {}});
  h.local(work, Finished{});  // a second end of a broken service is not passed on
  REQUIRE(h.sent.size() == 3);
  CHECK(std::get<Accepted>(h.sent[0]).prompt_tokens == 12);
  const auto& tokens = std::get<Tokens>(h.sent[1]);
  CHECK(tokens.epoch == 3);
  REQUIRE(tokens.chunks.size() == 2);
  CHECK(tokens.chunks[0].ids == std::vector<int32_t>{1, 2, 3, 4});
  CHECK(tokens.chunks[0].text == "ABC");
  CHECK(tokens.chunks[0].finish == FinishReason::kStop);
  CHECK(tokens.chunks[1].choice == 1);
  CHECK(std::get<Done>(h.sent[2]).finished.usage.completion_tokens == 5);
  CHECK(h.core.idle());
  // The beat tells the router which assignments it counts.
  h.sent.clear();
  h.core.send_beat({}, h.now_ns);
  h.settle();
  CHECK(h.all<NodeBeat>()[0].last_assignment_seq == 41);
}

TEST_CASE("an echoed prompt stays a chunk of its own") {
  Harness h;
  h.join();
  h.hear(Submit{chat("a"), 1, 1});
  const uint64_t serial = h.submitted[0].serial;
  TokenChunk echo = chunk(0, {}, "the prompt");
  echo.logprobs.resize(3);
  h.core.on_local_event("a", serial, Started{}, h.now_ns);
  h.core.on_local_event("a", serial, echo, h.now_ns);
  h.core.on_local_event("a", serial, chunk(0, {1}, "A"), h.now_ns);
  h.core.on_local_event("a", serial, chunk(1, {2}, "B"), h.now_ns);
  h.settle();
  REQUIRE(h.all<Tokens>().size() == 1);
  const auto chunks = h.all<Tokens>()[0].chunks;
  REQUIRE(chunks.size() == 2);
  CHECK(chunks[0].ids.empty());
  CHECK(chunks[0].logprobs.size() == 3);
  CHECK(chunks[1].text == "AB");
}

TEST_CASE(
    "errors before the start are rejections the router can act on, errors after it are failures") {
  const auto first_error = [](ErrorCode code, bool started) {
    Harness h;
    h.join();
    h.hear(Submit{chat("a"), 1, 1});
    if (started) h.local(h.submitted[0], Started{});
    h.local(h.submitted[0], error(code));
    CHECK(h.core.idle());
    if (started) {
      REQUIRE(h.all<Failed>().size() == 1);
      CHECK(h.all<Rejected>().empty());
      return h.all<Failed>()[0].error.code;
    }
    REQUIRE(h.all<Rejected>().size() == 1);
    CHECK(h.all<Failed>().empty());
    return h.all<Rejected>()[0].error.code;
  };
  CHECK(first_error(ErrorCode::kContextLength, false) == ErrorCode::kRejectedTooLong);
  CHECK(first_error(ErrorCode::kOverloaded, false) == ErrorCode::kRejectedBusy);
  CHECK(first_error(ErrorCode::kModelNotFound, false) == ErrorCode::kModelNotFound);
  CHECK(first_error(ErrorCode::kContextLength, true) == ErrorCode::kContextLength);
  CHECK(first_error(ErrorCode::kInternal, true) == ErrorCode::kInternal);
}

TEST_CASE("a loading or draining node takes nothing") {
  Harness h;
  h.core.on_connected(h.now_ns);
  h.hear(Welcome{"r", 1, {}});
  h.hear(Submit{chat("a"), 1, 1});
  h.core.set_state(NodeState::kReady, h.now_ns);
  h.hear(Drain{1000});  // the router's order
  CHECK(h.core.state() == NodeState::kDraining);
  h.hear(Submit{chat("b"), 1, 2});
  CHECK(h.submitted.empty());
  REQUIRE(h.all<Rejected>().size() == 2);
  CHECK(h.all<Rejected>()[0].error.message.find("loading") != std::string::npos);
  CHECK(h.all<Rejected>()[1].error.code == ErrorCode::kOverloaded);
  CHECK(h.all<Rejected>()[1].error.message == "node edge-1 is draining");
}

TEST_CASE("cancel reaches the local service and its end goes back; old epochs cancel nothing") {
  Harness h;
  h.join();
  h.hear(Submit{chat("a"), 2, 1});
  h.hear(Cancel{"a", 1});
  h.hear(Cancel{"b", 1});
  CHECK(h.cancelled.empty());
  h.hear(Cancel{"a", 2});
  CHECK(h.cancelled == std::vector<RequestId>{"a"});
  h.local(h.submitted[0], error(ErrorCode::kCancelled));
  REQUIRE(h.all<Rejected>().size() == 1);
  CHECK(h.all<Rejected>()[0].error.code == ErrorCode::kCancelled);
}

TEST_CASE(
    "a newer epoch replaces the older one: the new one begins when the old one has ended, its "
    "events are dropped") {
  Harness h;
  h.join();
  h.hear(Submit{chat("a"), 1, 1});
  h.hear(Submit{chat("a"), 1, 1});  // the same again
  REQUIRE(h.submitted.size() == 1);
  h.hear(Submit{chat("a"), 2, 2});
  CHECK(h.submitted.size() == 1);
  CHECK(h.cancelled == std::vector<RequestId>{"a"});
  h.local(h.submitted[0], chunk(0, {1}, "old"));
  CHECK(h.sent.empty());
  h.local(h.submitted[0], error(ErrorCode::kCancelled));
  REQUIRE(h.submitted.size() == 2);
  h.local(h.submitted[0], chunk(0, {1}, "older"));  // serial of the first
  h.local(h.submitted[1], Started{});
  h.local(h.submitted[1], Finished{});
  REQUIRE(h.sent.size() == 2);
  CHECK(std::get<Accepted>(h.sent[0]).epoch == 2);
  CHECK(std::get<Done>(h.sent[1]).epoch == 2);

  h.hear(Submit{chat("b"), 1, 3});
  h.hear(Submit{chat("b"), 2, 4});
  h.hear(Cancel{"b", 2});  // before the second began
  REQUIRE(h.all<Rejected>().size() == 1);
  CHECK(h.all<Rejected>()[0].epoch == 2);
  h.local(h.submitted[2], error(ErrorCode::kCancelled));
  CHECK(h.submitted.size() == 3);
  CHECK(h.core.work_count() == 0);
}

TEST_CASE("a lost connection cancels the router's work and ends what rose, each exactly once") {
  Harness h;
  h.join();
  h.hear(Submit{chat("work"), 1, 1});
  Events running;
  Events waiting;
  h.core.on_upward(chat("up1"), running.sink(), h.now_ns);
  h.core.on_upward(chat("up2"), waiting.sink(), h.now_ns);
  h.settle();
  h.hear(Accepted{"up1", 1, 5, Started{"cloud-1", Tier::kCloud, "big", "why", 0}});
  h.hear(Tokens{"up1", 1, {chunk(0, {1, 2}, "ab")}});
  h.sent.clear();
  h.core.on_disconnected(h.now_ns);
  h.settle();
  CHECK(h.cancelled == std::vector<RequestId>{"work"});
  CHECK(running.end_count() == 1);
  CHECK(running.error_code() == ErrorCode::kNodeLost);
  CHECK(waiting.end_count() == 1);
  CHECK(waiting.error_code() == ErrorCode::kOverloaded);
  CHECK(std::get<RequestError>(waiting.list.back()).retry_after_ms > 0);
  CHECK(h.core.upward_count() == 0);
  CHECK(h.sent.empty());

  // Back again: late answers of the old session mean nothing, the id can be used anew once the old
  // work has ended.
  h.join();
  h.hear(Done{"up1", 1, {}});
  h.hear(Submit{chat("work"), 1, 1});
  CHECK(h.submitted.size() == 1);
  h.local(h.submitted[0], error(ErrorCode::kCancelled));
  REQUIRE(h.submitted.size() == 2);
  CHECK(h.sent.empty());
  h.local(h.submitted[1], Finished{});
  CHECK(h.all<Done>().size() == 1);
  CHECK(running.end_count() == 1);
}

TEST_CASE(
    "a welcome with another epoch on the same connection is a new router: hello again, nothing "
    "survives") {
  Harness h;
  h.join(1);
  Events up;
  h.core.on_upward(chat("u"), up.sink(), h.now_ns);
  h.hear(Submit{chat("w"), 1, 1});
  h.sent.clear();
  h.hear(Welcome{"router", 2, {}});
  CHECK(up.end_count() == 1);
  CHECK(h.cancelled == std::vector<RequestId>{"w"});
  CHECK(h.all<NodeHello>().size() == 1);
  CHECK_FALSE(h.core.welcomed());
  h.hear(Welcome{"router", 2, {}});  // a beat under way was answered, too: no answer to the hello
  CHECK_FALSE(h.core.welcomed());
  h.core.tick(h.now_ns + 2 * kNsPerSecond);
  h.settle();
  CHECK(h.all<NodeHello>().size() == 2);
  h.hear(Welcome{"router", 3, {}});
  CHECK(h.core.welcomed());
  h.hear(Welcome{"router", 3, {{"m2", "", "", 0, 0, false}}});  // the pool's models changed
  CHECK(h.core.pool_models().size() == 1);
  CHECK(h.core.welcomed());
}

TEST_CASE("a request rises, streams and finishes; it never asks to come back") {
  Harness h;
  h.join();
  Events up;
  Request request = chat("u");
  request.hints.tier = Tier::kAny;
  h.core.on_upward(request, up.sink(), h.now_ns);
  h.settle();
  REQUIRE(h.all<Submit>().size() == 1);
  CHECK(h.all<Submit>()[0].request.hints.tier == Tier::kCloud);
  h.hear(Accepted{"u", 1, 5, Started{"cloud-1", Tier::kCloud, "big", "why", 0}});
  h.hear(Tokens{"u", 1, {chunk(0, {1, 2}, "ab"), chunk(2, {3}, "c")}});
  h.hear(Tokens{"u", 1, {chunk(0, {1, 2}, "ab")}});  // a repeat is dropped
  h.hear(Accepted{"u", 2, 5, Started{"cloud-2", Tier::kCloud, "big", "moved", 0}});
  h.hear(Tokens{"u", 1, {chunk(3, {8}, "old")}});  // of the node before the move
  TokenChunk last = chunk(3, {4}, "d");
  last.finish = FinishReason::kStop;
  h.hear(Tokens{"u", 2, {last}});
  h.hear(Tokens{"u", 2, {last}});
  h.hear(Done{"u", 2, {{5, 4, 0}, {}}});
  h.hear(Done{"u", 2, {}});
  CHECK(up.text() == "abcd");
  CHECK(up.end_count() == 1);
  CHECK(std::holds_alternative<Finished>(up.list.back()));
  CHECK(std::get<Started>(up.list.front()).prompt_tokens == 5);
  CHECK(h.core.upward_count() == 0);
}

TEST_CASE("work that is said twice runs once, also when it has ended") {
  Harness h;
  h.join();
  const Submit work{chat("w"), 1, 1};
  h.hear(work);
  h.hear(work);
  REQUIRE(h.submitted.size() == 1);
  h.local(h.submitted[0], Finished{});
  CHECK(h.all<Done>().size() == 1);
  h.hear(work);
  CHECK(h.submitted.size() == 1);
  CHECK(h.all<Rejected>().empty());
  h.hear(Submit{chat("w"), 2, 2});  // another attempt
  CHECK(h.submitted.size() == 2);
  h.core.on_disconnected(h.now_ns);
  h.settle();
  h.local(h.submitted[1], error(ErrorCode::kCancelled));
  h.join();
  h.hear(work);  // of another session
  CHECK(h.submitted.size() == 3);
}

TEST_CASE("a risen answer whose last tokens were lost is not taken for whole") {
  Harness h;
  h.join();
  Events up;
  Request request = chat("u");
  request.choice_count = 2;
  h.core.on_upward(request, up.sink(), h.now_ns);
  TokenChunk last = chunk(0, {1}, "a");
  last.finish = FinishReason::kStop;
  h.hear(Tokens{"u", 1, {last}});
  TokenChunk nothing_new = chunk(1, {}, "");
  nothing_new.finish = FinishReason::kStop;
  h.hear(Tokens{"u", 1, {nothing_new, chunk(0, {1}, "b", 1)}});  // a repeat, and no end of choice 1
  h.hear(Done{"u", 1, {{5, 2, 0}, {}}});
  CHECK(up.text() == "ab");
  CHECK(up.end_count() == 1);
  CHECK(up.error_code() == ErrorCode::kNodeLost);
}

TEST_CASE("a start that is repeated after the first tokens does not move the stream back") {
  Harness h;
  h.join();
  Events events;
  h.core.on_upward(chat("u"), events.sink(), h.now_ns);
  h.settle();
  Started first;
  first.node_id = "cloud-1";
  Started second;
  second.node_id = "cloud-2";
  h.hear(Accepted{"u", 1, 3, first});
  h.hear(Accepted{"u", 1, 3, second});
  h.hear(Tokens{"u", 1, {chunk(0, {1}, "a")}});
  h.hear(Accepted{"u", 1, 3, first});
  std::vector<std::string> nodes;
  for (const Event& event : events.list) {
    if (const auto* started = std::get_if<Started>(&event)) nodes.push_back(started->node_id);
  }
  CHECK(nodes == std::vector<std::string>{"cloud-1", "cloud-2"});
}

TEST_CASE("a gap in a risen stream ends it and cancels above") {
  Harness h;
  h.join();
  Events up;
  h.core.on_upward(chat("u"), up.sink(), h.now_ns);
  h.hear(Tokens{"u", 1, {chunk(0, {1}, "a")}});
  CHECK(std::holds_alternative<Started>(up.list.front()));
  h.hear(Tokens{"u", 1, {chunk(5, {1}, "f")}});
  CHECK(up.error_code() == ErrorCode::kNodeLost);
  CHECK(up.end_count() == 1);
  CHECK(h.all<Cancel>().size() == 1);
}

TEST_CASE("refusals from above become what a client understands") {
  Harness h;
  h.join();
  const auto answer = [&](const PoolMessage& message) {
    Events up;
    h.core.on_upward(chat("u"), up.sink(), h.now_ns);
    h.hear(message);
    CHECK(up.end_count() == 1);
    return std::get<RequestError>(up.list.back());
  };
  CHECK(answer(Rejected{"u", 1, error(ErrorCode::kRejectedTooLong)}).code ==
        ErrorCode::kContextLength);
  const RequestError busy = answer(Rejected{"u", 1, error(ErrorCode::kRejectedBusy)});
  CHECK(busy.code == ErrorCode::kOverloaded);
  CHECK(busy.retry_after_ms > 0);
  CHECK(answer(Failed{"u", 1, error(ErrorCode::kModelNotFound)}).code == ErrorCode::kModelNotFound);
}

TEST_CASE("what may not or cannot rise is answered at once") {
  Harness h;
  const auto answer = [&](Request request) {
    Events up;
    h.core.on_upward(std::move(request), up.sink(), h.now_ns);
    h.settle();
    REQUIRE(up.end_count() == 1);
    return up.error_code();
  };
  CHECK(answer(chat("u")) == ErrorCode::kOverloaded);  // no link
  h.join();
  Request local_only = chat("u");
  local_only.hints.local_only = true;
  CHECK(answer(local_only) == ErrorCode::kInvalidRequest);
  Request bad = chat("u");
  bad.sampling.top_p = 5;
  CHECK(answer(bad) == ErrorCode::kInvalidRequest);
  Events first;
  h.core.on_upward(chat("twice"), first.sink(), h.now_ns);
  CHECK(answer(chat("twice")) == ErrorCode::kInvalidRequest);
  CHECK(first.list.empty());
  CHECK(h.all<Submit>().size() == 1);
}

TEST_CASE("the number of risen requests and their bytes are bounded") {
  LinkCoreConfig config = Harness::default_config();
  config.upward_max = 2;
  Harness h(config);
  h.join();
  Events events[3];
  for (int i = 0; i < 3; ++i)
    h.core.on_upward(chat("u" + std::to_string(i)), events[i].sink(), h.now_ns);
  h.settle();
  CHECK(events[0].list.empty());
  CHECK(events[1].list.empty());
  CHECK(events[2].error_code() == ErrorCode::kOverloaded);

  config.upward_max = 100;
  config.queued_bytes_max = 1'000'000;
  Harness g(config);
  g.join();
  Events large[3];
  for (int i = 0; i < 3; ++i) {
    Request request = chat("u" + std::to_string(i));
    request.messages[0].parts[0].text.assign(600'000, 'x');
    g.core.on_upward(request, large[i].sink(), g.now_ns);  // nothing is sent meanwhile
  }
  g.settle();
  CHECK(large[1].list.empty());
  CHECK(large[2].error_code() == ErrorCode::kOverloaded);
  CHECK(g.all<Submit>().size() == 2);
}

TEST_CASE("a raw frame that no message holds is refused here, its size told, and nothing is sent") {
  Harness h;
  h.join();
  Request request = chat("u");
  ContentPart frame;
  frame.kind = ContentPart::Kind::kImage;
  frame.mime = "image/x-raw-rgb;width=3840;height=2160";
  frame.bytes = std::string(size_t{3} * 3840 * 2160, 'x');
  request.messages[0].parts.push_back(frame);
  Events events;
  h.core.on_upward(request, events.sink(), h.now_ns);
  h.settle();
  CHECK(events.error_code() == ErrorCode::kPayloadTooLarge);
  CHECK(h.all<Submit>().empty());
}

TEST_CASE("cancelling what rose ends it at once and tells the router, after the request itself") {
  Harness h;
  h.join();
  Events up;
  Request request = chat("u");
  request.messages[0].parts[0].text.assign(600'000, 'x');
  h.core.on_upward(request, up.sink(), h.now_ns);
  h.core.on_upward_cancel("u");
  h.core.on_upward_cancel("unknown");
  h.settle();
  CHECK(up.error_code() == ErrorCode::kCancelled);
  CHECK(up.end_count() == 1);
  REQUIRE(h.sent.size() == 2);
  CHECK(std::holds_alternative<Submit>(h.sent[0]));
  CHECK(std::holds_alternative<Cancel>(h.sent[1]));
}

TEST_CASE("a router that never answers and a deadline that passes end the request") {
  Harness h;
  h.join();
  Events silent;
  Events late;
  h.core.on_upward(chat("silent"), silent.sink(), h.now_ns);
  Request hurried = chat("late");
  hurried.hints.deadline_ms = 500;
  h.core.on_upward(hurried, late.sink(), h.now_ns);
  h.settle();
  h.hear(Accepted{"late", 1, 1, {}});
  h.core.tick(h.now_ns + 1499 * kNsPerMs);
  h.settle();
  CHECK(late.end_count() == 0);
  CHECK(h.core.next_due_ns() <= h.now_ns + 1500 * kNsPerMs);
  h.core.tick(h.now_ns + 1500 * kNsPerMs);  // the deadline and a second
  h.settle();
  CHECK(late.error_code() == ErrorCode::kDeadline);
  CHECK(silent.end_count() == 0);
  h.core.tick(h.now_ns + 60 * kNsPerSecond);
  h.settle();
  CHECK(silent.error_code() == ErrorCode::kOverloaded);
  CHECK(h.all<Cancel>().size() == 2);
}

TEST_CASE("a risen answer that goes silent ends, one that goes on does not") {
  Harness h;
  h.join();
  Events lost, slow;
  h.core.on_upward(chat("lost"), lost.sink(), h.now_ns);
  h.core.on_upward(chat("slow"), slow.sink(), h.now_ns);
  h.settle();
  h.hear(Accepted{"lost", 1, 9, {}});
  h.hear(Accepted{"slow", 1, 9, {}});
  h.now_ns += 200 * kNsPerSecond;
  Tokens tokens{"slow", 1, {}};
  tokens.chunks.push_back({0, 0, {7}, "x", {}, {}});
  h.hear(tokens);
  h.now_ns += 101 * kNsPerSecond;
  CHECK(h.core.next_due_ns() <= h.now_ns);
  h.core.tick(h.now_ns);
  h.settle();
  CHECK(lost.end_count() == 1);
  CHECK(lost.error_code() == ErrorCode::kNodeLost);
  CHECK(slow.end_count() == 0);
  REQUIRE(h.all<Cancel>().size() == 1);
  CHECK(h.all<Cancel>()[0].id == "lost");
  h.now_ns += 200 * kNsPerSecond;
  h.core.tick(h.now_ns);
  h.settle();
  CHECK(slow.end_count() == 1);
}

TEST_CASE("draining says so, and what outlasts the grace is failed towards the router") {
  Harness h;
  h.join();
  h.hear(Submit{chat("a"), 1, 1});
  h.local(h.submitted[0], Started{});
  h.core.drain(5000, h.now_ns);
  h.settle();
  REQUIRE(h.all<Drain>().size() == 1);
  CHECK(h.all<Drain>()[0].grace_ms == 5000);
  CHECK_FALSE(h.core.idle());
  h.core.abandon_work();
  h.settle();
  CHECK(h.cancelled == std::vector<RequestId>{"a"});
  REQUIRE(h.all<Failed>().size() == 1);
  CHECK(h.all<Failed>()[0].error.code == ErrorCode::kNodeLost);
  CHECK(h.core.idle());
  h.local(h.submitted[0], error(ErrorCode::kCancelled));
  CHECK(h.all<Failed>().size() == 1);
}

TEST_CASE("stopping ends everything") {
  Harness h;
  h.join();
  h.hear(Submit{chat("a"), 1, 1});
  Events up;
  h.core.on_upward(chat("u"), up.sink(), h.now_ns);
  h.core.stop();
  h.settle();
  CHECK(h.cancelled == std::vector<RequestId>{"a"});
  CHECK(up.end_count() == 1);
  CHECK(h.core.work_count() == 0);
}

TEST_CASE("a slow connection makes token streams wait and merge, fairly") {
  Harness h;
  h.join();
  for (int i = 0; i < 100; ++i) h.hear(Submit{chat("r" + std::to_string(i)), 1, 1});
  REQUIRE(h.submitted.size() == 100);
  // Nothing is taken from the queue: it stays short while the tokens pile up with their requests.
  for (int round = 0; round < 50; ++round) {
    for (const auto& work : h.submitted) {
      h.core.on_local_event(work.request.id, work.serial, chunk(round, {round}, "x"), h.now_ns);
    }
    h.core.pump();
    CHECK(h.core.outgoing().small_count() <= 64);
  }
  h.settle();
  std::map<std::string, std::vector<int32_t>> got;
  size_t message_count = 0;
  for (const Tokens& tokens : h.all<Tokens>()) {
    ++message_count;
    for (const TokenChunk& c : tokens.chunks) {
      CHECK(c.offset == static_cast<int32_t>(got[tokens.id].size()));
      got[tokens.id].insert(got[tokens.id].end(), c.ids.begin(), c.ids.end());
    }
  }
  CHECK(got.size() == 100);
  for (const auto& [id, ids] : got) CHECK(ids.size() == 50);
  CHECK(message_count < 300);
}

TEST_CASE("beats grant slots to a router that asks for it, and to no other") {
  Harness old;
  old.join();
  old.core.send_beat({}, old.now_ns);
  old.settle();
  CHECK_FALSE(old.all<NodeBeat>()[0].credit);
  old.hear(Submit{chat("a"), 1, 1});  // sends what it likes, as ever
  CHECK(old.submitted.size() == 1);

  Harness h;
  h.join_granting(4);
  h.hear(Submit{chat("a"), 1, 1, 3});
  REQUIRE(h.submitted.size() == 1);
  const Credit credit = h.beat(4, 4);  // the service does not show it yet
  CHECK(credit.first == 3);
  CHECK(credit.count == 1);
  CHECK(credit.kv_tokens == 1000);
  CHECK(credit.ttl_ms == kGrantBeats * 100);
}

TEST_CASE("a submit beyond the grant is bounced with its type, and the next end grants anew") {
  Harness h;
  h.join_granting(2);
  h.hear(Submit{chat("a"), 1, 1, 1});
  h.hear(Submit{chat("b"), 1, 2, 1});
  h.hear(Submit{chat("c"), 1, 3, 1});
  CHECK(h.submitted.size() == 2);
  REQUIRE(h.all<Rejected>().size() == 1);
  const Rejected bounced = h.all<Rejected>()[0];
  CHECK(bounced.id == "c");
  CHECK(bounced.error.code == ErrorCode::kRejectedBusy);
  REQUIRE(bounced.credit);
  CHECK(bounced.credit->count == 0);
  CHECK(bounced.credit->first == 3);
  CHECK(h.core.beat_due(h.now_ns + 20 * kNsPerMs));
  h.local(h.submitted[0], Finished{});
  REQUIRE(h.all<Done>().size() == 1);
  REQUIRE(h.all<Done>()[0].credit);
  CHECK(h.all<Done>()[0].credit->count == 1);
  h.local(h.submitted[1], error(ErrorCode::kInternal));
  CHECK(h.all<Rejected>().back().credit->count == 2);
}

TEST_CASE("what a router says that it wants is lent to it, for as long as it says so") {
  LinkCoreConfig config = Harness::default_config();
  config.grants = std::make_shared<GrantLedger>(600);
  Harness h(config);
  h.join_granting(2);
  const auto other = config.grants->join(h.now_ns);
  int32_t others = 0;
  Credit credit;
  const auto beats = [&](int count) {
    for (int i = 0; i < count; ++i) {
      h.now_ns += 100 * kNsPerMs;
      others = config.grants->grant(other, h.now_ns).count;
      credit = h.beat(2, 2);
    }
  };
  beats(20);
  CHECK(others == 1);
  CHECK(credit.count == 1);
  for (int i = 0; i < 5; ++i) {
    h.hear(Welcome{"router", 1, {}, true, 0, 2, 100});
    beats(2);
  }
  CHECK(others == 0);
  CHECK(credit.count == 2);
  beats(20);  // nobody says it any more
  CHECK(others == 1);
  CHECK(credit.count == 1);
}

TEST_CASE("whatever way work ends, its slots are free again") {
  Harness h;
  h.join_granting(2);
  // Twice the same, a newer epoch, cancelled before and after it began.
  h.hear(Submit{chat("a"), 1, 1, 2});
  CHECK(h.beat(2, 0).count == 0);
  h.hear(Cancel{"a", 1});
  h.local(h.submitted.back(), error(ErrorCode::kCancelled));
  CHECK(h.beat(2, 2).count == 2);
  h.hear(Submit{chat("b"), 1, 2, 1});
  h.hear(Submit{chat("b"), 1, 3, 1});
  CHECK(h.beat(2, 1).count == 1);
  h.hear(Submit{chat("b"), 2, 4, 1});
  h.hear(Cancel{"b", 2});
  h.local(h.submitted.back(), error(ErrorCode::kCancelled));
  CHECK(h.beat(2, 2).count == 2);
  h.hear(Submit{chat("c"), 1, 5, 2});
  h.core.on_disconnected(h.now_ns);
  h.local(h.submitted.back(), error(ErrorCode::kCancelled));
  h.core.on_connected(h.now_ns);
  h.hear(Welcome{"router", 1, {}, true});
  CHECK(h.beat(2, 2).count == 2);
  h.core.set_state(NodeState::kDraining, h.now_ns);
  CHECK(h.beat(2, 2).count == 0);
  h.hear(Submit{chat("d"), 1, 6, 1});
  h.core.set_state(NodeState::kReady, h.now_ns);
  CHECK(h.beat(2, 2).count == 2);
}

TEST_CASE("a draining node stays until what it granted has run out, and bounces what still comes") {
  Harness h;
  h.join_granting(2);
  CHECK_FALSE(h.core.idle());
  h.core.drain(30'000, h.now_ns);
  CHECK(h.beat(2, 2).count == 0);
  h.now_ns += 300 * kNsPerMs;
  h.core.tick(h.now_ns);
  h.settle();
  CHECK_FALSE(h.core.idle());
  h.hear(Submit{chat("late"), 1, 1, 1});
  CHECK(h.submitted.empty());
  REQUIRE(h.all<Rejected>().size() == 1);
  h.now_ns += 10 * kNsPerSecond;
  h.core.tick(h.now_ns);
  CHECK(h.core.idle());
}

TEST_CASE("an Accepted says how long the node has had the request") {
  Harness h;
  h.join();
  h.hear(Submit{chat("a"), 1, 1});
  h.now_ns += 30 * kNsPerMs;
  h.local(h.submitted[0], Started{});
  REQUIRE(h.all<Accepted>().size() == 1);
  CHECK(h.all<Accepted>()[0].held_us == 30'000);
}

TEST_CASE("a router drains a node and takes it back; the node's own draining stands") {
  Harness h;
  h.join();
  h.hear(Drain{1000});
  CHECK(h.core.state() == NodeState::kDraining);
  h.hear(Submit{chat("a"), 1, 1});
  CHECK(h.submitted.empty());
  h.hear(Drain{0, true});
  CHECK(h.core.state() == NodeState::kReady);
  CHECK(h.core.beat_due(h.now_ns + 20 * kNsPerMs));
  h.hear(Submit{chat("b"), 1, 2});
  CHECK(h.submitted.size() == 1);
  h.core.set_state(NodeState::kDraining, h.now_ns);
  h.hear(Drain{0, true});
  CHECK(h.core.state() == NodeState::kDraining);
}

TEST_CASE("beats tell which beginnings of prompts the node holds, as its cache fills and empties") {
  Harness h;
  h.join();
  Request long_chat = chat("a");
  long_chat.messages[0].parts[0].text = std::string(4000, 'x');
  const auto beat = [&](int64_t kv_tokens_used) {
    h.sent.clear();
    NodeBeat load;
    load.kv_tokens_total = 10'000;
    load.kv_tokens_free = 10'000 - kv_tokens_used;
    load.bytes_per_token = 4.0F;
    h.core.send_beat(load, h.now_ns);
    h.settle();
    return h.all<NodeBeat>().at(0).prefixes;
  };
  h.hear(Submit{long_chat, 1, 1});
  CHECK_FALSE(beat(1000));  // not before its prompt is computed
  h.local(h.submitted[0], Started{});
  h.local(h.submitted[0], chunk(0, {1}, "A"));
  auto delta = beat(1100);
  REQUIRE(delta);
  CHECK(delta->since == 0);
  CHECK(delta->added.size() == 7);
  CHECK_FALSE(beat(1100));
  delta = beat(300);  // the engine gave most of it away
  REQUIRE(delta);
  CHECK(delta->dropped.size() == 5);
  h.core.on_disconnected(h.now_ns);
  h.core.on_connected(h.now_ns);
  h.hear(Welcome{"router", 2, {}});
  delta = beat(300);
  REQUIRE(delta);
  CHECK(delta->since == 0);
  CHECK(delta->added.size() == 2);
  h.now_ns += 31 * kNsPerSecond;
  delta = beat(300);  // all of it now and then
  REQUIRE(delta);
  CHECK(delta->since == 0);
}

TEST_CASE("a router that misses four echoes counts as gone, one that promised none never does") {
  Harness h;
  CHECK_FALSE(h.core.router_silent(h.now_ns));
  h.core.on_connected(h.now_ns);
  h.settle();
  REQUIRE(h.all<NodeHello>().size() == 1);
  CHECK(h.all<NodeHello>()[0].wants_echo);
  h.hear(Welcome{"router", 1, {}, true, 1000});
  h.now_ns += 4 * kNsPerSecond - 1;
  CHECK_FALSE(h.core.router_silent(h.now_ns));
  CHECK(h.core.router_silent(h.now_ns + 1));
  h.hear(Echo{1});
  h.now_ns += 4 * kNsPerSecond - 1;
  CHECK_FALSE(h.core.router_silent(h.now_ns));
  CHECK(h.core.router_silent(h.now_ns + 1));
  h.core.on_disconnected(h.now_ns);
  CHECK_FALSE(h.core.router_silent(h.now_ns + 1));

  Harness without;
  without.join();
  CHECK_FALSE(without.core.router_silent(without.now_ns + 3600 * kNsPerSecond));
}

TEST_CASE("a connection that leads to no session within ten seconds is given up") {
  Harness h;
  h.core.on_connected(h.now_ns);
  CHECK_FALSE(h.core.router_silent(h.now_ns + 10 * kNsPerSecond - 1));
  CHECK(h.core.router_silent(h.now_ns + 10 * kNsPerSecond));
}

TEST_CASE(
    "a node whose memory is almost full bounces what it granted before, and runs what it has") {
  const auto grants = std::make_shared<GrantLedger>(600);
  LinkCoreConfig config = Harness::default_config();
  config.grants = grants;
  Harness h(config);
  h.join_granting(4);
  h.hear(Submit{chat("a"), 1, 1});
  REQUIRE(h.submitted.size() == 1);
  grants->set_memory(MemoryLevel::kShed);
  CHECK(h.beat(4, 3).count == 0);
  h.hear(Submit{chat("b"), 1, 2});  // within what was granted before
  REQUIRE(h.submitted.size() == 2);
  grants->set_memory(MemoryLevel::kRefuse);
  h.hear(Submit{chat("c"), 1, 3});
  CHECK(h.submitted.size() == 2);
  REQUIRE(h.all<Rejected>().size() == 1);
  CHECK(h.all<Rejected>()[0].error.code == ErrorCode::kRejectedBusy);
  CHECK(h.all<Rejected>()[0].error.message == "node edge-1 is short of memory");
  REQUIRE(h.all<Rejected>()[0].credit);
  CHECK(h.all<Rejected>()[0].credit->count == 0);
  h.local(h.submitted[0], Finished{});
  h.local(h.submitted[1], Finished{});
  CHECK(h.all<Done>().size() == 2);
  CHECK(h.cancelled.empty());
  grants->set_memory(MemoryLevel::kNormal);
  CHECK(h.beat(4, 4).count == 4);
}

TEST_CASE("to a router without grants a node that is short of memory has no free slots") {
  const auto grants = std::make_shared<GrantLedger>(600);
  LinkCoreConfig config = Harness::default_config();
  config.grants = grants;
  Harness h(config);
  h.join();
  const auto slots_free = [&] {
    h.sent.clear();
    NodeBeat load;
    load.slots_total = load.slots_free = 3;
    h.core.send_beat(load, h.now_ns);
    h.settle();
    REQUIRE(h.all<NodeBeat>().size() == 1);
    return h.all<NodeBeat>()[0].slots_free;
  };
  CHECK(slots_free() == 3);
  grants->set_memory(MemoryLevel::kShed);
  CHECK(slots_free() == 0);
  grants->set_memory(MemoryLevel::kRefuse);
  h.hear(Submit{chat("a"), 1, 1});
  CHECK(h.submitted.empty());
  REQUIRE(h.all<Rejected>().size() == 1);
  CHECK(h.all<Rejected>()[0].error.code == ErrorCode::kRejectedBusy);
}
