// See the header.
#include "common/engine/draft_control.h"

#include <algorithm>
#include <cstddef>

#include "common/base/check.h"

namespace updraft {
namespace {

constexpr float kGuessesRemembered = 32.0F;  // per class, about
// What is believed of a class before its guesses were seen, and how many guesses that is worth.
constexpr std::array<float, 6> kChanceAtFirst = {0.3F, 0.4F, 0.5F, 0.7F, 0.8F, 0.9F};
constexpr float kAtFirstWeight = 4.0F;

constexpr float kStepsRemembered = 64.0F;
constexpr float kVarianceTelling = 0.5F;  // of rows: below it the slope is mostly noise
constexpr float kRowShareMin = 0.002F;    // no row is free, whatever the clock says
constexpr float kOutlier = 3.0F;  // a step that lost its cores counts as this many times the mean

// A draft's worth is estimated: it has to exceed its price by this.
constexpr float kGainMin = 1.25F;
// Below this a row is work for nothing, however little time it takes.
constexpr float kReachMin = 0.1F;

}  // namespace

size_t GuessRecord::class_of(int32_t match_tokens) {
  if (match_tokens <= 4) return static_cast<size_t>(std::max(match_tokens, 2) - 2);
  return match_tokens <= 8 ? 3 : match_tokens <= 16 ? 4 : 5;
}

void GuessRecord::observe(const PromptLookup::Guess& guess) {
  if (guess.match_tokens == 0) return;
  constexpr float kKeep = 1.0F - 1.0F / kGuessesRemembered;
  Count& count = counts_[class_of(guess.match_tokens)];
  count.all = count.all * kKeep + 1.0F;
  count.right = count.right * kKeep + (guess.right ? 1.0F : 0.0F);
}

float GuessRecord::chance(int32_t match_tokens) const {
  const size_t index = class_of(match_tokens);
  const Count& count = counts_[index];
  return (count.right + kChanceAtFirst[index] * kAtFirstWeight) / (count.all + kAtFirstWeight);
}

void StepCost::observe(int32_t rows, float seconds) {
  UPDRAFT_CHECK(rows > 0 && seconds > 0.0F);
  const auto x = static_cast<float>(rows);
  if (count_ > 0.0F) {
    const float expected = mean_seconds_ * (1.0F + row_share(1) * std::max(x - mean_rows_, 0.0F));
    seconds = std::min(seconds, kOutlier * expected);
  }
  count_ = std::min(count_ + 1.0F, kStepsRemembered);
  const float weight = 1.0F / count_;
  const float dx = x - mean_rows_;
  const float dy = seconds - mean_seconds_;
  mean_rows_ += weight * dx;
  mean_seconds_ += weight * dy;
  // At count_ = 1 dx and dy are the values themselves; (1 - weight) leaves nothing of them.
  variance_ = (1.0F - weight) * (variance_ + weight * dx * dx);
  covariance_ = (1.0F - weight) * (covariance_ + weight * dx * dy);
  if (variance_ < kVarianceTelling) return;
  const float b = slope();
  known_share_ = std::max(b / std::max(mean_seconds_ - b * (mean_rows_ - 1.0F), b), kRowShareMin);
}

// The known share stands in for kVarianceTelling of the evidence.
float StepCost::slope() const {
  const float known = known_share_ * mean_seconds_ / (1.0F + known_share_ * (mean_rows_ - 1.0F));
  const float measured = (covariance_ + kVarianceTelling * known) / (variance_ + kVarianceTelling);
  return std::clamp(measured, 0.0F, mean_seconds_ / std::max(mean_rows_, 1.0F));
}

float StepCost::row_share(int32_t rows) const {
  const auto x = static_cast<float>(rows);
  if (count_ == 0.0F) return known_share_ / (1.0F + known_share_ * (x - 1.0F));
  const float b = slope();
  const float step = std::max(mean_seconds_ + b * (x - mean_rows_), b * x);
  return std::max(b / step, kRowShareMin);
}

void share_drafts(std::span<DraftOffer> offers, const StepCost& cost, int32_t rows, int32_t tokens,
                  int32_t draft_rows_max) {
  // Probability that each offer's next draft is kept: the product of the chances up to it.
  std::vector<float> reach;
  reach.reserve(offers.size());
  for (const DraftOffer& offer : offers) reach.push_back(offer.record->chance(offer.match_tokens));
  auto expected_tokens = static_cast<float>(tokens);
  for (int32_t given = 0; given < draft_rows_max; ++given) {
    size_t best = offers.size();
    for (size_t i = 0; i < offers.size(); ++i) {
      if (offers[i].drafts >= offers[i].drafts_max) continue;
      if (best == offers.size() || reach[i] > reach[best]) best = i;
    }
    if (best == offers.size()) return;
    // One more row is worth its time when it adds a larger share of tokens than of seconds.
    const float price = expected_tokens * cost.row_share(rows + given);
    if (reach[best] < std::max(kReachMin, kGainMin * price)) return;
    DraftOffer& offer = offers[best];
    expected_tokens += reach[best];
    ++offer.drafts;
    reach[best] *= offer.record->chance(offer.match_tokens + offer.drafts);
  }
}

}  // namespace updraft
