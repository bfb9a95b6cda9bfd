// A request's way over its nodes: exactly one end, no gap and no repeat, lost nodes.
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

// The request "a" of `client`, which `node` has accepted and, given token ids, begun to answer.
struct Answering : TwoClouds {
  explicit Answering(std::vector<int32_t> ids = {1})
      : client(submit(chat("a", 30))), node(holder("a")), work(node.work[0]) {
    say(node, accepted(work));
    if (!ids.empty()) say(node, tokens(work, 0, std::move(ids)));
  }
  const ClientId client;
  FakeNode& node;
  const Submit work;
};

struct OneCloud : PoolFixture {
  OneCloud() : node(join("cloud-1", Tier::kCloud, 4096, 4)) { settle(); }
  FakeNode& node;
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
  Answering pool({1, 2});
  pool.say(pool.node, PoolFixture::tokens(pool.node.work[0], 3, {4}));
  CHECK(pool.error(pool.client).code == ErrorCode::kNodeLost);
  CHECK(pool.error(pool.client).message.find("gap: offset 3 after 2 tokens") != std::string::npos);
  CHECK(pool.node.cancels.size() == 1);
  CHECK(pool.core.stats().protocol_faults == 1);
}

TEST_CASE("a repeated chunk is dropped, one that repeats with other tokens is a fault") {
  Answering pool({1, 2});
  pool.say(pool.node, PoolFixture::tokens(pool.node.work[0], 0, {1, 2}));
  CHECK(pool.seen<TokenChunk>(pool.client).size() == 1);
  CHECK(pool.ends(pool.client) == 0);
  pool.say(pool.node, PoolFixture::tokens(pool.node.work[0], 1, {9}));
  CHECK(pool.error(pool.client).code == ErrorCode::kNodeLost);
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
  OneCloud pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  const Submit old = pool.node.work[0];
  pool.say(pool.node, PoolFixture::rejected(old, ErrorCode::kRejectedBusy));
  pool.beat(pool.node);
  REQUIRE(pool.node.work.size() == 2);
  pool.say(pool.node, PoolFixture::accepted(old));
  pool.say(pool.node, PoolFixture::tokens(old, 0, {6, 6, 6}, true));
  pool.say(pool.node, PoolFixture::done(old));
  CHECK(pool.events.at(client).empty());
  pool.serve(pool.node, pool.node.work[1]);
  CHECK(pool.finished(client));
}

TEST_CASE("a node that dies while it answers ends the stream with an error within three seconds") {
  Answering pool({1, 2});
  pool.node.beating = false;
  const int64_t killed_ns = pool.now_ns;
  while (pool.ends(pool.client) == 0 && pool.now_ns - killed_ns < 10'000 * kNsPerMs)
    pool.advance_ms(10);
  CHECK(pool.now_ns - killed_ns <= 3000 * kNsPerMs);
  CHECK(pool.error(pool.client).code == ErrorCode::kNodeLost);
  CHECK(pool.error(pool.client).message ==
        "node '" + pool.node.hello.node_id + "' was lost while it was answering");
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
    OneCloud pool;
    const ClientId client = pool.submit(PoolFixture::chat("a", 30));
    pool.node.beating = false;
    pool.advance_ms(5000);
    CHECK(pool.ends(client) == 0);
    CHECK(pool.core.queued() == 1);
    if (comes_back) {
      pool.beat(pool.node);  // told to say hello, which it does
      pool.beat(pool.node);
      REQUIRE(pool.node.work.size() == 2);
      pool.serve(pool.node, pool.node.work[1]);
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

TEST_CASE("a hello said again on a live connection changes nothing for what runs there") {
  for (const bool grants : {false, true}) {
    CAPTURE(grants);
    PoolFixture pool;
    FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 3);
    node.grants = grants;
    pool.settle();
    const ClientId a = pool.submit(PoolFixture::chat("a", 30));
    const ClientId b = pool.submit(PoolFixture::chat("b", 30));
    REQUIRE(node.work.size() == 2);
    pool.say(node, PoolFixture::accepted(node.work[0]));
    pool.say(node, PoolFixture::tokens(node.work[0], 0, {1}));
    // Repeated because its welcome was slow, or said anew because it serves one more model.
    ModelInfo more;
    more.id = "more";
    more.context_tokens = 4096;
    node.hello.models.push_back(more);
    pool.say(node, node.hello);
    node.beat.slots_free = 1;
    node.beat.running = 2;
    pool.advance_ms(200);
    CHECK(pool.ends(a) == 0);
    CHECK(pool.ends(b) == 0);
    CHECK(node.cancels.empty());
    CHECK(pool.core.models().size() == 2);
    // No more than there is room for.
    for (int i = 0; i < 3; ++i) pool.submit(PoolFixture::chat("n" + std::to_string(i), 30));
    CHECK(node.work.size() == 3);
    pool.say(node, PoolFixture::tokens(node.work[0], 1, {2}, true));
    pool.say(node, PoolFixture::done(node.work[0]));
    CHECK(pool.finished(a));
    pool.serve(node, Submit(node.work[1]));
    CHECK(pool.finished(b));
  }
}

TEST_CASE("a new life on the same connection ends the streams of the one before it, each once") {
  TwoClouds pool;
  const ClientId a = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& node = pool.holder("a");
  FakeNode& other = pool.other(node);
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1}));
  other.beat.slots_free = 0;
  other.beat.running = 4;
  pool.beat(other);
  const ClientId b = pool.submit(PoolFixture::chat("b", 30));
  REQUIRE(node.work.size() == 2);
  const std::vector<Submit> before = node.work;
  other.beat.slots_free = 4;
  other.beat.running = 0;
  pool.beat(other);
  const size_t told = node.other.size();
  node.hello.boot_epoch = node.beat.boot_epoch = 2;
  node.beat.seq = 0;
  node.arrived = 0;
  pool.say(node, node.hello);
  CHECK(pool.error(a).code == ErrorCode::kNodeLost);
  REQUIRE(other.work.size() == 1);
  CHECK(other.work[0].request.id == "b");
  // The new life is welcomed and hears nothing of what it never had.
  CHECK(node.cancels.empty());
  REQUIRE(node.other.size() == told + 1);
  CHECK(std::holds_alternative<Welcome>(node.other.back()));
  // What the earlier one still had on its way is nobody's.
  pool.say(node, PoolFixture::tokens(before[0], 1, {2}, true));
  pool.say(node, PoolFixture::done(before[0]));
  pool.serve(node, before[1]);
  CHECK(pool.ends(a) == 1);
  CHECK(pool.ends(b) == 0);
  pool.serve(other, Submit(other.work[0]));
  CHECK(pool.finished(b));
  // It is a node like any other from its first beat on.
  other.beating = false;
  pool.advance_ms(3500);
  const ClientId c = pool.submit(PoolFixture::chat("c", 30));
  REQUIRE(node.work.size() == 3);
  pool.serve(node, Submit(node.work[2]));
  CHECK(pool.finished(c));
}

