// Where requests go: the edge first when they fit, the cloud for what does not, and honest errors
// for what fits nowhere.
#include "cloud/router/placement.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

namespace {

// The demo pool: one served name, 512 tokens at the edge, 4,096 in the cloud.
struct DemoPool : PoolFixture {
  explicit DemoPool(RouterCoreConfig config = {}) : PoolFixture(std::move(config)) {
    join("edge-1", Tier::kEdge, 512, 2);
    join("cloud-1", Tier::kCloud, 4096, 4);
    settle();
  }
  FakeNode& edge() { return nodes.at("edge-1"); }
  FakeNode& cloud() { return nodes.at("cloud-1"); }
  std::string decision(FakeNode& node, ClientId client) {
    say(node, accepted(node.work.back()));
    const std::vector<Started> started = seen<Started>(client);
    return started.empty() ? "" : started.back().decision;
  }
};

}  // namespace

TEST_CASE("a short request stays at the edge, a long one rises to the cloud") {
  DemoPool pool;
  const ClientId small = pool.submit(PoolFixture::chat("small", 60));
  REQUIRE(pool.edge().work.size() == 1);
  CHECK(pool.decision(pool.edge(), small) == "fits the edge");
  CHECK(pool.seen<Started>(small)[0].node_id == "edge-1");
  CHECK(pool.seen<Started>(small)[0].tier == Tier::kEdge);
  const ClientId large = pool.submit(PoolFixture::chat("large", 3000));
  REQUIRE(pool.cloud().work.size() == 1);
  CHECK(pool.decision(pool.cloud(), large) == "too long for the edge");
}

TEST_CASE("a short prompt with a long wanted answer rises too") {
  DemoPool pool;
  Request request = PoolFixture::chat("r", 60);
  request.sampling.max_tokens = 600;
  pool.submit(request);
  CHECK(pool.cloud().work.size() == 1);
}

TEST_CASE(
    "an open-ended request rises when the edge would leave it too little room for an answer") {
  DemoPool pool;
  Request request = PoolFixture::chat("r", 1200);  // about 400 tokens
  request.sampling.max_tokens.reset();
  pool.submit(request);
  CHECK(pool.cloud().work.size() == 1);
  request = PoolFixture::chat("r2", 300);
  request.sampling.max_tokens.reset();
  pool.submit(request);
  CHECK(pool.edge().work.size() == 1);
}

TEST_CASE("with an edge alone, an open-ended request that just fits is served there") {
  PoolFixture pool;
  FakeNode& edge = pool.join("edge-1", Tier::kEdge, 512);
  pool.settle();
  Request request = PoolFixture::chat("r", 1200);
  request.sampling.max_tokens.reset();
  pool.submit(request);
  CHECK(edge.work.size() == 1);
}

TEST_CASE("a full edge sends the next request to the cloud") {
  DemoPool pool;
  pool.submit(PoolFixture::chat("a", 60));
  pool.submit(PoolFixture::chat("b", 60));
  CHECK(pool.edge().work.size() == 2);
  const ClientId third = pool.submit(PoolFixture::chat("c", 60));
  REQUIRE(pool.cloud().work.size() == 1);
  CHECK(pool.decision(pool.cloud(), third) == "edge busy");
}

TEST_CASE("the configured reserve of an edge stays free for its own clients") {
  RouterCoreConfig config;
  config.edge_reserve_slots = 1;
  DemoPool pool(config);
  pool.submit(PoolFixture::chat("a", 60));
  pool.submit(PoolFixture::chat("b", 60));
  CHECK(pool.edge().work.size() == 1);
  CHECK(pool.cloud().work.size() == 1);
}

TEST_CASE("KV memory that is short keeps a request away although a slot is free") {
  DemoPool pool;
  pool.edge().beat.kv_tokens_free = 20;
  pool.edge().beat.running = 1;
  pool.edge().beat.slots_free = 1;
  pool.beat(pool.edge());
  pool.submit(PoolFixture::chat("a", 60));
  CHECK(pool.edge().work.empty());
  CHECK(pool.cloud().work.size() == 1);
}

