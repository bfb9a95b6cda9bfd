// A request's way over its nodes: exactly one end, no gap and no repeat, lost nodes, work that
// rises from an edge.
#include "cloud/router/streams.h"

#include <doctest/doctest.h>

#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

namespace {

struct TwoClouds : PoolFixture {
  TwoClouds() {
    join("cloud-1", Tier::kCloud, 4096, 4);
    join("cloud-2", Tier::kCloud, 4096, 4);
    settle();
  }
  // The node that has the newest work of this id, and the other one.
  FakeNode& holder(const std::string& id) {
    FakeNode* best = nullptr;
    uint32_t epoch = 0;
    for (auto& [name, node] : nodes) {
      for (const Submit& work : node.work) {
        if (work.request.id != id || work.epoch < epoch) continue;
        best = &node;
        epoch = work.epoch;
      }
    }
    UPDRAFT_CHECK(best != nullptr, "nobody has it");
    return *best;
  }
  FakeNode& other(const FakeNode& node) {
    return nodes.at(node.hello.node_id == "cloud-1" ? "cloud-2" : "cloud-1");
  }
};

size_t total_work(const PoolFixture& pool) {
  size_t count = 0;
  for (const auto& [id, node] : pool.nodes) count += node.work.size();
  return count;
}

}  // namespace

TEST_CASE("an answer arrives as start, tokens in order and one end") {
  TwoClouds pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& node = pool.holder("a");
  pool.serve(node, node.work[0]);
  const std::vector<Event>& events = pool.events.at(client);
  REQUIRE(events.size() == 4);
  CHECK(std::holds_alternative<Started>(events[0]));
  CHECK(std::get<TokenChunk>(events[1]).offset == 0);
  CHECK(std::get<TokenChunk>(events[2]).offset == 2);
  CHECK(std::holds_alternative<Finished>(events[3]));
  CHECK(pool.core.live() == 0);
  // Whatever the node still says of it is ignored.
  pool.say(node, PoolFixture::done(node.work[0]));
  pool.say(node, PoolFixture::failed(node.work[0], ErrorCode::kInternal));
  CHECK(pool.ends(client) == 1);
}

TEST_CASE("a gap in the offsets ends the stream as a fault of the node, and cancels it there") {
  TwoClouds pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& node = pool.holder("a");
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1, 2}));
  pool.say(node, PoolFixture::tokens(node.work[0], 3, {4}));
  CHECK(pool.error(client).code == ErrorCode::kNodeLost);
  CHECK(pool.error(client).message.find("gap: offset 3 after 2 tokens") != std::string::npos);
  CHECK(node.cancels.size() == 1);
  CHECK(pool.core.stats().protocol_faults == 1);
}

TEST_CASE("a repeated chunk is dropped, one that repeats with other tokens is a fault") {
  TwoClouds pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& node = pool.holder("a");
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1, 2}));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1, 2}));
  CHECK(pool.seen<TokenChunk>(client).size() == 1);
  CHECK(pool.ends(client) == 0);
  pool.say(node, PoolFixture::tokens(node.work[0], 1, {9}));
  CHECK(pool.error(client).code == ErrorCode::kNodeLost);
}

TEST_CASE(
    "tokens of an unknown choice, after a choice's end, or beyond what was asked for are faults") {
  for (const int kind : {0, 1, 2, 3}) {
    CAPTURE(kind);
    TwoClouds pool;
    const ClientId client = pool.submit(PoolFixture::chat("a", 30));
    FakeNode& node = pool.holder("a");
    const Submit work = node.work[0];
    pool.say(node, PoolFixture::accepted(work));
    pool.say(node, PoolFixture::tokens(work, 0, {1}, kind == 1));
    if (kind == 0) pool.say(node, PoolFixture::tokens(work, 0, {1}, false, 1));
    if (kind == 1) pool.say(node, PoolFixture::tokens(work, 1, {2}));
    if (kind == 2) pool.say(node, PoolFixture::tokens(work, 1, std::vector<int32_t>(16, 5)));
    if (kind == 3) pool.say(node, PoolFixture::done(work));  // no choice has its end
    CHECK(pool.error(client).code == ErrorCode::kNodeLost);
    CHECK(pool.core.stats().protocol_faults == 1);
    CHECK(pool.core.live() == 0);
  }
}

