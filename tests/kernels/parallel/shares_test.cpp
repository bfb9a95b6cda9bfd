// Who gets what of a matrix: named cases, then all small ones against what a share promises.
#include "kernels/parallel/shares.h"

#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <random>

using namespace updraft;

namespace {

std::vector<int32_t> counts(const Result<std::vector<Share>>& shares) {
  REQUIRE_MESSAGE(shares.ok(), shares.message());
  std::vector<int32_t> out;
  for (const Share& share : *shares) out.push_back(share.count);
  return out;
}

std::vector<HeadShare> heads(int32_t count, int32_t group, int32_t unit,
                             const std::vector<double>& weights) {
  const auto shares = share_heads(count, group, unit, weights);
  REQUIRE_MESSAGE(shares.ok(), shares.message());
  return *shares;
}

}  // namespace

TEST_CASE("pieces are handed out in proportion, and everybody gets one") {
  using Counts = std::vector<int32_t>;
  CHECK(counts(share_out(8, std::vector<double>{1, 1})) == Counts{4, 4});
  CHECK(counts(share_out(107, std::vector<double>{80, 80})) == Counts{54, 53});
  CHECK(counts(share_out(12, std::vector<double>{80, 40})) == Counts{8, 4});
  CHECK(counts(share_out(32, std::vector<double>{79.2, 79.0, 78.9, 79.1})) == Counts{8, 8, 8, 8});
  CHECK(counts(share_out(4, std::vector<double>{1000, 1, 1})) == Counts{2, 1, 1});
  CHECK(counts(share_out(3, std::vector<double>{5, 1, 9})) == Counts{1, 1, 1});
  const auto none = share_out(2, std::vector<double>{1, 1, 1});
  REQUIRE_FALSE(none.ok());
  CHECK(none.message() == "2 pieces cannot be shared by 3 devices");
}

TEST_CASE("random shares are neighbours, whole, and within a piece of their proportion") {
  std::mt19937 random(3);
  for (int i = 0; i < 2000; ++i) {
    const auto devices = static_cast<int32_t>(1 + random() % 8);
    const auto pieces = devices + static_cast<int32_t>(random() % 100);
    std::vector<double> weights;
    for (int32_t d = 0; d < devices; ++d) weights.push_back(1.0 + random() % 50);
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    const auto shares = share_out(pieces, weights);
    REQUIRE(shares.ok());
    int32_t next = 0;
    bool lifted = false;  // somebody got one that was worth less: the others' parts are smaller
    for (int32_t d = 0; d < devices; ++d) {
      const Share& share = (*shares)[static_cast<size_t>(d)];
      CHECK(share.first == next);
      CHECK(share.count >= 1);
      next = share.end();
      lifted = lifted || pieces * weights[static_cast<size_t>(d)] / sum < 1.0;
    }
    CHECK(next == pieces);
    for (int32_t d = 0; d < devices && !lifted; ++d) {
      const double exact = pieces * weights[static_cast<size_t>(d)] / sum;
      CHECK(std::abs((*shares)[static_cast<size_t>(d)].count - exact) < 1.0);
    }
  }
}

TEST_CASE("whole groups of heads go with their KV head as long as there are enough") {
  CHECK(heads(32, 4, 1, {1, 1}) == std::vector<HeadShare>{{{0, 16}, {0, 4}}, {{16, 16}, {4, 4}}});
  CHECK(heads(32, 16, 2, {1, 1}) == std::vector<HeadShare>{{{0, 16}, {0, 1}}, {{16, 16}, {1, 1}}});
  CHECK(heads(24, 3, 1, {3, 1}) == std::vector<HeadShare>{{{0, 18}, {0, 6}}, {{18, 6}, {6, 2}}});
  // One head a group, blocks of two heads: cuts between blocks, where there are enough of them.
  CHECK(heads(6, 1, 2, {1, 1}) == std::vector<HeadShare>{{{0, 4}, {0, 4}}, {{4, 2}, {4, 2}}});
  CHECK(heads(4, 1, 4, {1, 1}) == std::vector<HeadShare>{{{0, 2}, {0, 2}}, {{2, 2}, {2, 2}}});
}

TEST_CASE("more devices than KV heads: each has a copy of the one that its heads read") {
  // GLM-4: 32 heads, 2 KV heads.
  CHECK(heads(32, 16, 2, {1, 1, 1, 1}) ==
        std::vector<HeadShare>{
            {{0, 8}, {0, 1}}, {{8, 8}, {0, 1}}, {{16, 8}, {1, 1}}, {{24, 8}, {1, 1}}});
  CHECK(heads(32, 16, 2, {1, 1, 1}) ==
        std::vector<HeadShare>{{{0, 8}, {0, 1}}, {{8, 8}, {0, 1}}, {{16, 16}, {1, 1}}});
  // The large one takes a group alone.
  CHECK(heads(32, 16, 2, {80, 40, 40}) ==
        std::vector<HeadShare>{{{0, 16}, {0, 1}}, {{16, 8}, {1, 1}}, {{24, 8}, {1, 1}}});
  CHECK(heads(8, 8, 1, {1, 3}) == std::vector<HeadShare>{{{0, 2}, {0, 1}}, {{2, 6}, {0, 1}}});
}

TEST_CASE("every share of heads reads its KV heads evenly, whatever the devices") {
  std::mt19937 random(4);
  for (int i = 0; i < 1000; ++i) {
    const auto group = static_cast<int32_t>(1 + random() % 8);
    const int32_t count = group * static_cast<int32_t>(1 + random() % 8);
    const auto devices = static_cast<int32_t>(1 + random() % 8);
    std::vector<double> weights;
    for (int32_t d = 0; d < devices; ++d) weights.push_back(1.0 + random() % 9);
    const auto shares = share_heads(count, group, 1 << random() % 3, weights);
    REQUIRE(shares.ok() == (count >= devices));
    if (!shares) continue;
    int32_t next = 0;
    for (const HeadShare& share : *shares) {
      CHECK(share.heads.first == next);
      next = share.heads.end();
      REQUIRE(share.kv_heads.count > 0);
      REQUIRE(share.heads.count % share.kv_heads.count == 0);
      const int32_t per_kv = share.heads.count / share.kv_heads.count;
      for (int32_t h = 0; h < share.heads.count; ++h)
        CHECK((share.heads.first + h) / group == share.kv_heads.first + h / per_kv);
    }
    CHECK(next == count);
  }
}
