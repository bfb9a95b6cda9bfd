// Sampling on the device against the rules carried out on a sorted list.
#include "kernels/cuda/sample.h"

#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "tests/kernels/cuda/support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

std::vector<int32_t> sample(const std::vector<std::vector<float>>& logits,
                            const std::vector<SampleRow>& how, const Schedule& schedule = {}) {
  const ScheduleScope scope(schedule);
  const size_t vocab = logits[0].size();
  Buffer<float> device_logits("logits", logits.size() * vocab);
  for (size_t r = 0; r < logits.size(); ++r) {
    std::copy(logits[r].begin(), logits[r].end(), device_logits.data() + r * vocab);
  }
  const Buffer<SampleRow> device_how("how", std::span(how));
  Buffer<int32_t> tokens("tokens", logits.size());
  require_ok(run_sample({static_cast<int32_t>(logits.size()), static_cast<int32_t>(vocab),
                         device_logits.data(), device_how.data(), tokens.data()},
                        nullptr));
  return {tokens.span().begin(), tokens.span().end()};
}

// The tokens that may be drawn, with their probabilities, in order of id.
std::map<int32_t, double> kept(const std::vector<float>& logits, const SampleRow& how) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  const auto probability = [&](int32_t id) {
    return std::exp((static_cast<double>(logits[static_cast<size_t>(id)]) -
                     static_cast<double>(logits[static_cast<size_t>(order[0])])) /
                    static_cast<double>(how.temperature));
  };
  std::vector<int32_t> left;
  for (const int32_t id : order) {
    if (probability(id) >= std::max(static_cast<double>(how.min_p), 1e-12)) left.push_back(id);
  }
  if (how.top_k > 0 && static_cast<size_t>(how.top_k) < left.size()) {
    left.resize(static_cast<size_t>(how.top_k));
  }
  double total = 0;
  for (const int32_t id : left) total += probability(id);
  std::map<int32_t, double> out;
  double sum = 0;
  for (const int32_t id : left) {
    if (!out.empty() && how.top_p < 1 && sum >= static_cast<double>(how.top_p) * total) break;
    sum += out[id] = probability(id);
  }
  for (auto& [id, p] : out) p /= sum;
  return out;
}

std::vector<float> normal_logits(size_t vocab, uint32_t seed, float width) {
  std::vector<float> out(vocab);
  fill_normal(std::span(out), seed, width);
  return out;
}

}  // namespace

TEST_CASE("greedy takes the largest logit, of equals the smallest id") {
  std::vector<float> logits = normal_logits(5003, 1, 1.0F);
  logits[700] = logits[4900] = logits[33] = 9.0F;
  std::vector<float> negative(5003, -7.0F);
  negative[5002] = -6.5F;
  std::vector<float> zeros(5003, kNever);
  zeros[12] = -0.0F;
  zeros[13] = 0.0F;
  for (const Schedule& schedule : schedules()) {
    const SampleRow greedy{0.0F, 0.0F, 1.0F, 0, 0.9};
    CHECK(sample({logits, negative, zeros}, {greedy, greedy, greedy}, schedule) ==
          std::vector<int32_t>{33, 5002, 12});
  }
}

TEST_CASE("broken rows are told from good ones") {
  std::vector<float> fine = normal_logits(600, 2, 1.0F);
  std::vector<float> nan = fine;
  nan[599] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> infinite = fine;
  infinite[0] = std::numeric_limits<float>::infinity();
  const std::vector<float> nothing(600, kNever);
  const SampleRow how{1.0F, 0.0F, 1.0F, 1, 0.5};
  const auto best = static_cast<int32_t>(std::max_element(fine.begin(), fine.end()) - fine.begin());
  CHECK(sample({nan, infinite, nothing, fine}, {how, how, how, how}) ==
        std::vector<int32_t>{-1, -1, -1, best});
}