TEST_CASE("a request whose only node restarts waits for it to be ready again") {
  OneCloud pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  pool.node.hello.boot_epoch = pool.node.beat.boot_epoch = 2;
  pool.node.beat.state = NodeState::kLoading;
  pool.say(pool.node, pool.node.hello);
  pool.advance_ms(2000);
  CHECK(pool.ends(client) == 0);
  pool.node.beat.state = NodeState::kReady;
  pool.advance_ms(300);
  REQUIRE(pool.node.work.size() == 2);
  pool.serve(pool.node, pool.node.work[1]);
  CHECK(pool.finished(client));
}

TEST_CASE("on a new connection running streams end and unstarted requests are sent again") {
  OneCloud pool;
  const ClientId a = pool.submit(PoolFixture::chat("a", 30));
  const ClientId b = pool.submit(PoolFixture::chat("b", 30));
  const Submit work = pool.node.work[0];
  pool.say(pool.node, PoolFixture::accepted(work));
  pool.say(pool.node, PoolFixture::tokens(work, 0, {1}));
  pool.node.other.clear();
  pool.node.peer.peer = "second-connection";
  pool.say(pool.node, pool.node.hello);
  CHECK(pool.node.other.size() == 1);  // welcome
  CHECK(pool.error(a).code == ErrorCode::kNodeLost);
  CHECK(pool.error(a).message == "node 'cloud-1' lost its connection while it was answering");
  REQUIRE(pool.node.work.size() == 3);
  CHECK(pool.node.work[2].request.id == "b");
  CHECK(pool.node.work[2].epoch > pool.node.work[1].epoch);
  pool.serve(pool.node, pool.node.work[2]);
  CHECK(pool.finished(b));
}

