// Vectors of 4 lanes: NEON as every 64-bit ARM core has it (Armv8.0: Cortex-A53, A57, A72). Bytes
// are multiplied into 16-bit sums, which hold a number of products that depends on the width of the
// weights; vec_neon_dotprod.h has a better dot().
//
// Included by the kernels_neon*.cpp alone; why the namespace is anonymous: vec_generic.h.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/inline.h"

namespace updraft {
namespace {

struct VecNeon {
  static constexpr int kLanes = 4;
  static constexpr bool kSignedBytes = true;
  static constexpr int kTokens =
      8;  // 8 byte vectors of weights, 8 totals, 2 of activations, scales
  static constexpr int kSlab = 4;

  using F = float32x4_t;
  using I = int32x4_t;
  using B = uint8x16_t;

  static UPDRAFT_INLINE uint32x4_t first_lanes(int n) {
    const uint32_t lane[4] = {0, 1, 2, 3};
    return vcltq_u32(vld1q_u32(lane), vdupq_n_u32(static_cast<uint32_t>(n)));
  }

  static UPDRAFT_INLINE F zero() { return vdupq_n_f32(0.0F); }
  static UPDRAFT_INLINE F set1(float x) { return vdupq_n_f32(x); }
  static UPDRAFT_INLINE F load(const float* p) { return vld1q_f32(p); }
  static UPDRAFT_INLINE void store(float* p, F f) { vst1q_f32(p, f); }
  static UPDRAFT_INLINE F load_first(const float* p, int n) {
    F f = zero();
    if (n > 0) f = vld1q_lane_f32(p, f, 0);
    if (n > 1) f = vld1q_lane_f32(p + 1, f, 1);
    if (n > 2) f = vld1q_lane_f32(p + 2, f, 2);
    if (n > 3) f = vld1q_lane_f32(p + 3, f, 3);
    return f;
  }
  static UPDRAFT_INLINE void store_first(float* p, F f, int n) {
    if (n > 0) vst1q_lane_f32(p, f, 0);
    if (n > 1) vst1q_lane_f32(p + 1, f, 1);
    if (n > 2) vst1q_lane_f32(p + 2, f, 2);
    if (n > 3) vst1q_lane_f32(p + 3, f, 3);
  }
  static UPDRAFT_INLINE F add(F a, F b) { return vaddq_f32(a, b); }
  static UPDRAFT_INLINE F sub(F a, F b) { return vsubq_f32(a, b); }
  static UPDRAFT_INLINE F mul(F a, F b) { return vmulq_f32(a, b); }
  static UPDRAFT_INLINE F div(F a, F b) { return vdivq_f32(a, b); }
  static UPDRAFT_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  // The "nm" forms prefer a number to a NaN: exp_of's clamps bring a NaN into range, as on x86.
  static UPDRAFT_INLINE F max(F a, F b) { return vmaxnmq_f32(a, b); }
  static UPDRAFT_INLINE F min(F a, F b) { return vminnmq_f32(a, b); }
  static UPDRAFT_INLINE F abs(F a) { return vabsq_f32(a); }
  static UPDRAFT_INLINE F keep_first(F a, int n, float fill) {
    return vbslq_f32(first_lanes(n), a, set1(fill));
  }
  static UPDRAFT_INLINE float reduce_add(F a) { return vaddvq_f32(a); }
  static UPDRAFT_INLINE float reduce_max(F a) { return vmaxnmvq_f32(a); }
  static UPDRAFT_INLINE float first(F a) { return vgetq_lane_f32(a, 0); }
  static UPDRAFT_INLINE F round(F a) { return vrndnq_f32(a); }
  static UPDRAFT_INLINE F scale_by_power(F a, F n) {
    const I bits = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(a, vreinterpretq_f32_s32(bits));
  }

