// What the kernels' tests share: random bfloat16, and the comparison with a reference in double
// precision.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "kernels/cuda/types.h"
#include "kernels/quant/quant.h"
#ifdef UPDRAFT_TESTS_ON_GPU
#include "tests/kernels/cuda/memory_gpu.h"
#else
#include "tests/kernels/cuda/memory_emulated.h"
#endif

namespace updraft::cuda::testing {

inline void require_ok(const Result<void>& result) {
  REQUIRE_MESSAGE(result.ok(), result.message());
  const Result<void> finished = finish();
  REQUIRE_MESSAGE(finished.ok(), finished.message());
}

// Whether the device of the test runs kernels for capability 9.0; the emulator does.
inline bool has_warpgroups() {
  const auto properties = device_properties(0);
  return properties.ok() && properties->compute_major == 9 && properties->compute_minor == 0;
}

inline float value(Bf16 v) { return bf16_to_float(v.bits); }
inline float value(Half v) { return half_to_float(v.bits); }
inline float value(float v) { return v; }

inline void fill_normal(std::span<Bf16> out, uint32_t seed, float scale = 1.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (Bf16& v : out) v = {float_to_bf16(scale * normal(random))};
}
inline void fill_normal(std::span<float> out, uint32_t seed, float scale = 1.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (float& v : out) v = scale * normal(random);
}

// The largest difference, relative to the largest expected value; infinity when a result is NaN.
template <typename T>
double difference(std::span<T> got, const std::vector<double>& expected) {
  REQUIRE(got.size() == expected.size());
  double largest = 1e-30;
  double worst = 0;
  for (const double e : expected) largest = std::max(largest, std::abs(e));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double d = std::abs(static_cast<double>(value(got[i])) - expected[i]);
    worst = std::max(worst, std::isnan(d) ? INFINITY : d);
  }
  return worst / largest;
}

inline constexpr double kBf16Step = 1.0 / 256;  // half a unit in the last place, relative

}  // namespace updraft::cuda::testing