TEST_CASE("hints of tier are obeyed") {
  DemoPool pool;
  Request request = PoolFixture::chat("a", 60);
  request.hints.tier = Tier::kCloud;
  const ClientId a = pool.submit(request);
  REQUIRE(pool.cloud().work.size() == 1);
  CHECK(pool.decision(pool.cloud(), a) == "cloud asked for");
  request = PoolFixture::chat("b", 60);
  request.hints.tier = Tier::kEdge;
  const ClientId b = pool.submit(request);
  REQUIRE(pool.edge().work.size() == 1);
  CHECK(pool.decision(pool.edge(), b) == "edge asked for");
  // Too long for every edge: an error with that limit, never the cloud.
  request = PoolFixture::chat("c", 12'000);
  request.hints.tier = Tier::kEdge;
  const ClientId c = pool.submit(request);
  CHECK(pool.error(c).code == ErrorCode::kContextLength);
  CHECK(pool.error(c).limit_tokens == 512);
  request = PoolFixture::chat("d", 12'000);
  request.hints.local_only = true;
  CHECK(pool.error(pool.submit(request)).code == ErrorCode::kContextLength);
  CHECK(pool.cloud().work.size() == 1);
}

TEST_CASE("a hint for a tier without nodes is 503 with a time to come back") {
  PoolFixture pool;
  pool.join("edge-1", Tier::kEdge, 512);
  pool.settle();
  Request request = PoolFixture::chat("a", 60);
  request.hints.tier = Tier::kCloud;
  const RequestError error = pool.error(pool.submit(request));
  CHECK(error.code == ErrorCode::kOverloaded);
  CHECK(error.retry_after_ms > 0);
  CHECK(error.message == "no cloud node that serves model 'demo' is connected");
}

TEST_CASE("a session that has risen stays in the cloud, on the same node") {
  DemoPool pool;
  FakeNode& second = pool.join("cloud-2", Tier::kCloud, 4096, 4);
  Request request = PoolFixture::chat("long", 3000);
  request.hints.session = "s1";
  pool.submit(request);
  FakeNode& first_node = pool.cloud().work.empty() ? second : pool.cloud();
  REQUIRE(first_node.work.size() == 1);
  pool.serve(first_node, first_node.work[0]);
  for (int i = 0; i < 5; ++i) {
    request = PoolFixture::chat("short" + std::to_string(i), 60);
    request.hints.session = "s1";
    const ClientId client = pool.submit(request);
    REQUIRE(first_node.work.size() == 2 + static_cast<size_t>(i));
    CHECK(pool.decision(first_node, client) == "session has risen to the cloud");
    pool.serve(first_node, first_node.work.back());
  }
  // The same session name of another tenant is another session.
  request = PoolFixture::chat("other", 60);
  request.hints.session = "s1";
  request.tenant = "someone else";
  pool.submit(request);
  CHECK(pool.edge().work.size() == 1);
}

TEST_CASE(
    "a risen session comes back to the edge when no cloud is left, and when it has been idle for "
    "long") {
  DemoPool pool;
  Request request = PoolFixture::chat("long", 3000);
  request.hints.session = "s1";
  pool.submit(request);
  pool.serve(pool.cloud(), pool.cloud().work[0]);
  pool.cloud().beating = false;
  pool.advance_ms(3000);
  request = PoolFixture::chat("short", 60);
  request.hints.session = "s1";
  pool.submit(request);
  REQUIRE(pool.edge().work.size() == 1);
  pool.serve(pool.edge(), pool.edge().work[0]);
  pool.cloud().beating = true;
  pool.advance_ms(601'000);
  request.id = "much-later";
  pool.submit(request);
  CHECK(pool.edge().work.size() == 2);
}

TEST_CASE("the session table forgets the least recently used") {
  SessionTable sessions(2, 1000);
  sessions.served("a", {1, 0}, Tier::kCloud, true, 0);
  sessions.served("b", {2, 0}, Tier::kCloud, false, 0);
  sessions.served("a", {1, 0}, Tier::kCloud, false, 0);
  sessions.served("c", {3, 0}, Tier::kEdge, false, 0);
  CHECK(sessions.size() == 2);
  CHECK(sessions.find("b", 0) == nullptr);
  REQUIRE(sessions.find("a", 0) != nullptr);
  CHECK(sessions.find("a", 0)->risen);  // once risen, risen
  CHECK(sessions.find("a", 1000 * kNsPerMs) == nullptr);
}

TEST_CASE("among equal nodes the load spreads, among unequal ones the faster gets more") {
  PoolFixture pool;
  for (int i = 0; i < 4; ++i) pool.join("cloud-" + std::to_string(i), Tier::kCloud, 4096, 16);
  pool.settle();
  for (int i = 0; i < 32; ++i) pool.submit(PoolFixture::chat("r" + std::to_string(i), 300));
  for (const auto& [id, node] : pool.nodes) {
    CHECK_MESSAGE(node.work.size() >= 4, id);
    CHECK_MESSAGE(node.work.size() <= 12, id);
  }
  PoolFixture uneven;
  FakeNode& slow = uneven.add("slow", Tier::kCloud, 4096, 16);
  FakeNode& fast = uneven.add("fast", Tier::kCloud, 4096, 16);
  slow.beat.prefill_tokens_per_s = 100;
  slow.beat.decode_tokens_per_s = 5;
  fast.beat.prefill_tokens_per_s = 10'000;
  fast.beat.decode_tokens_per_s = 100;
  for (FakeNode* node : {&slow, &fast}) {
    uneven.say(*node, node->hello);
    uneven.beat(*node);
  }
  uneven.settle();
  for (int i = 0; i < 8; ++i) uneven.submit(PoolFixture::chat("u" + std::to_string(i), 300));
  CHECK(fast.work.size() == 8);
  CHECK(slow.work.empty());
}

TEST_CASE("a node with prefill queued is passed over for an idle one") {
  PoolFixture pool;
  FakeNode& busy = pool.join("cloud-1", Tier::kCloud, 4096, 8);
  FakeNode& idle = pool.join("cloud-2", Tier::kCloud, 4096, 8);
  busy.beat.prefill_tokens_queued = 100'000;
  pool.settle();
  pool.submit(PoolFixture::chat("r", 300));
  CHECK(idle.work.size() == 1);
}

TEST_CASE("a suspect node costs more; a stale one is used only when it is the only one") {
  PoolFixture pool;
  FakeNode& silent = pool.join("cloud-1", Tier::kCloud, 4096, 8);
  FakeNode& fresh = pool.join("cloud-2", Tier::kCloud, 4096, 8);
  silent.beat.lease_ttl_ms = fresh.beat.lease_ttl_ms = 3000;
  pool.settle();
  silent.beating = false;
  pool.advance_ms(500);  // suspect
  for (int i = 0; i < 4; ++i) pool.submit(PoolFixture::chat("a" + std::to_string(i), 30));
  CHECK(fresh.work.size() == 4);
  pool.advance_ms(1000);  // stale
  fresh.beat.slots_free = 0;
  fresh.beat.running = 8;
  pool.beat(fresh);
  pool.submit(PoolFixture::chat("b", 30));
  CHECK(silent.work.empty());  // waits for the fresh one
  CHECK(pool.core.queued() == 1);

  PoolFixture lone;
  FakeNode& only = lone.join("cloud-1", Tier::kCloud, 4096, 8);
  only.beat.lease_ttl_ms = 3000;
  lone.settle();
  only.beating = false;
  lone.advance_ms(1500);
  lone.submit(PoolFixture::chat("c", 30));
  CHECK(only.work.size() == 1);
}

TEST_CASE("a deadline that the edge would miss sends the request to the cloud") {
  DemoPool pool;
  pool.edge().beat.decode_tokens_per_s = 2;
  pool.beat(pool.edge());
  pool.cloud().beat.decode_tokens_per_s = 200;
  pool.beat(pool.cloud());
  Request request = PoolFixture::chat("a", 60);
  request.sampling.max_tokens = 100;
  request.hints.deadline_ms = 5000;
  const ClientId client = pool.submit(request);
  REQUIRE(pool.cloud().work.size() == 1);
  CHECK(pool.decision(pool.cloud(), client) == "edge would miss the deadline");
  CHECK(pool.cloud().work[0].request.hints.deadline_ms == 5000);
}

TEST_CASE(
    "a node that counts more tokens than it holds makes the request go on to a wider one, unseen "
    "by the client") {
  DemoPool pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 600));
  REQUIRE(pool.edge().work.size() == 1);
  pool.say(pool.edge(),
           PoolFixture::rejected(pool.edge().work[0], ErrorCode::kRejectedTooLong, 700, 512));
  REQUIRE(pool.cloud().work.size() == 1);
  CHECK(pool.events.at(client).empty());
  CHECK(pool.cloud().work[0].epoch > pool.edge().work[0].epoch);
  pool.serve(pool.cloud(), pool.cloud().work[0]);
  CHECK(pool.finished(client));
  CHECK(pool.seen<Started>(client).size() == 1);
  CHECK(pool.core.stats().recounted == 1);
}

TEST_CASE(
    "a request too long for every node is 400 with the counted tokens and the largest context") {
  DemoPool pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 12'000));
  REQUIRE(pool.cloud().work.size() == 1);  // estimated, so the widest node may count
  pool.say(pool.cloud(),
           PoolFixture::rejected(pool.cloud().work[0], ErrorCode::kRejectedTooLong, 5120, 4096));
  const RequestError error = pool.error(client);
  CHECK(error.code == ErrorCode::kContextLength);
  CHECK(error.prompt_tokens == 5120);
  CHECK(error.limit_tokens == 4096);
  CHECK(error.message.find("5120") != std::string::npos);
  CHECK(error.message.find("4096") != std::string::npos);
  CHECK(error.param == "messages");
}

TEST_CASE("a node that refuses as too long without a count is believed by its limit") {
  DemoPool pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 600));
  REQUIRE(pool.edge().work.size() == 1);
  pool.say(pool.edge(),
           PoolFixture::rejected(pool.edge().work[0], ErrorCode::kRejectedTooLong, 0, 512));
  REQUIRE(pool.cloud().work.size() == 1);
  pool.say(pool.cloud(),
           PoolFixture::rejected(pool.cloud().work[0], ErrorCode::kRejectedTooLong, 0, 4096));
  CHECK(pool.error(client).code == ErrorCode::kContextLength);
  CHECK(pool.error(client).limit_tokens == 4096);
  CHECK(pool.edge().work.size() == 1);
}

