// Rotary frequencies, computed in double precision and rounded once.
#include "common/engine/rope.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>

#include "common/base/check.h"

namespace updraft {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

// Long wavelengths are stretched by the factor, short ones kept, and those between blended.
void scale_llama3(const RopeScaling& scaling, std::vector<double>& inverse) {
  const double context = scaling.original_context_tokens;
  const double low = scaling.low_freq_factor;
  const double high = scaling.high_freq_factor;
  for (double& frequency : inverse) {
    const double wavelength = kTwoPi / frequency;
    if (wavelength < context / high) continue;
    if (wavelength > context / low) {
      frequency /= scaling.factor;
      continue;
    }
    const double kept = (context / wavelength - low) / (high - low);
    frequency = (1.0 - kept) * frequency / scaling.factor + kept * frequency;
  }
}

// Pairs that turn more than beta_fast times over the original context are kept, those that turn
// less than beta_slow times are stretched, with a linear ramp over the pair index between.
void scale_yarn(const RopeScaling& scaling, double base, int32_t rope_dims,
                std::vector<double>& inverse) {
  const double dims = rope_dims;
  const auto pair_that_turns = [&](double turns) {
    return dims * std::log(scaling.original_context_tokens / (turns * kTwoPi)) /
           (2.0 * std::log(base));
  };
  const double low = std::max(std::floor(pair_that_turns(scaling.beta_fast)), 0.0);
  double high = std::min(std::ceil(pair_that_turns(scaling.beta_slow)), dims - 1.0);
  if (high == low) high += 0.001;  // the ramp becomes a step
  for (size_t i = 0; i < inverse.size(); ++i) {
    const double stretched = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inverse[i] *= stretched / scaling.factor + (1.0 - stretched);
  }
}

float yarn_magnitude(const RopeScaling& scaling) {
  if (scaling.attention_factor > 0.0F) return scaling.attention_factor;
  if (scaling.factor <= 1.0F) return 1.0F;
  return static_cast<float>(0.1 * std::log(static_cast<double>(scaling.factor)) + 1.0);
}

}  // namespace

RopeFrequencies rope_frequencies(const Hyperparameters& hyperparameters,
                                 std::span<const float> divisors) {
  const auto pairs = static_cast<size_t>(hyperparameters.rope_dims / 2);
  const double base = hyperparameters.rope_base;
  std::vector<double> inverse(pairs);
  for (size_t i = 0; i < pairs; ++i) {
    inverse[i] = std::pow(base, -2.0 * static_cast<double>(i) / hyperparameters.rope_dims);
  }
  UPDRAFT_CHECK(divisors.empty() || divisors.size() == pairs,
                "the loader checks the table's length");

  RopeFrequencies out;
  const RopeScaling& scaling = hyperparameters.rope_scaling;
  switch (scaling.kind) {
    case RopeScaling::Kind::kNone:
      break;
    case RopeScaling::Kind::kLinear:
      for (double& frequency : inverse) frequency /= scaling.factor;
      break;
    case RopeScaling::Kind::kYarn:
      scale_yarn(scaling, base, hyperparameters.rope_dims, inverse);
      out.magnitude = yarn_magnitude(scaling);
      break;
    case RopeScaling::Kind::kLlama3:
      if (divisors.empty()) scale_llama3(scaling, inverse);
      break;
  }
  out.inverse.resize(pairs);
  for (size_t i = 0; i < pairs; ++i) {
    out.inverse[i] = static_cast<float>(divisors.empty() ? inverse[i] : inverse[i] / divisors[i]);
  }
  return out;
}

}  // namespace updraft