namespace {

// Draws in the middle of every 1/`draws`, and what the host would take for them.
void check_draws(const std::vector<float>& logits, const SampleRow& way, size_t draws) {
  CAPTURE(logits.size());
  CAPTURE(way.top_k);
  CAPTURE(way.top_p);
  const auto expected = kept(logits, way);
  std::vector<std::vector<float>> rows(draws, logits);
  std::vector<SampleRow> how(draws, way);
  for (size_t i = 0; i < draws; ++i) {
    how[i].uniform = (static_cast<double>(i) + 0.5) / static_cast<double>(draws);
  }
  const std::vector<int32_t> got = sample(rows, how);
  for (size_t i = 0; i < draws; ++i) {
    double sum = 0;
    double before = 0;
    bool found = false;
    for (const auto& [id, p] : expected) {
      before = sum;
      sum += p;
      if (id == got[i]) {
        found = true;
        break;
      }
    }
    CHECK(found);
    // Probabilities are rounded to 2^-40 and 2^-22: a draw beside a boundary may fall on either
    // side.
    CHECK(how[i].uniform > before - 1e-5);
    CHECK(how[i].uniform < sum + 1e-5);
  }
}

// Many equal logits: cuts go through ties.
std::vector<float> rounded_logits(size_t vocab) {
  std::vector<float> logits = normal_logits(vocab, 3, 2.0F);
  for (float& v : logits) v = std::round(v * 4) / 4;
  logits[17] = kNever;
  return logits;
}

}  // namespace

TEST_CASE("each draw falls on the token whose share of the kept tokens it lies in") {
  const std::vector<float> logits = rounded_logits(3001);
  for (const SampleRow& way : std::vector<SampleRow>{
           {1.0F, 0.0F, 1.0F, 0, 0},
           {0.7F, 0.0F, 1.0F, 1, 0},
           {1.3F, 0.0F, 1.0F, 40, 0},
           {1.0F, 0.0F, 0.9F, 0, 0},
           {1.0F, 0.0F, 0.001F, 0, 0},
           {0.8F, 0.05F, 1.0F, 0, 0},
           {1.0F, 0.02F, 0.8F, 100, 0},
           {2.0F, 0.0F, 0.5F, 3000, 0},
           {1.0F, 0.0F, 0.0F, 0, 0},
       }) {
    check_draws(logits, way, 64);
  }
}

TEST_CASE("a vocabulary in whole vectors, and one that its segments are cut into twice") {
  for (const size_t vocab : {size_t{9000}, size_t{33001}, size_t{36000}}) {
    const std::vector<float> logits = rounded_logits(vocab);
    for (const SampleRow& way :
         std::vector<SampleRow>{{1.0F, 0.0F, 0.95F, 0, 0}, {1.5F, 0.0F, 1.0F, 500, 0}}) {
      check_draws(logits, way, 12);
    }
  }
}

TEST_CASE("exactly the kept tokens can be drawn, and the schedule does not matter") {
  std::vector<float> logits(1030, 0.0F);  // all alike: the first top_k ids are kept
  logits[1000] = 1.0F;
  std::set<int32_t> seen;
  std::vector<std::vector<float>> rows(128, logits);
  std::vector<SampleRow> how(128, SampleRow{1.0F, 0.0F, 1.0F, 20, 0});
  for (size_t i = 0; i < how.size(); ++i) how[i].uniform = static_cast<double>(i) / 128;
  const std::vector<int32_t> first = sample(rows, how);
  for (const int32_t id : first) {
    CHECK((id < 19 || id == 1000));
    seen.insert(id);
  }
  CHECK(seen.size() == 20);
  for (const Schedule& schedule : schedules()) CHECK(sample(rows, how, schedule) == first);
  how[0].uniform = 0x1.fffffffffffffp-1;  // the largest draw takes the last token
  CHECK(sample({logits}, {how[0]}) == std::vector<int32_t>{1000});
}