TEST_CASE("a connection found broken ends its streams at once and gets nothing until it is back") {
  Answering pool;
  Actions out;
  pool.core.on_peer_gone(pool.node.peer.peer, "takes no messages", pool.now_ns, out);
  pool.take(std::move(out));
  CHECK(pool.error(pool.client).message ==
        "node '" + pool.node.hello.node_id + "' takes no messages while it was answering");
  for (int i = 0; i < 4; ++i) pool.submit(PoolFixture::chat("r" + std::to_string(i), 30));
  CHECK(pool.node.work.size() == 1);
  pool.beat(pool.node);  // it does not know yet: it is told to begin a new session, and does
  pool.beat(pool.node);
  for (int i = 0; i < 4; ++i) pool.submit(PoolFixture::chat("s" + std::to_string(i), 30));
  CHECK(pool.node.work.size() == 5);
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
  OneCloud pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  pool.say(pool.node, PoolFixture::accepted(pool.node.work[0]));
  pool.say(pool.node, PoolFixture::tokens(pool.node.work[0], 0, {1}));
  pool.node.beat.running = 1;  // works on it
  pool.advance_ms(20'000);
  CHECK(pool.ends(client) == 0);
  pool.node.beat.running = 0;  // its Done was lost with a connection
  pool.advance_ms(6000);
  CHECK(pool.error(client).code == ErrorCode::kNodeLost);
  CHECK(pool.core.stats().orphans == 1);
}

TEST_CASE("a node that loses a request twice does not get it a third time") {
  TwoClouds pool;
  FakeNode& forgetful = pool.nodes.at("cloud-1");
  FakeNode& good = pool.nodes.at("cloud-2");
  forgetful.beat.decode_tokens_per_s = 1000;  // so it is chosen as long as it may be
  good.beat.decode_tokens_per_s = 1;
  pool.advance_ms(500);
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  REQUIRE(forgetful.work.size() == 1);
  pool.advance_ms(11'000);
  CHECK(forgetful.work.size() == 2);
  REQUIRE(good.work.size() == 1);
  pool.serve(good, good.work[0]);
  CHECK(pool.finished(client));
}

TEST_CASE("a node that beats on and never takes a request loses it within about a minute") {
  TwoClouds pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 30));
  FakeNode& deaf = pool.holder("a");
  FakeNode& good = pool.other(deaf);
  deaf.beat.last_assignment_seq = 0;
  pool.advance_ms(55'000);  // a large prompt may take that long to arrive
  CHECK(pool.ends(client) == 0);
  CHECK(good.work.empty());
  pool.advance_ms(6000);
  REQUIRE(good.work.size() == 1);
  CHECK(deaf.cancels.size() == 1);
  pool.serve(good, good.work[0]);
  CHECK(pool.finished(client));
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
  Answering pool;
  pool.say(pool.node, PoolFixture::failed(pool.node.work[0], ErrorCode::kRejectedBusy));
  CHECK(pool.error(pool.client).code == ErrorCode::kNodeLost);
}

TEST_CASE("when the client leaves its node is told and the client gets its one end") {
  Answering pool(std::vector<int32_t>{});
  pool.cancel("a");
  CHECK(pool.error(pool.client).code == ErrorCode::kCancelled);
  REQUIRE(pool.node.cancels.size() == 1);
  CHECK(pool.node.cancels[0].epoch == pool.node.work[0].epoch);
  pool.cancel("a");
  pool.cancel("never heard of");
  CHECK(pool.ends(pool.client) == 1);
  // A node that goes on all the same is told again.
  pool.say(pool.node, PoolFixture::tokens(pool.node.work[0], 0, {1}));
  CHECK(pool.node.cancels.size() == 2);
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

TEST_CASE("a rolling restart of every node fails no request") {
  PoolFixture pool;
  for (int i = 0; i < 3; ++i)
    pool.join("cloud-" + std::to_string(i), Tier::kCloud, 4096, 4).grants = true;
  pool.settle();
  std::vector<ClientId> clients;
  std::map<std::string, size_t> done;  // works answered, per node
  int id = 0;
  // Four requests arrive every 100 ms, each takes 300 ms.
  const auto run_ms = [&](int64_t ms) {
    for (int64_t t = 0; t < ms; t += 100) {
      for (int i = 0; i < 3; ++i)
        clients.push_back(pool.submit(PoolFixture::chat("r" + std::to_string(id++), 30)));
      for (auto& [name, node] : pool.nodes) {
        node.beat.running = static_cast<int32_t>(node.work.size() - done[name]);
        node.beat.slots_free = std::max(0, 4 - node.beat.running);
      }
      pool.advance_ms(100);
      for (auto& [name, node] : pool.nodes) {
        if (!node.beating) continue;
        for (size_t i = done[name]; i < node.work.size(); ++i) {
          const Submit work = node.work[i];
          pool.serve(node, work);
          done[name] = i + 1;
        }
      }
    }
  };
  run_ms(500);
  for (int i = 0; i < 3; ++i) {
    const std::string name = "cloud-" + std::to_string(i);
    FakeNode& node = pool.nodes.at(name);
    Actions out;
    REQUIRE(pool.core.drain_node(name, 1000, out));
    pool.take(std::move(out));
    node.beat.state = NodeState::kDraining;
    run_ms(400);
    REQUIRE(done[name] == node.work.size());
    node.beating = false;  // it stops, and is away for longer than its lease
    run_ms(2500);
    node.hello.boot_epoch = ++node.beat.boot_epoch;
    node.peer.peer += "+";
    node.beat.state = NodeState::kReady;
    node.beat.running = 0;
    node.beat.slots_free = 4;
    node.arrived = 0;
    node.beating = true;
    pool.say(node, node.hello);
    const size_t before = node.work.size();
    run_ms(500);
    CHECK(node.work.size() > before);
  }
  run_ms(300);
  pool.advance_ms(200);
  for (auto& [name, node] : pool.nodes) {
    for (size_t i = done[name]; i < node.work.size(); ++i) pool.serve(node, Submit(node.work[i]));
  }
  for (const ClientId client : clients) REQUIRE(pool.finished(client));
  CHECK(pool.core.stats().retried == 0);
}

TEST_CASE(
    "a stream cut after its first token ends with a typed error, not a hang (Dynamo #13088)") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.join("cloud-2", Tier::kCloud, 4096, 4).beat.prefill_tokens_queued = 1'000'000;
  pool.settle();
  const ClientId client = pool.submit(PoolFixture::chat("r", 30));
  REQUIRE(node.work.size() == 1);
  pool.say(node, PoolFixture::accepted(node.work[0]));
  pool.say(node, PoolFixture::tokens(node.work[0], 0, {1}));
  node.beating = false;
  pool.advance_ms(3000);
  CHECK(pool.error(client).code == ErrorCode::kNodeLost);
}

TEST_CASE("one dead backend does not hold up the others (production-stack #749)") {
  PoolFixture pool;
  FakeNode& dead = pool.join("dead", Tier::kCloud, 4096, 64);
  FakeNode& alive = pool.join("alive", Tier::kCloud, 4096, 64);
  pool.settle();
  dead.beating = false;
  std::vector<ClientId> clients;
  for (int i = 0; i < 20; ++i)
    clients.push_back(pool.submit(PoolFixture::chat("r" + std::to_string(i), 30)));
  pool.advance_ms(2500);
  while (!alive.work.empty()) {
    const Submit work = alive.work.back();
    alive.work.pop_back();
    pool.serve(alive, work);
  }
  for (const ClientId client : clients) CHECK(pool.finished(client));
}

TEST_CASE(
    "a client that leaves is cancelled on its node, streaming or not (production-stack #634, "
    "LiteLLM #37140, Ollama #11889)") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.settle();
  pool.submit(PoolFixture::chat("prefilling", 30));
  pool.submit(PoolFixture::chat("running", 30));
  pool.say(node, PoolFixture::accepted(node.work.at(1)));
  pool.cancel("prefilling");
  pool.cancel("running");
  REQUIRE(node.cancels.size() == 2);
  CHECK(node.cancels[0].id == "prefilling");
  CHECK(node.cancels[1].id == "running");
}