TEST_CASE("several choices run side by side and each has its own offsets") {
  TwoClouds pool;
  Request request = PoolFixture::chat("a", 30);
  request.choice_count = 3;
  const ClientId client = pool.submit(request);
  FakeNode& node = pool.holder("a");
  pool.serve(node, node.work[0]);
  CHECK(pool.finished(client));
  CHECK(pool.seen<TokenChunk>(client).size() == 6);
}

TEST_CASE("tokens of another node or an older epoch are dropped") {
  TwoClouds pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& first = pool.holder("a");
  FakeNode& second = pool.other(first);
  const Submit old = first.work[0];
  pool.say(second, PoolFixture::tokens(old, 0, {6, 6, 6}));  // never had it
  pool.say(first, PoolFixture::failed(old, ErrorCode::kInternal));
  REQUIRE(second.work.size() == 1);
  CHECK(second.work[0].epoch > old.epoch);
  pool.say(first, PoolFixture::tokens(old, 0, {6, 6, 6}));  // had it
  Submit pretended = old;
  pretended.epoch = second.work[0].epoch;
  pool.say(first, PoolFixture::tokens(pretended, 0, {6, 6, 6}));
  CHECK(pool.seen<TokenChunk>(client).empty());
  pool.serve(second, second.work[0]);
  CHECK(pool.finished(client));
  for (const TokenChunk& chunk : pool.seen<TokenChunk>(client))
    CHECK(chunk.ids != std::vector<int32_t>{6, 6, 6});
}

TEST_CASE("what a node says of an earlier try at the same request is dropped") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.settle();
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  const Submit old = node.work[0];
  pool.say(node, PoolFixture::rejected(old, ErrorCode::kRejectedBusy));
  pool.beat(node);
  REQUIRE(node.work.size() == 2);
  pool.say(node, PoolFixture::accepted(old));
  pool.say(node, PoolFixture::tokens(old, 0, {6, 6, 6}, true));
  pool.say(node, PoolFixture::done(old));
  CHECK(pool.events.at(client).empty());
  pool.serve(node, node.work[1]);
  CHECK(pool.finished(client));
}

TEST_CASE("a node that dies while it answers ends the stream with an error within three seconds") {
  TwoClouds pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& node = pool.holder("a");
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1, 2}));
  node.beating = false;
  const int64_t killed_ns = pool.now_ns;
  while (pool.ends(client) == 0 && pool.now_ns - killed_ns < 10'000 * kNsPerMs) pool.advance_ms(10);
  CHECK(pool.now_ns - killed_ns <= 3000 * kNsPerMs);
  CHECK(pool.error(client).code == ErrorCode::kNodeLost);
  CHECK(pool.error(client).message ==
        "node '" + node.hello.node_id + "' was lost while it was answering");
  CHECK(total_work(pool) == 1);  // a stream that has begun is not begun anew
}

TEST_CASE("a node that dies before the first token is replaced, unseen but for the new start") {
  TwoClouds pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& first = pool.holder("a");
  pool.say(first, PoolFixture::accepted(first.work[0]));
  first.beating = false;
  pool.advance_ms(3000);
  FakeNode& second = pool.other(first);
  REQUIRE(second.work.size() == 1);
  pool.serve(second, second.work[0]);
  CHECK(pool.finished(client));
  CHECK(pool.seen<Started>(client).back().node_id == second.hello.node_id);
  CHECK(pool.seen<Started>(client).back().decision == "moved after a node was lost");
}

TEST_CASE("a request is tried on at most two more nodes") {
  PoolFixture pool;
  for (int i = 0; i < 5; ++i) pool.join("cloud-" + std::to_string(i), Tier::kCloud, 4096, 4);
  pool.settle();
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  for (int i = 0; i < 5 && pool.ends(client) == 0; ++i) {
    for (auto& [id, node] : pool.nodes) {
      if (!node.work.empty() && node.beating) node.beating = false;
    }
    pool.advance_ms(2500);
  }
  CHECK(total_work(pool) == 3);
  CHECK(pool.error(client).code == ErrorCode::kNodeLost);
}