TEST_CASE("a prompt that cannot fit whatever the tokenizer is refused at once") {
  DemoPool pool;
  const ClientId client = pool.submit(PoolFixture::chat("a", 4096 * 16 + 100));
  CHECK(pool.error(client).code == ErrorCode::kContextLength);
  CHECK(pool.error(client).limit_tokens == 4096);
  CHECK(pool.cloud().work.empty());
}

TEST_CASE("prompts of token ids are counted exactly") {
  DemoPool pool;
  Request request;
  request.id = "ids";
  request.kind = Request::Kind::kCompletion;
  request.model = kModel;
  request.prompt_ids = {std::vector<int32_t>(496, 1)};
  request.sampling.max_tokens = 16;
  pool.submit(request);
  CHECK(pool.edge().work.size() == 1);
  request.id = "ids2";
  request.prompt_ids = {std::vector<int32_t>(497, 1)};
  pool.submit(request);
  CHECK(pool.cloud().work.size() == 1);
  request.id = "ids3";
  request.prompt_ids = {std::vector<int32_t>(5000, 1)};
  const ClientId client = pool.submit(request);
  CHECK(pool.error(client).code == ErrorCode::kContextLength);
  CHECK(pool.error(client).param == "prompt");
}

TEST_CASE("the router learns how many bytes a token has from what nodes count") {
  DemoPool pool;
  // 1,800 bytes at 3 bytes per token would need 600 tokens: too many for the edge.
  pool.submit(PoolFixture::chat("a", 1800));
  REQUIRE(pool.cloud().work.size() == 1);
  pool.say(pool.cloud(), PoolFixture::accepted(pool.cloud().work[0], 1800 / 6 + 14));
  pool.submit(PoolFixture::chat("b", 1800));
  CHECK(pool.edge().work.size() == 1);
}

