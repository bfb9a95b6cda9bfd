// The sampler against OpenAI's definitions computed naively in double precision, and the generator
// against the vectors that its authors publish (Random123, kat_vectors).
#include "common/engine/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "common/engine/random.h"
#include "tests/support/emulated.h"

using namespace updraft;

namespace {

Sampling greedy() {
  Sampling sampling;
  sampling.temperature = 0.0F;
  return sampling;
}

// Draws `count` tokens at positions 0.. and returns each id's share.
std::map<int32_t, double> shares(const Sampling& sampling, const std::vector<float>& logits,
                                 int count, const std::vector<int32_t>& banned = {}) {
  Sampler sampler(sampling, {}, banned, 42);
  std::map<int32_t, double> out;
  for (int i = 0; i < count; ++i) {
    std::vector<float> row = logits;
    const auto token = sampler.sample(row, i);
    REQUIRE(token.ok());
    out[token->id] += 1.0 / count;
  }
  return out;
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> out;
  const double peak = *std::max_element(logits.begin(), logits.end());
  for (const float logit : logits) out.push_back(std::exp((logit - peak) / temperature));
  const double sum = std::accumulate(out.begin(), out.end(), 0.0);
  for (double& p : out) p /= sum;
  return out;
}

int32_t sample_one(const Sampling& sampling, std::vector<float> logits, int64_t position = 0) {
  Sampler sampler(sampling, {}, {}, 7);
  const auto token = sampler.sample(logits, position);
  REQUIRE(token.ok());
  return token->id;
}

}  // namespace

TEST_CASE("philox gives the published vectors") {
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) ==
        std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
        std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE(
    "draws are uniform, differ by position and by seed, and choices have seeds of their own") {
  double sum = 0.0;
  for (uint64_t i = 0; i < 10000; ++i) {
    const double u = uniform_at(3, i);
    REQUIRE(u >= 0.0);
    REQUIRE(u < 1.0);
    sum += u;
  }
  CHECK(sum / 10000 == doctest::Approx(0.5).epsilon(0.02));
  CHECK(uniform_at(3, 5) != uniform_at(4, 5));
  CHECK(choice_seed(9, 0) == 9);
  CHECK(choice_seed(9, 1) != choice_seed(9, 2));
  CHECK(choice_seed(9, 1) != choice_seed(10, 1));
}

TEST_CASE("temperature 0 takes the largest logit, the smaller id among equals") {
  CHECK(sample_one(greedy(), {0.5F, 2.0F, 2.0F, -1.0F}) == 1);
}

TEST_CASE("sampling follows the softmax at the temperature") {
  const std::vector<float> logits = {1.0F, 0.0F, 2.0F, -1.0F, 0.5F};
  for (const float temperature : {0.5F, 1.0F, 2.0F}) {
    Sampling sampling;
    sampling.temperature = temperature;
    const auto expected = softmax(logits, temperature);
    auto found = shares(sampling, logits, 40000);
    for (size_t i = 0; i < logits.size(); ++i) {
      // Four standard deviations of a share.
      const double tolerance = 4.0 * std::sqrt(expected[i] * (1 - expected[i]) / 40000);
      CHECK(std::abs(found[static_cast<int32_t>(i)] - expected[i]) < tolerance);
    }
  }
}

TEST_CASE(
    "top_p keeps the smallest set of best tokens that reaches it, in a large vocabulary too") {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0F, 2.0F);
  std::vector<float> logits(testing::kEmulated ? 2000 : 20000);
  for (float& logit : logits) logit = normal(random);
  const auto probabilities = softmax(logits, 1.0);
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return probabilities[static_cast<size_t>(a)] > probabilities[static_cast<size_t>(b)];
  });
  for (const double top_p : {0.01, 0.3, 0.9}) {
    Sampling sampling;
    sampling.top_p = static_cast<float>(top_p);
    double sum = 0.0;
    size_t kept = 0;
    while (sum < top_p) sum += probabilities[static_cast<size_t>(order[kept++])];
    const auto found = shares(sampling, logits, 2000);
    for (const auto& [id, share] : found) {
      const auto place = std::find(order.begin(), order.end(), id) - order.begin();
      CHECK(static_cast<size_t>(place) <= kept);  // one more for the rounding of the sum
    }
    CHECK(found.size() > std::min<size_t>(kept, 300) / 2);
  }
}