TEST_CASE(
    "a request whose only node is lost before the first token waits for it, as long as the queue "
    "lets it") {
  for (const bool comes_back : {true, false}) {
    CAPTURE(comes_back);
    PoolFixture pool;
    FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
    pool.settle();
    const ClientId client = pool.submit(PoolFixture::chat("a", 30));
    node.beating = false;
    pool.advance_ms(5000);
    CHECK(pool.ends(client) == 0);
    CHECK(pool.core.queued() == 1);
    if (comes_back) {
      pool.beat(node);  // told to say hello, which it does
      pool.beat(node);
      REQUIRE(node.work.size() == 2);
      pool.serve(node, node.work[1]);
      CHECK(pool.finished(client));
    } else {
      pool.advance_ms(30'000);
      CHECK(pool.error(client).code == ErrorCode::kOverloaded);
    }
  }
}

TEST_CASE("a new boot of a node loses what the old one had: streams end, unstarted requests move") {
  TwoClouds pool;
  const ClientId a = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& node = pool.holder("a");
  FakeNode& other = pool.other(node);
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1}));
  Request request = PoolFixture::chat("b", 30);
  other.beat.slots_free = 0;
  other.beat.running = 4;
  pool.beat(other);
  const ClientId b = pool.submit(request);
  REQUIRE(&pool.holder("b") == &node);
  other.beat.slots_free = 4;
  other.beat.running = 0;
  pool.beat(other);
  node.hello.boot_epoch = node.beat.boot_epoch = 2;
  node.beat.seq = 0;
  node.peer.peer = "new-connection";
  pool.say(node, node.hello);
  CHECK(pool.error(a).code == ErrorCode::kNodeLost);
  CHECK(pool.error(a).message.find("restarted while it was answering") != std::string::npos);
  REQUIRE(other.work.size() == 1);
  pool.serve(other, other.work[0]);
  CHECK(pool.finished(b));
}

TEST_CASE("a request whose only node restarts waits for it to be ready again") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.settle();
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  node.hello.boot_epoch = node.beat.boot_epoch = 2;
  node.beat.state = NodeState::kLoading;
  pool.say(node, node.hello);
  pool.advance_ms(2000);
  CHECK(pool.ends(client) == 0);
  node.beat.state = NodeState::kReady;
  pool.advance_ms(300);
  REQUIRE(node.work.size() == 2);
  pool.serve(node, node.work[1]);
  CHECK(pool.finished(client));
}

TEST_CASE("on a new connection running streams end and unstarted requests are sent again") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.settle();
  const ClientId a = pool.submit(PoolFixture::chat("a", 30));
  const ClientId b = pool.submit(PoolFixture::chat("b", 30));
  const Submit work = node.work[0];
  pool.say(node, PoolFixture::accepted(work));
  pool.say(node, PoolFixture::tokens(work, 0, {1}));
  node.other.clear();
  node.peer.peer = "second-connection";
  pool.say(node, node.hello);
  CHECK(node.other.size() == 1);  // welcome
  CHECK(pool.error(a).code == ErrorCode::kNodeLost);
  CHECK(pool.error(a).message == "node 'cloud-1' lost its connection while it was answering");
  REQUIRE(node.work.size() == 3);
  CHECK(node.work[2].request.id == "b");
  CHECK(node.work[2].epoch > node.work[1].epoch);
  pool.serve(node, node.work[2]);
  CHECK(pool.finished(b));
}

TEST_CASE("a connection found broken ends its streams at once and gets nothing until it is back") {
  TwoClouds pool;
  const ClientId a = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& node = pool.holder("a");
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1}));
  Actions out;
  pool.core.on_peer_gone(node.peer.peer, "takes no messages", pool.now_ns, out);
  pool.take(std::move(out));
  CHECK(pool.error(a).message ==
        "node '" + node.hello.node_id + "' takes no messages while it was answering");
  for (int i = 0; i < 4; ++i) pool.submit(PoolFixture::chat("r" + std::to_string(i), 30));
  CHECK(node.work.size() == 1);
  pool.beat(node);  // it does not know yet: it is told to begin a new session, and does
  pool.beat(node);
  for (int i = 0; i < 4; ++i) pool.submit(PoolFixture::chat("s" + std::to_string(i), 30));
  CHECK(node.work.size() == 5);
}

TEST_CASE("a node that is back after its lease was over begins a new session") {
  TwoClouds pool;
  FakeNode& node = pool.nodes.at("cloud-1");
  node.beating = false;
  pool.advance_ms(3000);
  node.other.clear();
  pool.beat(node);
  REQUIRE(node.other.size() == 2);
  CHECK(std::get<Welcome>(node.other[0]).router_epoch == 2);  // makes it say hello
  CHECK(std::get<Welcome>(node.other[1]).router_epoch == 1);  // the answer to that
  pool.beat(node);
  CHECK(pool.core.nodes()[0].state == std::string("fresh"));
}