TEST_CASE("the nodes' own average is used until the router has counted itself") {
  DemoPool pool;
  pool.cloud().beat.bytes_per_token = 5.0F;
  pool.edge().beat.bytes_per_token = 5.0F;
  pool.advance_ms(600);
  pool.submit(PoolFixture::chat("a", 1800));
  CHECK(pool.edge().work.size() == 1);
}

TEST_CASE("an unknown model is 404 and names what is served") {
  DemoPool pool;
  pool.join("cloud-2", Tier::kCloud, 4096, 4, "qwen");
  pool.advance_ms(200);
  const RequestError error = pool.error(pool.submit(PoolFixture::chat("a", 60, "gpt-9")));
  CHECK(error.code == ErrorCode::kModelNotFound);
  CHECK(error.message == "model 'gpt-9' is not served here; served: 'demo', 'qwen'");
  CHECK(error.param == "model");
}

TEST_CASE(
    "right after the router's start an unknown model is 503, for its node may be on its way") {
  PoolFixture pool;
  RequestError error = pool.error(pool.submit(PoolFixture::chat("a", 60)));
  CHECK(error.code == ErrorCode::kOverloaded);
  CHECK(error.retry_after_ms > 0);
  pool.join("cloud-1", Tier::kCloud, 4096, 4, "other");
  CHECK(pool.error(pool.submit(PoolFixture::chat("b", 60))).code == ErrorCode::kOverloaded);
  pool.settle();
  CHECK(pool.error(pool.submit(PoolFixture::chat("c", 60))).code == ErrorCode::kModelNotFound);
}

