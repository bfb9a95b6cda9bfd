// Quantising to the K formats. The idea: fit each sub-block alone by least squares, round the
// fitted scales to the few bits they get, then search the neighbouring scales for the least squared
// error with the final quants.
#include "kernels/quant/quantize_k.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/quant/block_layout.h"

namespace updraft {
namespace {

void store_half(std::byte* at, float value) {
  const uint16_t half = float_to_half(value);
  std::memcpy(at, &half, sizeof half);
}

// Nearest integer in [low, high]; NaN gives low.
int nearest(float value, int low, int high) {
  if (!(value > static_cast<float>(low))) return low;
  if (value >= static_cast<float>(high)) return high;
  return static_cast<int>(std::lrint(value));
}

// A fit y = scale * q - min of 32 weights, min >= 0.
struct Fit {
  float scale = 0.0F;
  float min = 0.0F;
};

// Squared error of 32 weights with these values, each quant the best one.
float error_of(const float* x, float scale, float min, int q_max) {
  const float inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
  float error = 0.0F;
  for (int i = 0; i < 32; ++i) {
    const int q = nearest((x[i] + min) * inverse, 0, q_max);
    const float e = scale * static_cast<float>(q) - min - x[i];
    error += e * e;
  }
  return error;
}

// The least-squares scale and min for quants taken from a first guess; min is held at 0 when the
// solution has it below.
Fit solve(const float* x, float scale, float min, int q_max) {
  const float inverse = 1.0F / scale;
  float sum_q = 0.0F, sum_qq = 0.0F, sum_x = 0.0F, sum_qx = 0.0F;
  for (int i = 0; i < 32; ++i) {
    const auto q = static_cast<float>(nearest((x[i] + min) * inverse, 0, q_max));
    sum_q += q;
    sum_qq += q * q;
    sum_x += x[i];
    sum_qx += q * x[i];
  }
  const float determinant = 32.0F * sum_qq - sum_q * sum_q;
  if (determinant <= 0.0F) return {scale, min};
  Fit fit{(32.0F * sum_qx - sum_q * sum_x) / determinant,
          (sum_q * sum_qx - sum_qq * sum_x) / determinant};
  if (fit.min < 0.0F) fit = {sum_qx / sum_qq, 0.0F};
  return fit.scale > 0.0F ? fit : Fit{scale, min};
}

Fit fit_scale_min(const float* x, int q_max) {
  const float low = std::min(0.0F, *std::min_element(x, x + 32));
  const float top = *std::max_element(x, x + 32);
  if (!(top > low)) return {0.0F, -low};
  const float range = top - low;
  Fit best{range / static_cast<float>(q_max), -low};
  float best_error = error_of(x, best.scale, best.min, q_max);
  // First guesses from a little coarser to a little finer than the full range.
  for (int step = -8; step <= 8; ++step) {
    const float guess = range / (static_cast<float>(q_max) + 0.125F * static_cast<float>(step));
    const Fit fit = solve(x, guess, -low, q_max);
    const float error = error_of(x, fit.scale, fit.min, q_max);
    if (error < best_error) {
      best = fit;
      best_error = error;
    }
  }
  return best;
}

// Scales and mins of a superblock in 6 bits each under d and dmin.
struct ScaleMins {
  float d = 0.0F;
  float dmin = 0.0F;
  std::array<uint8_t, 8> scale{};
  std::array<uint8_t, 8> min{};
};

// The neighbours of the rounded 6-bit pair with the least error.
void refine(const float* x, int q_max, ScaleMins& sm, int s) {
  const int scale = sm.scale[s];
  const int min = sm.min[s];
  float best =
      error_of(x, sm.d * static_cast<float>(scale), sm.dmin * static_cast<float>(min), q_max);
  for (int i = std::max(0, scale - 1); i <= std::min(63, scale + 1); ++i) {
    for (int j = std::max(0, min - 1); j <= std::min(63, min + 1); ++j) {
      const float error =
          error_of(x, sm.d * static_cast<float>(i), sm.dmin * static_cast<float>(j), q_max);
      if (error < best) {
        best = error;
        sm.scale[s] = static_cast<uint8_t>(i);
        sm.min[s] = static_cast<uint8_t>(j);
      }
    }
  }
}

ScaleMins fit_super_block(const float* x, int q_max) {
  std::array<Fit, 8> fits;
  float scale_max = 0.0F;
  float min_max = 0.0F;
  for (int s = 0; s < 8; ++s) {
    fits[s] = fit_scale_min(x + 32 * s, q_max);
    scale_max = std::max(scale_max, fits[s].scale);
    min_max = std::max(min_max, fits[s].min);
  }
  ScaleMins sm;
  // What a reader will see: the half-precision values.
  sm.d = half_to_float(float_to_half(scale_max / 63.0F));
  sm.dmin = half_to_float(float_to_half(min_max / 63.0F));
  for (int s = 0; s < 8; ++s) {
    sm.scale[s] = static_cast<uint8_t>(sm.d > 0.0F ? nearest(fits[s].scale / sm.d, 0, 63) : 0);
    sm.min[s] = static_cast<uint8_t>(sm.dmin > 0.0F ? nearest(fits[s].min / sm.dmin, 0, 63) : 0);
    refine(x + 32 * s, q_max, sm, s);
  }
  return sm;
}

void store_scale_mins(const ScaleMins& sm, std::byte* block) {
  store_half(block, sm.d);
  store_half(block + 2, sm.dmin);
  pack_scale_mins(sm.scale.data(), sm.min.data(), block + kKScales);
}

void quants_of(const float* x, const ScaleMins& sm, int q_max, uint8_t* q) {
  for (int i = 0; i < kSuperBlock; ++i) {
    const int s = i / 32;
    const float scale = sm.d * static_cast<float>(sm.scale[s]);
    const float min = sm.dmin * static_cast<float>(sm.min[s]);
    q[i] = static_cast<uint8_t>(scale > 0.0F ? nearest((x[i] + min) / scale, 0, q_max) : 0);
  }
}

// Symmetric fit of 16 weights to q in [-32, 31]; the scale may be negative.
float error_of_16(const float* x, float scale) {
  const float inverse = scale != 0.0F ? 1.0F / scale : 0.0F;
  float error = 0.0F;
  for (int i = 0; i < 16; ++i) {
    const float e = scale * static_cast<float>(nearest(x[i] * inverse, -32, 31)) - x[i];
    error += e * e;
  }
  return error;
}

float fit_scale_16(const float* x) {
  float peak = 0.0F;
  for (int i = 0; i < 16; ++i) {
    if (std::fabs(x[i]) > std::fabs(peak)) peak = x[i];
  }
  if (peak == 0.0F) return 0.0F;
  float best = peak / -32.0F;
  float best_error = error_of_16(x, best);
  for (int step = -8; step <= 8; ++step) {
    const float guess = peak / (-32.0F - 0.125F * static_cast<float>(step));
    float sum_qq = 0.0F, sum_qx = 0.0F;
    for (int i = 0; i < 16; ++i) {
      const auto q = static_cast<float>(nearest(x[i] / guess, -32, 31));
      sum_qq += q * q;
      sum_qx += q * x[i];
    }
    const float scale = sum_qq > 0.0F ? sum_qx / sum_qq : guess;
    const float error = error_of_16(x, scale);
    if (error < best_error) {
      best = scale;
      best_error = error;
    }
  }
  return best;
}

// The 8-bit scale among the neighbours of `scale / d` with the least error.
int8_t best_scale_16(const float* x, float scale, float d) {
  if (d == 0.0F) return 0;
  const int middle = nearest(scale / d, -128, 127);
  int best = middle;
  float best_error = error_of_16(x, d * static_cast<float>(middle));
  for (int s = std::max(-128, middle - 1); s <= std::min(127, middle + 1); ++s) {
    const float error = error_of_16(x, d * static_cast<float>(s));
    if (error < best_error) {
      best = s;
      best_error = error;
    }
  }
  return static_cast<int8_t>(best);
}

}  // namespace

void encode_q4_k(const float* x, std::byte* block) {
  const ScaleMins sm = fit_super_block(x, 15);
  store_scale_mins(sm, block);
  uint8_t q[kSuperBlock];
  quants_of(x, sm, 15, q);
  for (int chunk = 0; chunk < 4; ++chunk) {
    for (int i = 0; i < 32; ++i) {
      block[kQ4KQuants + 32 * chunk + i] =
          static_cast<std::byte>(q[64 * chunk + i] | (q[64 * chunk + 32 + i] << 4));
    }
  }
}

void encode_q5_k(const float* x, std::byte* block) {
  const ScaleMins sm = fit_super_block(x, 31);
  store_scale_mins(sm, block);
  uint8_t q[kSuperBlock];
  quants_of(x, sm, 31, q);
  for (int i = 0; i < 32; ++i) {
    int high = 0;
    for (int s = 0; s < 8; ++s) high |= (q[32 * s + i] >> 4) << s;
    block[kQ5KHigh + i] = static_cast<std::byte>(high);
    for (int chunk = 0; chunk < 4; ++chunk) {
      block[kQ5KQuants + 32 * chunk + i] =
          static_cast<std::byte>((q[64 * chunk + i] & 15) | ((q[64 * chunk + 32 + i] & 15) << 4));
    }
  }
}

void encode_q6_k(const float* x, std::byte* block) {
  std::array<float, 16> scales;
  float peak = 0.0F;
  for (int s = 0; s < 16; ++s) {
    scales[s] = fit_scale_16(x + 16 * s);
    if (std::fabs(scales[s]) > std::fabs(peak)) peak = scales[s];
  }
  // The largest scale becomes -128, the end of the range with one step more.
  const float d = half_to_float(float_to_half(peak / -128.0F));
  store_half(block + kQ6KD, d);
  uint8_t q[kSuperBlock];
  for (int s = 0; s < 16; ++s) {
    const int8_t scale = best_scale_16(x + 16 * s, scales[s], d);
    block[kQ6KScales + s] = static_cast<std::byte>(scale);
    const float step = d * static_cast<float>(scale);
    for (int i = 16 * s; i < 16 * s + 16; ++i) {
      q[i] = static_cast<uint8_t>((step != 0.0F ? nearest(x[i] / step, -32, 31) : 0) + 32);
    }
  }
  for (int half = 0; half < 2; ++half) {
    const uint8_t* h = q + 128 * half;
    for (int i = 0; i < 32; ++i) {
      block[64 * half + i] = static_cast<std::byte>((h[i] & 15) | ((h[i + 64] & 15) << 4));
      block[64 * half + 32 + i] =
          static_cast<std::byte>((h[i + 32] & 15) | ((h[i + 96] & 15) << 4));
      block[kQ6KHigh + 32 * half + i] =
          static_cast<std::byte>((h[i] >> 4) | ((h[i + 32] >> 4) << 2) | ((h[i + 64] >> 4) << 4) |
                                 ((h[i + 96] >> 4) << 6));
    }
  }
}

}  // namespace updraft