TEST_CASE("top_p, top_k and min_p each cut what they define, and always leave the best") {
  const std::vector<float> logits = {std::log(0.5F), std::log(0.25F), std::log(0.15F),
                                     std::log(0.1F)};
  Sampling sampling;
  sampling.top_p = 0.7F;
  CHECK(shares(sampling, logits, 3000).size() == 2);
  sampling.top_p = 1e-6F;
  CHECK(shares(sampling, logits, 100).size() == 1);
  sampling = {};
  sampling.top_k = 3;
  const auto top3 = shares(sampling, logits, 20000);
  CHECK(top3.size() == 3);
  CHECK(top3.at(0) == doctest::Approx(0.5 / 0.9).epsilon(0.03));
  sampling = {};
  sampling.min_p = 0.4F;  // of the best's probability: 0.2
  CHECK(shares(sampling, logits, 3000).size() == 2);
  sampling.min_p = 0.99F;
  CHECK(shares(sampling, logits, 100).size() == 1);
  // top_p works on what top_k left: 0.5 of 0.75 reaches 0.6 alone.
  sampling = {};
  sampling.top_k = 2;
  sampling.top_p = 0.6F;
  CHECK(shares(sampling, logits, 3000).size() == 1);
}

TEST_CASE(
    "frequency and presence penalties count the answer's tokens only, also at temperature 0") {
  Sampling sampling = greedy();
  sampling.frequency_penalty = 0.4F;
  const std::vector<int32_t> prompt = {0, 0, 0, 0};
  Sampler sampler(sampling, prompt, {}, 1);
  const auto next = [&] {
    std::vector<float> logits = {2.0F, 1.5F, 0.0F};
    const int32_t id = sampler.sample(logits, 0)->id;
    sampler.accept(id);
    return id;
  };
  CHECK(next() == 0);  // 2.0: the prompt's tokens cost nothing
  CHECK(next() == 0);  // 1.6
  CHECK(next() == 1);  // 1.2 against 1.5

  sampling = greedy();
  sampling.presence_penalty = 0.6F;
  Sampler once(sampling, prompt, {}, 1);
  std::vector<float> logits = {2.0F, 1.5F, 0.0F};
  once.accept(0);
  once.accept(0);
  once.accept(0);
  CHECK(once.sample(logits, 0)->id == 1);  // 1.4, however often
  logits = {2.2F, 1.5F, 0.0F};
  CHECK(once.sample(logits, 0)->id == 0);  // 1.6
}

TEST_CASE(
    "the repetition penalty divides positive and multiplies negative logits of prompt and answer, "
    "once each") {
  Sampling sampling = greedy();
  sampling.repetition_penalty = 2.0F;
  const std::vector<int32_t> prompt = {0, 0, 1};
  Sampler sampler(sampling, prompt, {}, 1);
  std::vector<float> logits = {3.0F, -1.0F, 1.4F, -1.9F};
  CHECK(sampler.sample(logits, 0)->id == 0);
  CHECK(logits[0] == 1.5F);
  CHECK(logits[1] == -2.0F);
  CHECK(logits[2] == 1.4F);
  sampler.accept(2);
  sampler.accept(0);
  logits = {3.0F, -1.0F, 1.4F, -1.9F};
  CHECK(sampler.sample(logits, 0)->id == 0);
  CHECK(logits[0] == 1.5F);
  CHECK(logits[2] == 0.7F);
}

TEST_CASE("logit_bias adds, and no bias brings a banned token back") {
  Sampling sampling = greedy();
  sampling.logit_bias = {{2, 100.0F}, {0, -100.0F}};
  CHECK(sample_one(sampling, {5.0F, 1.0F, 0.0F}) == 2);
  Sampler banned(sampling, {}, std::vector<int32_t>{2, 5000, -1}, 1);
  std::vector<float> logits = {5.0F, 1.0F, 0.0F};
  CHECK(banned.sample(logits, 0)->id == 1);
}