TEST_CASE("a node whose wall clock is wrong is as alive as any (GPUStack #1576)") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  node.beat.sender_mono_ns = int64_t{1} << 60;  // and it runs backwards
  for (int i = 0; i < 30; ++i) {
    node.beat.sender_mono_ns -= 3600 * kNsPerSecond;
    pool.advance_ms(100);
  }
  CHECK(std::string(pool.core.nodes()[0].state) == "fresh");
}

TEST_CASE(
    "when a request's own tier fails it, the other tier takes it (GPUStack #4459, GPUStack #4815, "
    "llm-d #2345)") {
  PoolFixture pool;
  FakeNode& edge = pool.join("edge-1", Tier::kEdge, 512, 4);
  FakeNode& cloud = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  pool.settle();
  const ClientId client = pool.submit(PoolFixture::chat("r", 30));
  REQUIRE(edge.work.size() == 1);
  pool.say(edge, PoolFixture::failed(edge.work[0], ErrorCode::kInternal));
  REQUIRE(cloud.work.size() == 1);
  pool.serve(cloud, Submit(cloud.work[0]));
  CHECK(pool.finished(client));
}

TEST_CASE(
    "a model that no node serves is refused by its name (Paddler #60), a failed one tried again "
    "(Paddler #41)") {
  PoolFixture pool;
  FakeNode& one = pool.join("cloud-1", Tier::kCloud, 4096, 4);
  FakeNode& two = pool.join("cloud-2", Tier::kCloud, 4096, 4);
  pool.settle();
  CHECK(pool.error(pool.submit(PoolFixture::chat("x", 30, "other"))).code ==
        ErrorCode::kModelNotFound);
  const ClientId client = pool.submit(PoolFixture::chat("r", 30));
  FakeNode& first = one.work.empty() ? two : one;
  FakeNode& second = one.work.empty() ? one : two;
  pool.say(first, PoolFixture::failed(first.work.at(0), ErrorCode::kInternal));
  REQUIRE(second.work.size() == 1);
  pool.serve(second, Submit(second.work[0]));
  CHECK(pool.finished(client));
}
