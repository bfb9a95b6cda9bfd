// What is recorded of a placement decides the same again.
#include "cloud/router/decision.h"

#include <doctest/doctest.h>

#include <random>

#include "pool_fixture.h"

using namespace updraft;
using namespace updraft::test;

namespace {

struct Recorded {
  std::string node_id;
  DecisionRecord record;
};

struct RecordingPool : PoolFixture {
  std::vector<Recorded> decisions;
  explicit RecordingPool(RouterCoreConfig config = {}) : PoolFixture(std::move(config)) {
    core.set_decision_hook(
        [this](const RequestId&, const std::string& node_id, const DecisionRecord& record) {
          decisions.push_back({node_id, record});
        });
  }
};

const std::string& chosen_of(const DecisionRecord& record, int32_t index) {
  return record.candidates[static_cast<size_t>(index)].node_id;
}

}  // namespace

TEST_CASE("every dispatch is recorded, survives its text and is decided the same again") {
  std::mt19937 random(5);
  RecordingPool pool;
  for (int i = 0; i < 40; ++i) {
    const bool edge = i < 10;
    FakeNode& node = pool.join((edge ? "edge-" : "cloud-") + std::to_string(i),
                               edge ? Tier::kEdge : Tier::kCloud, edge ? 512 : 8192, 3);
    node.beat.prefill_tokens_per_s = static_cast<float>(edge ? 50 + random() % 50 : 2000);
    node.beat.decode_tokens_per_s = static_cast<float>(edge ? 8 : 40 + random() % 3);
    node.hello.price = static_cast<float>(random() % 3);
  }
  pool.settle();
  size_t sent = 0;
  for (int i = 0; i < 400; ++i) {
    Request request = PoolFixture::chat("r" + std::to_string(i), 10 + random() % 6000);
    if (i % 3 == 0) request.hints.session = "s" + std::to_string(random() % 5);
    pool.submit(std::move(request));
    if (i % 7 == 0) pool.advance_ms(50);
    if (i % 2 == 0) {
      FakeNode& node = std::next(pool.nodes.begin(), static_cast<long>(random() % 40))->second;
      while (!node.work.empty()) {
        const Submit work = node.work.back();
        node.work.pop_back();
        pool.serve(node, work);
      }
    }
  }
  REQUIRE(pool.decisions.size() > 250);
  int sessions = 0;
  int drawn = 0;
  for (const Recorded& decision : pool.decisions) {
    const std::string text = to_text(decision.record);
    CHECK(text.find_first_of(" \"\\") == std::string::npos);
    const Result<DecisionRecord> back = parse_decision(text);
    REQUIRE_MESSAGE(back.ok(), back.message());
    CHECK(to_text(*back) == text);
    CHECK(chosen_of(*back, back->chosen) == decision.node_id);
    const Replay again = replay(*back);
    CAPTURE(text);
    CAPTURE(again.why);
    REQUIRE(again.chosen == back->chosen);
    sessions += again.chosen == back->session;
    drawn += back->equal_count > 1;
    ++sent;
  }
  CHECK(sessions > 10);
  CHECK(drawn > 50);
}

TEST_CASE("a record that was tampered with is decided otherwise") {
  RecordingPool pool;
  pool.join("cloud-1", Tier::kCloud, 4096).beat.prefill_tokens_queued = 100'000;
  pool.join("cloud-2", Tier::kCloud, 4096);
  pool.settle();
  pool.submit(PoolFixture::chat("r", 30));
  REQUIRE(pool.decisions.size() == 1);
  DecisionRecord record = pool.decisions[0].record;
  CHECK(record.candidate_count == 2);
  CHECK(record.equal_count == 1);
  CHECK(chosen_of(record, record.chosen) == "cloud-2");
  for (DecisionRecord::Candidate& candidate : record.candidates)
    candidate.terms.tokens_ahead = candidate.node_id == "cloud-2" ? 1'000'000 : 0;
  CHECK(chosen_of(record, replay(record).chosen) == "cloud-1");
}

TEST_CASE("a request that its node pulled from the queue is recorded as such") {
  RecordingPool pool;
  FakeNode& node = pool.join("cloud-1", Tier::kCloud, 4096, 1);
  pool.settle();
  pool.submit(PoolFixture::chat("a", 30));
  pool.submit(PoolFixture::chat("b", 30));
  pool.serve(node, Submit(node.work.at(0)));
  REQUIRE(pool.decisions.size() == 2);
  CHECK(pool.decisions[1].record.candidate_count == 1);
  CHECK(pool.decisions[1].record.reason == "no_edge");
  CHECK(replay(pool.decisions[1].record).chosen == 0);
}

TEST_CASE("a large pool's record lists what decided it") {
  RecordingPool pool;
  for (int i = 0; i < 100; ++i) pool.join("cloud-" + std::to_string(i), Tier::kCloud, 4096);
  pool.settle();
  pool.submit(PoolFixture::chat("r", 30));
  REQUIRE(pool.decisions.size() == 1);
  const DecisionRecord& record = pool.decisions[0].record;
  CHECK(record.candidate_count == 100);
  CHECK(record.candidates.size() == DecisionRecord::kCandidatesMax);
  CHECK(to_text(record).size() < 1200);
}

TEST_CASE("a decision is found in a line of either form") {
  CHECK(find_decision("[t] [router] [info] placed id=1 decision=\"1;model=m\" x=y") == "1;model=m");
  CHECK(find_decision("placed id=1 decision=1;model=m") == "1;model=m");
  CHECK(find_decision(R"({"event":"placed","decision":"1;model=m","id":"x"})") == "1;model=m");
  CHECK(find_decision("decision=\"fits the edge\" decision=\"1;a\"") == "1;a");
  CHECK(find_decision("1;model=m").size() == 9);
  CHECK(find_decision("request id=7").empty());
}

TEST_CASE("broken records are refused with the field") {
  RecordingPool pool;
  pool.join("cloud-1", Tier::kCloud, 4096);
  pool.settle();
  pool.submit(PoolFixture::chat("r", 30));
  const std::string good = to_text(pool.decisions.at(0).record);
  REQUIRE(parse_decision(good).ok());
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return parse_decision(text).message();
  };
  CHECK(with("1;", "2;").find("form '2'") != std::string::npos);
  CHECK(with(";prompt=", ";prompt=x").find("'prompt'") != std::string::npos);
  CHECK(with(";of=", ";off=").find("'of'") != std::string::npos);
  CHECK(with(";chosen=0", ";chosen=1").find("node 1 of 1") != std::string::npos);
  CHECK(with(";chosen=0", ";chosen=-1").find("'chosen'") != std::string::npos);
  CHECK(with("cloud-1:cloud", "cloud-1:moon").find("12 fields") != std::string::npos);
  CHECK(with("model=demo", "model=%4").find("% escape") != std::string::npos);
  for (size_t cut = 0; cut < good.size(); ++cut) (void)parse_decision(good.substr(0, cut));
}

TEST_CASE("a model's name is escaped") {
  DecisionRecord record;
  record.model = "a b;c=d\"\xC3\xA9%";
  record.reason = "moved";
  record.candidates.push_back({"n", {}});
  record.chosen = 0;
  const Result<DecisionRecord> back = parse_decision(to_text(record));
  REQUIRE(back.ok());
  CHECK(back->model == record.model);
}