TEST_CASE("the same seed and position give the same token whatever was drawn before") {
  Sampling sampling;
  std::vector<float> logits(500);
  std::mt19937 random(9);
  for (float& logit : logits) logit = static_cast<float>(random() % 1000) / 300.0F;
  Sampler first(sampling, {}, {}, 11);
  Sampler second(sampling, {}, {}, 11);
  Sampler other(sampling, {}, {}, 12);
  int differing = 0;
  std::vector<int32_t> ids;
  for (int64_t position = 0; position < 50; ++position) {
    std::vector<float> row = logits;
    ids.push_back(first.sample(row, position)->id);
  }
  for (int64_t position = 49; position >= 0; --position) {
    std::vector<float> row = logits;
    CHECK(second.sample(row, position)->id == ids[static_cast<size_t>(position)]);
    row = logits;
    differing += other.sample(row, position)->id != ids[static_cast<size_t>(position)] ? 1 : 0;
  }
  CHECK(differing > 40);
}

TEST_CASE(
    "log-probabilities are those of the raw distribution, best first, whatever the penalties did") {
  Sampling sampling = greedy();
  sampling.logprobs = true;
  sampling.top_logprobs = 3;
  sampling.logit_bias = {{4, 50.0F}};
  std::vector<float> logits = {1.0F, 0.0F, 2.0F, 2.0F, 0.5F};
  const std::vector<float> raw = logits;
  Sampler sampler(sampling, {}, {}, 1);
  const auto token = sampler.sample(logits, 0);
  REQUIRE(token.ok());
  const auto expected = softmax(raw, 1.0);
  CHECK(token->id == 4);
  CHECK(token->logprob == doctest::Approx(std::log(expected[4])).epsilon(1e-6));
  REQUIRE(token->top.size() == 3);
  CHECK(token->top[0].first == 2);
  CHECK(token->top[1].first == 3);
  CHECK(token->top[2].first == 0);
  CHECK(token->top[2].second == doctest::Approx(std::log(expected[0])).epsilon(1e-6));
  CHECK(logprobs_of(raw, 0, 50).top.size() == 5);  // never more than there are
}

TEST_CASE("logits that are no numbers and rows without a choice are errors that say where") {
  Sampler sampler(greedy(), {}, std::vector<int32_t>{0, 1}, 1);
  std::vector<float> nan_row = {0.0F, std::nanf(""), 1.0F};
  const auto nan_token = sampler.sample(nan_row, 17);
  REQUIRE_FALSE(nan_token.ok());
  CHECK(nan_token.message().find("token 1") != std::string::npos);
  CHECK(nan_token.message().find("position 17") != std::string::npos);
  std::vector<float> infinite = {0.0F, 1.0F, std::numeric_limits<float>::infinity()};
  CHECK_FALSE(sampler.sample(infinite, 0).ok());
  std::vector<float> nothing_left = {1.0F, 2.0F};
  CHECK_FALSE(sampler.sample(nothing_left, 0).ok());
  std::vector<float> minus = {-std::numeric_limits<float>::infinity(), 0.0F, -3.0F};
  CHECK(sampler.sample(minus, 0)->id == 2);  // -infinity is a way to ban
}

TEST_CASE("a tiny temperature is greedy instead of an overflow") {
  Sampling sampling;
  sampling.temperature = 1e-30F;
  CHECK(sample_one(sampling, {0.0F, 80.0F, 79.9F}) == 1);
  sampling.temperature = 1e-4F;
  CHECK(sample_one(sampling, {0.0F, 80.0F, 79.9F}) == 1);
}

TEST_CASE(
    "a prompt's positions that are no tokens are not penalised, nor anything in their place") {
  Sampling sampling;
  sampling.temperature = 0.0F;
  sampling.repetition_penalty = 2.0F;
  // The row stands behind other floats, where ids below 0 would point.
  std::vector<float> memory(8, 3.0F);
  memory[4 + 1] = 5.0F;
  const std::vector<int32_t> prompt = {-1, 1, -4};
  Sampler sampler(sampling, prompt, {}, 0);
  const auto token = sampler.sample(std::span(memory).subspan(4), 3);
  REQUIRE(token.ok());
  CHECK(token->id == 0);  // 5 / 2 is less than 3
  CHECK(std::all_of(memory.begin(), memory.begin() + 4, [](float v) { return v == 3.0F; }));
}