TEST_CASE("a stream that its node no longer knows is not waited for for ever") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.settle();
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1}));
  node.beat.running = 1;  // works on it
  pool.advance_ms(20'000);
  CHECK(pool.ends(client) == 0);
  node.beat.running = 0;  // its Done was lost with a connection
  pool.advance_ms(6000);
  CHECK(pool.error(client).code == ErrorCode::kNodeLost);
  CHECK(pool.core.stats().orphans == 1);
}

TEST_CASE("a failure before the first token is tried elsewhere, the caller's mistake is not") {
  TwoClouds pool;
  const ClientId a = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& first = pool.holder("a");
  pool.say(first, PoolFixture::accepted(first.work[0]));
  pool.say(first, PoolFixture::failed(first.work[0], ErrorCode::kInternal));
  FakeNode& second = pool.other(first);
  REQUIRE(second.work.size() == 1);
  pool.say(second, PoolFixture::failed(second.work[0], ErrorCode::kInvalidRequest));
  CHECK(pool.error(a).code == ErrorCode::kInvalidRequest);
  CHECK(total_work(pool) == 2);
}

TEST_CASE("a node that failed a request does not get it again, however fast it is") {
  PoolFixture pool;
  FakeNode& slow = pool.join("slow", Tier::kCloud, 4096, 4);
  FakeNode& fast = pool.join("fast", Tier::kCloud, 4096, 4);
  slow.beat.decode_tokens_per_s = 1;
  fast.beat.decode_tokens_per_s = 1000;
  pool.settle();
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  REQUIRE(fast.work.size() == 1);
  pool.say(fast, PoolFixture::failed(fast.work[0], ErrorCode::kInternal));
  CHECK(fast.work.size() == 1);
  REQUIRE(slow.work.size() == 1);
  pool.serve(slow, slow.work[0]);
  CHECK(pool.finished(client));
}

TEST_CASE("when every node fails a request the client gets the node's own error") {
  TwoClouds pool;
  const ClientId a = pool.submit(PoolFixture::chat("a", 30));
  for (int i = 0; i < 3 && pool.ends(a) == 0; ++i) {
    FakeNode& node = pool.holder("a");
    pool.say(node, PoolFixture::failed(node.work.back(), ErrorCode::kInternal));
  }
  CHECK(pool.error(a).code == ErrorCode::kInternal);
}

TEST_CASE("retries of failures do not multiply the load when all nodes fail") {
  TwoClouds pool;
  const int requests = 400;
  for (int i = 0; i < requests; ++i) {
    const std::string id = "r" + std::to_string(i);
    const ClientId client = pool.submit(PoolFixture::chat(id, 30));
    while (pool.ends(client) == 0) {
      FakeNode& node = pool.holder(id);
      pool.say(node, PoolFixture::failed(node.work.back(), ErrorCode::kInternal));
    }
  }
  CHECK(total_work(pool) <= static_cast<size_t>(requests * 1.1) + 10);
}

TEST_CASE("codes between node and router never reach a client") {
  TwoClouds pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& node = pool.holder("a");
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1}));
  pool.say(node, PoolFixture::failed(node.work[0], ErrorCode::kRejectedBusy));
  CHECK(pool.error(client).code == ErrorCode::kNodeLost);
}

TEST_CASE("when the client leaves its node is told and the client gets its one end") {
  TwoClouds pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& node = pool.holder("a");
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.cancel("a");
  CHECK(pool.error(client).code == ErrorCode::kCancelled);
  REQUIRE(node.cancels.size() == 1);
  CHECK(node.cancels[0].epoch == node.work[0].epoch);
  pool.cancel("a");
  pool.cancel("never heard of");
  CHECK(pool.ends(client) == 1);
  // A node that goes on all the same is told again.
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1}));
  CHECK(node.cancels.size() == 2);
}

TEST_CASE("the same request id twice at a time is refused") {
  TwoClouds pool;
  const ClientId first = pool.submit(PoolFixture::chat("a", 30));
  const ClientId second = pool.submit(PoolFixture::chat("a", 30));
  CHECK(pool.error(second).code == ErrorCode::kInvalidRequest);
  CHECK(pool.ends(first) == 0);
}

