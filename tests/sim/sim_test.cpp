// The simulation itself: that a seed is a world, that its parts behave as they say, and that worlds
// which once broke stay whole.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "common/base/clock.h"
#include "tools/sim/content.h"
#include "tools/sim/network.h"
#include "tools/sim/sim_engine.h"
#include "tools/sim/simulation.h"

using namespace updraft;
using namespace updraft::sim;

namespace {

Request chat(const std::string& id, const std::string& text, int32_t max_tokens) {
  Request request;
  request.id = id;
  request.model = "m";
  ChatMessage message{"user", {}};
  message.parts.push_back({});
  message.parts[0].text = text;
  request.messages.push_back(std::move(message));
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

class Ends : public NodeEnd, public RouterEnd {
 public:
  void on_frame(int, std::vector<std::byte>&& frame) override { at_node.push_back(frame); }
  void on_link_changed(int) override { ++changes; }
  void on_frame(const PeerId& from, int, std::vector<std::byte>&& frame) override {
    peer = from;
    at_router.push_back(frame);
  }
  void on_room() override { ++rooms; }

  std::vector<std::vector<std::byte>> at_node;
  std::vector<std::vector<std::byte>> at_router;
  PeerId peer;
  int changes = 0;
  int rooms = 0;
};

struct Wire {
  explicit Wire(NetworkConfig config) : world(7, false), network(world, config) {
    network.add_router(ends);
    network.open(0);
    network.add_node(ends);
    network.dial(0);
    world.run_until(kNsPerSecond);
    REQUIRE(network.node_connected(0, 0));
  }
  bool say(uint8_t value, size_t bytes = 1) {
    const std::vector<std::byte> frame(bytes, std::byte{value});
    return network.node_send(0, 0, frame);
  }
  void run_ms(int64_t ms) { world.run_until(world.now_ns() + ms * kNsPerMs); }

  Ends ends;
  World world;
  Network network;
};

NetworkConfig plain() {
  NetworkConfig config;
  config.delay_min_ns = kNsPerMs;
  config.delay_max_ns = 20 * kNsPerMs;
  return config;
}

}  // namespace

TEST_CASE("the same seed is the same world, another seed another") {
  for (const uint64_t seed : {1, 2, 3, 4, 5}) {
    const Report once = simulate_seed(seed, {});
    const Report again = simulate_seed(seed, {});
    CHECK_FALSE(once.violation);
    CHECK(once.hash == again.hash);
    CHECK(once.event_count == again.event_count);
    CHECK(once.hash != simulate_seed(seed + 100, {}).hash);
  }
}

TEST_CASE("frames of one direction keep their order, whatever their delays") {
  Wire wire(plain());
  for (uint8_t i = 0; i < 50; ++i) REQUIRE(wire.say(i));
  wire.run_ms(2000);
  REQUIRE(wire.ends.at_router.size() == 50);
  for (uint8_t i = 0; i < 50; ++i) CHECK(wire.ends.at_router[i][0] == std::byte{i});
}

TEST_CASE("a clogged direction holds everything back and lets it through afterwards") {
  Wire wire(plain());
  wire.network.clog(0, 0, Direction::kUp, kNsPerSecond);
  wire.say(1);
  wire.run_ms(900);
  CHECK(wire.ends.at_router.empty());
  wire.run_ms(300);
  CHECK(wire.ends.at_router.size() == 1);
  CHECK(wire.network.node_connected(0, 0));
}

TEST_CASE("a full pipe refuses, and says when there is room again") {
  NetworkConfig config = plain();
  config.pipe_bytes_max = 1000;
  Wire wire(config);
  CHECK(wire.say(1, 900));
  CHECK_FALSE(wire.say(2, 200));
  const int changes = wire.ends.changes;
  wire.run_ms(100);
  CHECK(wire.ends.changes > changes);
  CHECK(wire.say(2, 200));
}

TEST_CASE("a partition breaks the connection at both ends, a router learns of it as it sends") {
  Wire wire(plain());
  wire.say(1);
  wire.run_ms(100);
  const PeerId peer = wire.ends.peer;
  wire.network.cut(0, 0, Direction::kUp);
  wire.network.cut(0, 0, Direction::kDown);
  wire.run_ms(10'000);
  CHECK_FALSE(wire.network.node_connected(0, 0));
  const std::vector<std::byte> frame(1);
  CHECK(wire.network.router_send(peer, frame) == PoolListener::SendOutcome::kGone);
  wire.network.mend(0, 0);
  wire.run_ms(10'000);
  CHECK(wire.network.node_connected(0, 0));
  CHECK(wire.network.connection_count(0, 0) == 2);
  wire.say(2);
  wire.run_ms(100);
  CHECK(wire.ends.peer != peer);
}

TEST_CASE("an orderly farewell lets what was sent arrive, a reset does not") {
  for (const bool orderly : {true, false}) {
    Wire wire(plain());
    wire.say(1);
    wire.network.hang_up(0, orderly ? Farewell::kOrderly : Farewell::kReset);
    wire.run_ms(100);
    CHECK(wire.ends.at_router.size() == (orderly ? 1 : 0));
  }
}

TEST_CASE("lossy wires lose about the share that they should, and repeat the same frames") {
  NetworkConfig config = plain();
  config.loss = 0.3;
  config.replay = 0.5;
  config.detect_ns = 0;
  Wire wire(config);
  for (int i = 0; i < 4000; ++i) wire.say(static_cast<uint8_t>(i));
  wire.run_ms(5000);
  const auto count = static_cast<double>(wire.ends.at_router.size());
  CHECK(count == doctest::Approx(4000 * 0.7 * 1.5).epsilon(0.06));
}

TEST_CASE("an engine alone answers at its measured rate, with the request's own tokens") {
  World world(3, false);
  EngineSpec spec;
  spec.prefill_tokens_per_s = 1000;
  spec.decode_tokens_per_s = 20;
  const SimModel model{"m", "d", 4, 8};
  const auto engine = std::make_shared<SimEngine>(world, spec, model, "n", Tier::kCloud);
  std::vector<Event> events;
  const Request request = chat("r", std::string(400, 'x'), 40);  // 103 tokens
  engine->submit(request, [&](Event event) { events.push_back(std::move(event)); });
  world.run_until(60 * kNsPerSecond);
  REQUIRE(std::holds_alternative<Finished>(events.back()));
  const Finished& finished = std::get<Finished>(events.back());
  CHECK(finished.usage.prompt_tokens == 103);
  CHECK(finished.usage.completion_tokens == 40);
  const double expected_s = 103.0 / 1000 + 39.0 / 20;
  CHECK(static_cast<double>(finished.timings.total_ns) / 1e9 ==
        doctest::Approx(expected_s).epsilon(0.01));
  const auto& chunk = std::get<TokenChunk>(events[1]);
  CHECK(chunk.ids[0] == token_at(content_hash(request), 0, 0, generation_of(chunk.ids[0])));
  CHECK(engine->check_pages().empty());
  CHECK(engine->kv_tokens_free() == engine->kv_tokens_total());
}

TEST_CASE("answers that give way go to host memory and come back, faster than computed again") {
  std::vector<int64_t> last_ns(2, 0);
  for (const bool swap : {false, true}) {
    World world(3, false);
    EngineSpec spec;
    spec.slots = 4;
    spec.context_tokens = 512;
    spec.kv_tokens = 640;  // four that end at 200 tokens do not fit
    spec.kv_swap_tokens = swap ? 2048 : 0;
    spec.prefill_tokens_per_s = 100;
    const SimModel model{"m", "d", 4, 8};
    const auto engine = std::make_shared<SimEngine>(world, spec, model, "n", Tier::kCloud);
    int ends = 0;
    for (int i = 0; i < 4; ++i) {
      engine->submit(
          chat("r" + std::to_string(i), std::string(400, static_cast<char>('a' + i)), 100),
          [&](Event event) {
            if (!is_end(event)) return;
            ++ends;
            last_ns[swap ? 1 : 0] = world.now_ns();
            CHECK(engine->check_pages() == "");
          });
    }
    world.run_until(600 * kNsPerSecond);
    CHECK(ends == 4);
    CHECK((engine->pages_swapped() > 0) == swap);
  }
  CHECK(last_ns[1] < last_ns[0]);
}

TEST_CASE("all slots together are as fast as they were measured together") {
  World world(3, false);
  EngineSpec spec;
  spec.slots = 4;
  spec.decode_tokens_per_s = 20;
  spec.decode_tokens_per_s_full = 60;
  spec.prefill_tokens_per_s = 1e6;
  const SimModel model{"m", "d", 4, 8};
  const auto engine = std::make_shared<SimEngine>(world, spec, model, "n", Tier::kCloud);
  int64_t last_ns = 0;
  for (int i = 0; i < 4; ++i) {
    engine->submit(chat("r" + std::to_string(i), std::string(40, static_cast<char>('a' + i)), 61),
                   [&](Event event) {
                     if (is_end(event)) last_ns = world.now_ns();
                   });
  }
  world.run_until(60 * kNsPerSecond);
  CHECK(static_cast<double>(last_ns) / 1e9 == doctest::Approx(4 * 60 / 60.0).epsilon(0.02));
}