TEST_CASE("a known model without a live node is 503 with a time to come back") {
  PoolFixture pool;
  pool.join("cloud-1", Tier::kCloud, 4096).beating = false;
  pool.settle();
  const RequestError error = pool.error(pool.submit(PoolFixture::chat("a", 60)));
  CHECK(error.code == ErrorCode::kOverloaded);
  CHECK(error.retry_after_ms > 0);
}

TEST_CASE("a request that only a lost node could hold is 503, not the client's fault") {
  DemoPool pool;
  pool.cloud().beating = false;
  pool.advance_ms(3000);
  const RequestError error = pool.error(pool.submit(PoolFixture::chat("a", 12'000)));
  CHECK(error.code == ErrorCode::kOverloaded);
  CHECK(error.retry_after_ms > 0);
}

TEST_CASE("loading and draining nodes get nothing new") {
  DemoPool pool;
  pool.edge().beat.state = NodeState::kLoading;
  pool.beat(pool.edge());
  pool.submit(PoolFixture::chat("a", 60));
  CHECK(pool.edge().work.empty());
  CHECK(pool.cloud().work.size() == 1);
  pool.say(pool.cloud(), Drain{});
  pool.edge().beat.state = NodeState::kReady;
  pool.beat(pool.edge());
  pool.submit(PoolFixture::chat("b", 60));
  CHECK(pool.edge().work.size() == 1);
  // Too long for the edge, and the cloud is draining.
  CHECK(pool.error(pool.submit(PoolFixture::chat("c", 3000 * 4))).code == ErrorCode::kOverloaded);
  // What runs on a draining node goes on.
  pool.serve(pool.cloud(), pool.cloud().work[0]);
  CHECK(pool.finished(1));
}

TEST_CASE("images go only to nodes that accept them") {
  DemoPool pool;
  Request request = PoolFixture::chat("a", 60);
  ContentPart image;
  image.kind = ContentPart::Kind::kImage;
  image.mime = "image/png";
  image.bytes = "png";
  request.messages[0].parts.push_back(image);
  const RequestError error = pool.error(pool.submit(request));
  CHECK(error.code == ErrorCode::kUnsupported);
  CHECK(error.message == "no node accepts images for model 'demo'");
  pool.cloud().hello.models[0].images = true;
  pool.say(pool.cloud(), pool.cloud().hello);
  request.id = "b";
  const ClientId client = pool.submit(request);
  REQUIRE(pool.cloud().work.size() == 1);
  CHECK(pool.decision(pool.cloud(), client) == "images need the cloud");
}

TEST_CASE("estimates take the largest prompt for the context and all of them for the memory") {
  Request request;
  request.kind = Request::Kind::kCompletion;
  request.prompts = {std::string(300, 'a'), std::string(900, 'a')};
  request.choice_count = 2;
  request.sampling.max_tokens = 10;
  const Estimate estimate = estimate_request(request);
  CHECK(estimate.prompt_tokens(3.0F) == 300);
  CHECK(estimate.kv_tokens(3.0F, 256) == 400 + 4 * 10);
  CHECK(estimate.choice_count == 4);
}

// --- the way and the price ---

namespace {

// Accepted after a while: what the node does not account for was the way.
void accept_after(PoolFixture& pool, FakeNode& node, int64_t ms, int32_t held_us) {
  const Submit work = node.work.back();
  pool.now_ns += ms * kNsPerMs;
  Accepted accepted = PoolFixture::accepted(work);
  accepted.held_us = held_us;
  pool.say(node, accepted);
}

const NodeLoad& load_of(const PoolFixture& pool, const std::string& id) {
  return pool.core.registry().load(pool.core.registry().find_id(id));
}

}  // namespace

TEST_CASE("the way to a node is measured with its answers and counts in placement") {
  PoolFixture pool;
  FakeNode& far = pool.join("far", Tier::kCloud, 65536, 8);
  pool.settle();
  pool.submit(PoolFixture::chat("a", 30));
  accept_after(pool, far, 350, 50'000);
  CHECK(load_of(pool, "far").rtt_s == doctest::Approx(0.3).epsilon(0.01));
  pool.submit(PoolFixture::chat("b", 120'000));  // neither small nor large
  accept_after(pool, far, 900, 1000);
  CHECK(load_of(pool, "far").rtt_s == doctest::Approx(0.3).epsilon(0.01));
  Request large = PoolFixture::chat("c", 30);
  ContentPart image;
  image.kind = ContentPart::Kind::kImage;
  image.mime = "image/png";
  image.bytes = std::string(1'000'000, 'x');
  large.messages[0].parts.push_back(image);
  far.hello.models[0].images = true;
  pool.say(far, far.hello);
  pool.beat(far);
  pool.submit(std::move(large));
  accept_after(pool, far, 1300, 1000);
  CHECK(load_of(pool, "far").uplink_bytes_per_s == doctest::Approx(1'000'030).epsilon(0.02));
  for (const Submit& work : std::vector<Submit>(far.work)) {
    pool.say(far, PoolFixture::tokens(work, 0, {1}, true));
    pool.say(far, PoolFixture::done(work));
  }
  FakeNode& near = pool.join("near", Tier::kCloud, 65536, 8);
  pool.advance_ms(300);
  // Both idle and equally fast; the way alone tells them apart.
  for (int i = 0; i < 4; ++i) pool.submit(PoolFixture::chat("d" + std::to_string(i), 30));
  CHECK(near.work.size() == 4);
}

TEST_CASE("a node that does not say how long it held a request is not blamed for the way") {
  PoolFixture pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 8);
  pool.settle();
  pool.submit(PoolFixture::chat("a", 30));
  accept_after(pool, node, 800, 0);
  CHECK(load_of(pool, "cloud-1").rtt_s == 0.0F);
}

TEST_CASE("a dear node is taken when it is faster by more than its price is worth") {
  RouterCoreConfig config;
  config.price_weight = 0.5F;
  PoolFixture pool(config);
  FakeNode& dear = pool.add("dear", Tier::kCloud, 65536, 8);
  dear.hello.price = 4.0F;  // two seconds
  dear.beat.prefill_tokens_per_s = 10'000;
  pool.say(dear, dear.hello);
  pool.beat(dear);
  FakeNode& cheap = pool.join("cheap", Tier::kCloud, 65536, 8);
  cheap.beat.prefill_tokens_per_s = 1000;
  pool.settle();
  pool.submit(PoolFixture::chat("short", 900));
  CHECK(cheap.work.size() == 1);
  pool.submit(PoolFixture::chat("long", 30'000));  // ten seconds against one
  CHECK(dear.work.size() == 1);
}

TEST_CASE("in a pool too large to look at every node, the session's own is found all the same") {
  PoolFixture pool;
  for (int i = 0; i < 1500; ++i) {
    FakeNode& node = pool.add("n" + std::to_string(i), Tier::kCloud, 4096, 4);
    node.beat.interval_ms = 10'000;  // few beats: this is not about them
    node.beat.lease_ttl_ms = 60'000;
    pool.say(node, node.hello);
    pool.beat(node);
  }
  Request first = PoolFixture::chat("first", 30);
  first.hints.session = "s";
  pool.submit(std::move(first));
  const auto holder = std::find_if(pool.nodes.begin(), pool.nodes.end(),
                                   [](const auto& entry) { return !entry.second.work.empty(); });
  REQUIRE(holder != pool.nodes.end());
  for (int i = 0; i < 3; ++i) {
    Request next = PoolFixture::chat("next" + std::to_string(i), 30);
    next.hints.session = "s";
    pool.submit(std::move(next));
  }
  CHECK(holder->second.work.size() == 4);
  // And the rest spreads.
  for (int i = 0; i < 300; ++i) pool.submit(PoolFixture::chat("r" + std::to_string(i), 30));
  size_t used = 0;
  for (const auto& [id, node] : pool.nodes) used += !node.work.empty();
  CHECK(used > 200);
}