TEST_CASE("a request too large for the pool's messages is 413") {
  TwoClouds pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& node = pool.holder("a");
  Actions out;
  pool.core.on_unsendable(node.work[0], pool.now_ns, out);
  pool.take(std::move(out));
  CHECK(pool.error(client).code == ErrorCode::kPayloadTooLarge);
  CHECK(pool.core.live() == 0);
}

TEST_CASE("limits on live requests and on what they hold are answered, not exceeded") {
  RouterCoreConfig config;
  config.streams_max = 2;
  config.payload_bytes_max = 10'000;
  PoolFixture pool(config);
  pool.join("cloud-1", Tier::kCloud, 100'000, 8);
  pool.settle();
  pool.submit(PoolFixture::chat("a", 6000));
  CHECK(pool.error(pool.submit(PoolFixture::chat("b", 6000))).code == ErrorCode::kOverloaded);
  pool.submit(PoolFixture::chat("c", 30));
  CHECK(pool.error(pool.submit(PoolFixture::chat("d", 30))).code == ErrorCode::kOverloaded);
  CHECK(pool.core.live() == 2);
}

TEST_CASE("a stopping router ends everything once and takes nothing new") {
  TwoClouds pool;
  const ClientId a = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& node = pool.holder("a");
  Actions out;
  pool.core.end_all(pool.now_ns, out);
  pool.take(std::move(out));
  CHECK(pool.error(a).code == ErrorCode::kOverloaded);
  CHECK(node.cancels.size() == 1);
  CHECK(pool.error(pool.submit(PoolFixture::chat("b", 30))).code == ErrorCode::kOverloaded);
  CHECK(pool.core.live() == 0);
}

TEST_CASE("an operator's drain tells the node and keeps new work away from it") {
  TwoClouds pool;
  Actions out;
  REQUIRE(pool.core.drain_node("cloud-1", 5000, out));
  CHECK(!pool.core.drain_node("nobody", 5000, out));
  pool.take(std::move(out));
  FakeNode& drained = pool.nodes.at("cloud-1");
  REQUIRE(!drained.other.empty());
  CHECK(std::get<Drain>(drained.other.back()).grace_ms == 5000);
  for (int i = 0; i < 6; ++i) pool.submit(PoolFixture::chat("r" + std::to_string(i), 30));
  CHECK(drained.work.empty());
  // A new boot of it starts afresh.
  drained.hello.boot_epoch = drained.beat.boot_epoch = 2;
  pool.say(drained, drained.hello);
  pool.beat(drained);
  CHECK(!drained.work.empty());
}

// --- work that rises ---

namespace {

struct RisingPool : PoolFixture {
  RisingPool() {
    join("edge-1", Tier::kEdge, 512, 2);
    join("cloud-1", Tier::kCloud, 4096, 4);
    settle();
  }
  FakeNode& edge() { return nodes.at("edge-1"); }
  FakeNode& cloud() { return nodes.at("cloud-1"); }
  void rise(Request request, uint32_t epoch = 7) {
    say(edge(), Submit{std::move(request), epoch, 0});
  }
  template <typename T>
  std::vector<T> answers() const {
    std::vector<T> out;
    for (const PoolMessage& message : nodes.at("edge-1").other) {
      if (const T* value = std::get_if<T>(&message)) out.push_back(*value);
    }
    return out;
  }
};

}  // namespace

TEST_CASE("work that rises from an edge is answered over its connection, under its own epoch") {
  RisingPool pool;
  pool.rise(PoolFixture::chat("up", 3000));
  REQUIRE(pool.cloud().work.size() == 1);
  pool.serve(pool.cloud(), pool.cloud().work[0]);
  REQUIRE(pool.answers<Accepted>().size() == 1);
  CHECK(pool.answers<Accepted>()[0].epoch == 7);
  CHECK(pool.answers<Accepted>()[0].started.node_id == "cloud-1");
  CHECK(pool.answers<Accepted>()[0].started.decision == "risen from an edge");
  CHECK(pool.answers<Accepted>()[0].prompt_tokens == 10);
  CHECK(pool.answers<Tokens>().size() == 2);
  REQUIRE(pool.answers<Done>().size() == 1);
  CHECK(pool.answers<Done>()[0].epoch == 7);
  CHECK(pool.core.live() == 0);
}

TEST_CASE("the cloud tells apart the clients of two edges that call them the same") {
  RisingPool pool;
  Request request = PoolFixture::chat("up", 3000);
  request.tenant = "uid:1000";
  pool.rise(request);
  request.id = "direct";
  pool.submit(request);
  REQUIRE(pool.cloud().work.size() == 2);
  CHECK(pool.cloud().work[0].request.tenant == "edge-1/uid:1000");
  CHECK(pool.cloud().work[1].request.tenant == "uid:1000");
}

TEST_CASE("risen work never goes back to the edge it came from") {
  RisingPool pool;
  pool.rise(PoolFixture::chat("up", 30));  // would fit there
  CHECK(pool.edge().work.empty());
  CHECK(pool.cloud().work.size() == 1);
  pool.cloud().beating = false;
  pool.advance_ms(3000);
  CHECK(pool.edge().work.empty());
  CHECK(pool.core.queued() == 1);
  pool.advance_ms(30'000);
  CHECK(pool.edge().work.empty());
  CHECK(pool.answers<Rejected>().size() == 1);  // nothing had started
}

TEST_CASE("risen work that cannot be placed is rejected, one that has started fails") {
  RisingPool pool;
  pool.rise(PoolFixture::chat("unknown", 30, "gpt-9"));
  REQUIRE(pool.answers<Rejected>().size() == 1);
  CHECK(pool.answers<Rejected>()[0].error.code == ErrorCode::kModelNotFound);
  CHECK(pool.answers<Rejected>()[0].epoch == 7);
  Request local = PoolFixture::chat("local", 30);
  local.hints.local_only = true;
  pool.rise(local);
  CHECK(pool.answers<Rejected>().size() == 2);
  CHECK(pool.cloud().work.empty());
  pool.rise(PoolFixture::chat("up", 3000));
  pool.say(pool.cloud(), PoolFixture::accepted(pool.cloud().work[0]));
  pool.say(pool.cloud(), PoolFixture::tokens(pool.cloud().work[0], 0, {1}));
  pool.cloud().beating = false;
  pool.advance_ms(3000);
  REQUIRE(pool.answers<Failed>().size() == 1);
  CHECK(pool.answers<Failed>()[0].error.code == ErrorCode::kNodeLost);
}

TEST_CASE("an edge cancels what it sent up; another node cannot") {
  RisingPool pool;
  pool.rise(PoolFixture::chat("up", 3000));
  pool.say(pool.cloud(), Cancel{"up", 7});
  CHECK(pool.core.live() == 1);
  pool.say(pool.edge(), Cancel{"up", 6});
  CHECK(pool.core.live() == 1);
  pool.say(pool.edge(), Cancel{"up", 7});
  CHECK(pool.core.live() == 0);
  REQUIRE(pool.cloud().cancels.size() == 1);
  CHECK(pool.cloud().cancels[0].epoch == pool.cloud().work[0].epoch);
}

TEST_CASE("risen work ends with its edge, and is cancelled in the cloud") {
  RisingPool pool;
  pool.rise(PoolFixture::chat("up", 3000));
  pool.edge().beating = false;
  pool.advance_ms(3500);
  CHECK(pool.core.live() == 0);
  CHECK(pool.cloud().cancels.size() == 1);
}

TEST_CASE("the same work risen twice runs once; a newer epoch replaces it") {
  RisingPool pool;
  pool.rise(PoolFixture::chat("up", 3000), 7);
  pool.rise(PoolFixture::chat("up", 3000), 7);
  CHECK(pool.cloud().work.size() == 1);
  pool.rise(PoolFixture::chat("up", 3000), 8);
  CHECK(pool.cloud().work.size() == 2);
  CHECK(pool.cloud().cancels.size() == 1);
  pool.serve(pool.cloud(), pool.cloud().work[1]);
  REQUIRE(pool.answers<Done>().size() == 1);
  CHECK(pool.answers<Done>()[0].epoch == 8);
}

TEST_CASE("risen work ends with its edge's connection, and is cancelled in the cloud") {
  RisingPool pool;
  pool.rise(PoolFixture::chat("up", 3000));
  Actions out;
  pool.core.on_peer_gone(pool.edge().peer.peer, "test", pool.now_ns, out);
  pool.take(std::move(out));
  CHECK(pool.core.live() == 0);
  CHECK(pool.cloud().cancels.size() == 1);
}
