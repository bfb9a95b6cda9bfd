// Comparing logits. Truths: divergences worked out by hand, and a second run of the forward pass in
// other pieces.
#include "tools/bench/logit_quality.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "common/model/json.h"
#include "tests/support/shared_data.h"

using namespace updraft;

TEST_CASE("divergence of two distributions") {
  // p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2); any constant may be added to logits.
  const std::vector<float> p = {100.0F + std::log(3.0F), 100.0F};
  const std::vector<float> q = {-7.0F, -7.0F};
  CHECK(kl_divergence(p, q) == doctest::Approx(0.75 * std::log(1.5) - 0.25 * std::log(2.0)));
  CHECK(kl_divergence(q, p) == doctest::Approx(-0.5 * std::log(1.5) + 0.5 * std::log(2.0)));
  CHECK(kl_divergence(p, p) == 0.0);
}

TEST_CASE("mean, 99th percentile, worst and agreement") {
  std::vector<double> values(200);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i + 1);
  const LogitQuality q = LogitQuality::of(values, 150);
  CHECK(q.rows == 200);
  CHECK(q.kl_mean == 100.5);
  CHECK(q.kl_p99 == 198);
  CHECK(q.kl_max == 200);
  CHECK(q.top1_agreement == 0.75);
  LogitComparison comparison;
  comparison.add(std::vector<float>{1, 2, 3}, std::vector<float>{1, 2, 4});
  comparison.add(std::vector<float>{1, 2, 3}, std::vector<float>{5, 2, 4});
  CHECK(comparison.result().top1_agreement == 0.5);
}

TEST_CASE("the likeliest next tokens of a trained model are the original's 200") {
  const auto path = testing::shared_data("weights/stories260K-f32.gguf");
  const auto greedy = testing::shared_data("weights/stories260K-greedy200.json");
  if (!path || !greedy) return;
  const auto root = read_json_file(*greedy, 1 << 20);
  REQUIRE(root.ok());
  std::vector<int32_t> ids = {1};
  for (const JsonValue& id : *root->find("greedy_ids")->array())
    ids.push_back(static_cast<int32_t>(*id.integer()));
  LocalModelConfig config;
  config.model_path = *path;
  config.exact = true;
  config.kv_type = "f32";
  int64_t right = 0;
  const auto done = all_logits(config, std::span(ids).first(ids.size() - 1), 256,  // two steps
                               [&](int64_t row, std::span<const float> logits) {
                                 const auto best = std::max_element(logits.begin(), logits.end()) -
                                                   logits.begin();
                                 right += best == ids[static_cast<size_t>(row) + 1] ? 1 : 0;
                               },
                               {});
  REQUIRE_MESSAGE(done.ok(), done.message());
  CHECK(right == 200);
}

TEST_CASE("windows are sequences of their own, and steps of a window are one sequence") {
  const auto path = testing::shared_data("weights/stories260K-f32.gguf");
  if (!path) return;
  LocalModelConfig config;
  config.model_path = *path;
  config.exact = true;
  config.kv_type = "f32";
  std::vector<int32_t> ids(300);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(3 + i * 37 % 500);
  const auto run = [&](std::span<const int32_t> some, int32_t window) {
    std::vector<std::vector<float>> rows;
    const auto done = all_logits(config, some, window,
                                 [&](int64_t row, std::span<const float> logits) {
                                   CHECK(row == static_cast<int64_t>(rows.size()));
                                   rows.emplace_back(logits.begin(), logits.end());
                                 },
                                 {});
    REQUIRE_MESSAGE(done.ok(), done.message());
    return rows;
  };
  const auto whole = run(ids, 300);  // three steps
  const auto halves = run(ids, 150);
  const auto second = run(std::span(ids).subspan(150), 150);
  REQUIRE(whole.size() == 300);
  REQUIRE(halves.size() == 300);
  for (size_t i = 0; i < 150; ++i) {
    CHECK(whole[i] == halves[i]);
    CHECK(halves[150 + i] == second[i]);
  }
  CHECK(whole[299] != halves[299]);

  ids[7] = 512;
  const auto refused = all_logits(config, ids, 300, [](int64_t, std::span<const float>) {}, {});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.message().find("token id 512") != std::string::npos);
}
