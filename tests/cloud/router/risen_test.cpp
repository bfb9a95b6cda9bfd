// Work that rises from an edge through the router's core to the cloud, and its answers back down.
#include <doctest/doctest.h>

#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

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

TEST_CASE("input embeddings do not leave their gateway, parts of text and ids do") {
  RisingPool pool;
  Request request = PoolFixture::chat("up", 3000);
  request.kind = Request::Kind::kCompletion;
  request.messages.clear();
  request.prompt_parts.resize(3);
  request.prompt_parts[0].text = std::string(3000, 'x');
  request.prompt_parts[1].kind = PromptPart::Kind::kIds;
  request.prompt_parts[1].ids = {1, 2};
  request.prompt_parts[2].kind = PromptPart::Kind::kEmbeddings;
  request.prompt_parts[2].rows = {EmbeddingRows::Type::kF32, 1, 2, "12345678"};
  pool.rise(request);
  CHECK(pool.cloud().work.empty());
  REQUIRE(pool.answers<Rejected>().size() == 1);
  CHECK(pool.answers<Rejected>()[0].error.code == ErrorCode::kUnsupported);
  request.id = "up2";
  request.prompt_parts.pop_back();
  pool.rise(request);
  REQUIRE(pool.cloud().work.size() == 1);
  CHECK(pool.cloud().work[0].request.prompt_parts.size() == 2);
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

TEST_CASE("a risen request that is said again after its end does not run again") {
  RisingPool pool;
  pool.rise(PoolFixture::chat("up", 3000), 7);
  REQUIRE(pool.cloud().work.size() == 1);
  pool.serve(pool.cloud(), pool.cloud().work[0]);
  REQUIRE(pool.answers<Done>().size() == 1);
  pool.rise(PoolFixture::chat("up", 3000), 7);  // a frame that came twice
  CHECK(pool.cloud().work.size() == 1);
  CHECK(pool.core.live() == 0);
  CHECK(pool.core.stats().stale_messages == 1);
  pool.rise(PoolFixture::chat("up", 3000), 8);  // asked anew
  CHECK(pool.cloud().work.size() == 2);
}
