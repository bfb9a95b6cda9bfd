// Peak loops for NEON: 16 products of bytes in two multiplications and two that widen their sums.
#include <arm_neon.h>

#include "kernels/cpu/peak.h"

namespace updraft {
namespace {

constexpr int kChains = 8;

int32_t int8_loop(int64_t rounds) {
  int32x4_t sums[kChains];
  for (int32x4_t& sum : sums) sum = vdupq_n_s32(0);
  int8x16_t a = vdupq_n_s8(3);
  int8x16_t b = vdupq_n_s8(-1);
  asm volatile("" : "+w"(a), "+w"(b));  // unknown to the compiler
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
      sums[c] = vpadalq_s16(sums[c], vmlal_high_s8(low, a, b));
      asm volatile("" : "+w"(a));  // the next products are computed anew
    }
  }
  int32_t all = 0;
  for (const int32x4_t& sum : sums) all += vaddvq_s32(sum);
  return all;
}

float fma_loop(int64_t rounds) {
  float32x4_t sums[kChains];
  for (float32x4_t& sum : sums) sum = vdupq_n_f32(0.0F);
  float32x4_t one = vdupq_n_f32(1.0F);
  asm volatile("" : "+w"(one));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) sums[c] = vfmaq_f32(sums[c], one, one);
  }
  float all = 0.0F;
  for (const float32x4_t& sum : sums) all += vaddvq_f32(sum);
  return all;
}

uint64_t read_loop(const void* at, int64_t bytes) {
  const auto* p = static_cast<const uint64_t*>(at);
  const uint64_t* end = p + bytes / 8;
  uint64x2_t sums[4] = {vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0)};
  for (; p != end; p += 32) {
    for (int c = 0; c < 16; ++c) sums[c % 4] = veorq_u64(sums[c % 4], vld1q_u64(p + 2 * c));
  }
  const uint64x2_t all = veorq_u64(veorq_u64(sums[0], sums[1]), veorq_u64(sums[2], sums[3]));
  return vgetq_lane_u64(all, 0) ^ vgetq_lane_u64(all, 1);
}

}  // namespace

const PeakLoops& neon_peak_loops() {
  static constexpr PeakLoops kLoops = {2.0 * 16 * kChains, 2.0 * 4 * kChains, int8_loop, fma_loop,
                                       read_loop};
  return kLoops;
}

}  // namespace updraft
