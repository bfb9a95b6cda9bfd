// The control of drafts: what it learns from guesses and from step times that are made up here, and
// the split that follows.
#include "common/engine/draft_control.h"

#include <doctest/doctest.h>

#include <random>
#include <vector>

using namespace updraft;

namespace {

void teach(GuessRecord& record, int32_t match_tokens, double rate, int count) {
  std::mt19937 random(7);
  for (int i = 0; i < count; ++i) {
    record.observe({match_tokens, static_cast<double>(random() % 1000) < 1000.0 * rate});
  }
}

GuessRecord record_of(double rate) {
  GuessRecord record;
  for (const int32_t match : {2, 3, 4, 6, 12, 40}) teach(record, match, rate, 400);
  return record;
}

// Steps of 1 to 9 rows that take `base` + rows * `row` seconds, give or take a twentieth.
StepCost cost_of(double base, double row) {
  StepCost cost;
  std::mt19937 random(3);
  for (int i = 0; i < 300; ++i) {
    const int32_t rows = 1 + static_cast<int32_t>(random() % 9);
    const double noise = 0.95 + 0.1 * static_cast<double>(random() % 1000) / 1000.0;
    cost.observe(rows, static_cast<float>((base + row * rows) * noise));
  }
  return cost;
}

std::vector<int32_t> share(std::vector<DraftOffer> offers, const StepCost& cost, int32_t rows,
                           int32_t tokens, int32_t rows_max) {
  share_drafts(offers, cost, rows, tokens, rows_max);
  std::vector<int32_t> out;
  for (const DraftOffer& offer : offers) out.push_back(offer.drafts);
  return out;
}

}  // namespace

TEST_CASE("a record learns how often guesses are right, each length of match for itself") {
  GuessRecord record;
  CHECK(record.chance(40) > record.chance(2));  // before it saw any
  teach(record, 3, 0.2, 200);
  teach(record, 40, 0.9, 200);
  CHECK(record.chance(3) == doctest::Approx(0.2).epsilon(0.6));
  CHECK(record.chance(100) == doctest::Approx(0.9).epsilon(0.1));
  teach(record, 3, 1.0, 200);  // the text changed its ways
  CHECK(record.chance(3) > 0.8F);
  record.observe({0, false});  // nothing was guessed: nothing to learn
  CHECK(record.chance(3) > 0.8F);
}

TEST_CASE("the cost of a row comes out of steps of different rows") {
  const StepCost cost = cost_of(0.009, 0.001);
  CHECK(cost.row_share(1) == doctest::Approx(0.001 / 0.010).epsilon(0.25));
  CHECK(cost.row_share(11) == doctest::Approx(0.001 / 0.020).epsilon(0.25));
}

TEST_CASE("steps that all have one row keep what is known of a row's share") {
  StepCost cost = cost_of(0.009, 0.001);
  for (int i = 0; i < 1000; ++i) cost.observe(1, 0.020F);  // a deeper context, a slower machine
  CHECK(cost.row_share(1) == doctest::Approx(0.1).epsilon(0.3));
}

TEST_CASE("a step that lost its cores for a while does not turn the cost over") {
  StepCost cost = cost_of(0.009, 0.001);
  cost.observe(9, 1.0F);
  cost.observe(1, 1.0F);
  CHECK(cost.row_share(1) > 0.03F);
  CHECK(cost.row_share(1) < 0.3F);
}

TEST_CASE("guesses that are right are drafted to the limit, those that are wrong not at all") {
  const StepCost cost = cost_of(0.009, 0.001);
  const GuessRecord good = record_of(1.0);
  const GuessRecord bad = record_of(0.02);
  CHECK(share({{&good, 8, 16, 0}}, cost, 1, 1, 100) == std::vector<int32_t>{16});
  CHECK(share({{&good, 8, 16, 0}}, cost, 1, 1, 5) == std::vector<int32_t>{5});
  CHECK(share({{&bad, 8, 16, 0}}, cost, 1, 1, 100) == std::vector<int32_t>{0});
  CHECK(share({{&bad, 8, 16, 0}, {&good, 8, 4, 0}}, cost, 2, 2, 100) == std::vector<int32_t>{0, 4});
}

TEST_CASE("the dearer a row and the more answers wait for the step, the fewer drafts") {
  const GuessRecord half = record_of(0.6);
  const auto drafts = [&](const StepCost& cost, int32_t rows) {
    return share({{&half, 8, 16, 0}}, cost, rows, rows, 100)[0];
  };
  const StepCost cheap = cost_of(0.0098, 0.0002);
  const StepCost dear = cost_of(0.005, 0.005);
  CHECK(drafts(cheap, 1) > drafts(dear, 1));
  CHECK(drafts(dear, 1) <= 1);
  CHECK(drafts(cost_of(0.009, 0.001), 1) > drafts(cost_of(0.009, 0.001), 16));
}

TEST_CASE("drafts of equal worth are shared evenly") {
  const GuessRecord record = record_of(0.8);
  const auto drafts = share({{&record, 20, 16, 0}, {&record, 20, 16, 0}, {&record, 20, 16, 0}},
                            cost_of(0.0098, 0.0002), 3, 3, 6);
  CHECK(drafts == std::vector<int32_t>{2, 2, 2});
}