  static UPDRAFT_INLINE F load_half(const void* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<const uint16_t*>(p))));
  }
  static UPDRAFT_INLINE F load_bf16(const void* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(static_cast<const uint16_t*>(p)), 16));
  }
  static UPDRAFT_INLINE uint8x8_t load_four(const void* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return vreinterpret_u8_u32(vset_lane_u32(four, vdup_n_u32(0), 0));
  }
  static UPDRAFT_INLINE F load_u8(const void* p) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load_four(p)))));
  }
  static UPDRAFT_INLINE F load_s8(const void* p) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_four(p))))));
  }
  static UPDRAFT_INLINE void store_half(void* p, F f) {
    vst1_u16(static_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(f)));
  }
  static UPDRAFT_INLINE void store_bf16(void* p, F f) {
    const uint32x4_t bits = vreinterpretq_u32_f32(f);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint32x4_t number = vceqq_f32(f, f);
    vst1_u16(static_cast<uint16_t*>(p), vshrn_n_u32(vbslq_u32(number, rounded, quiet), 16));
  }

  static UPDRAFT_INLINE I round_to_int(F a) { return vcvtnq_s32_f32(a); }
  static UPDRAFT_INLINE void store_s8(int8_t* p, I a) {
    const int16x4_t words = vqmovn_s32(a);
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    __builtin_memcpy(p, &four, 4);
  }
  static UPDRAFT_INLINE I add_int(I a, I b) { return vaddq_s32(a, b); }
  static UPDRAFT_INLINE int32_t reduce_add_int(I a) { return vaddvq_s32(a); }
  static UPDRAFT_INLINE F to_float(I a) { return vcvtq_f32_s32(a); }
  static UPDRAFT_INLINE I set1_int(int32_t x) { return vdupq_n_s32(x); }
  template <int kShift>
  static UPDRAFT_INLINE I shift_left(I a) {
    return vshlq_n_s32(a, kShift);
  }
  static UPDRAFT_INLINE void prefetch(const void* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
  }

  // --- byte vectors: 4 consecutive columns of each of 4 rows ---
  static UPDRAFT_INLINE B load_bytes(const void* p) {
    return vld1q_u8(static_cast<const uint8_t*>(p));
  }
  static UPDRAFT_INLINE B low_nibbles(B a) { return vandq_u8(a, vdupq_n_u8(15)); }
  static UPDRAFT_INLINE B high_nibbles(B a) { return vshrq_n_u8(a, 4); }
  template <int kShift, int kMask>
  static UPDRAFT_INLINE B merge_high(B a, B high) {
    if constexpr (kShift > 0) high = vshlq_n_u8(high, kShift);
    if constexpr (kShift < 0) high = vshrq_n_u8(high, -kShift);
    return vorrq_u8(a, vandq_u8(high, vdupq_n_u8(kMask)));
  }
  // Weights of up to 6 bits are positive as signed bytes too, so one signed product serves all.
  template <int kBits, int kGroups>
  static UPDRAFT_INLINE I dot(I init, const B* x, const int8_t* a) {
    // A 16-bit lane sums one column of each group of a run: run * 127 * (2^bits - 1) < 2^15, and
    // 2 * 127 * 128 for signed bytes.
    constexpr int kPerWord = kBits <= 5 ? 8 : kBits == 6 ? 4 : 2;
    constexpr int kRun = kPerWord < kGroups ? kPerWord : kGroups;
    I low = vdupq_n_s32(0);  // rows 0 and 1, two lanes each
    I high = vdupq_n_s32(0);
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; g += kRun) {
      int16x8_t low_words = vdupq_n_s16(0);
      int16x8_t high_words = vdupq_n_s16(0);
#pragma GCC unroll 8
      for (int i = g; i < g + kRun; ++i) {
        int32_t four;
        __builtin_memcpy(&four, a + 4 * i, 4);
        const int8x16_t act = vreinterpretq_s8_s32(vdupq_n_s32(four));
        const int8x16_t weights = vreinterpretq_s8_u8(x[i]);
        low_words = vmlal_s8(low_words, vget_low_s8(weights), vget_low_s8(act));
        high_words = vmlal_high_s8(high_words, weights, act);
      }
      low = vpadalq_s16(low, low_words);
      high = vpadalq_s16(high, high_words);
    }
    return vaddq_s32(init, vpaddq_s32(low, high));
  }
};

}  // namespace
}  // namespace updraft
