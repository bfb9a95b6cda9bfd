// Vectors of 16 lanes: AVX-512 with VNNI, whose dpbusd multiplies unsigned weights with signed
// activations and adds four products per lane without saturation. Included by kernels_avx512.cpp
// alone; why the namespace is anonymous: vec_generic.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/inline.h"

// GCC 12 sees an uninitialised variable in its own header where the intrinsic means "any value".
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

namespace updraft {
namespace {

struct VecAvx512 {
  static constexpr int kLanes = 16;
  static constexpr bool kSignedBytes = false;  // Q8_0's bytes become unsigned by an offset of 128
  static constexpr int kTokens = 8;
  static constexpr int kSlab = 4;
  // Two tiles times six tokens: 12 integer and 12 float sums, two weights, one activation.
  static constexpr int kPanelTokens = 6;
  static constexpr int kActBias = 128;  // dot_panel() multiplies unsigned activations

  using F = __m512;
  using I = __m512i;
  using B = __m512i;

  static UPDRAFT_INLINE __mmask16 first_lanes(int n) {
    return static_cast<__mmask16>((1U << n) - 1U);
  }

  static UPDRAFT_INLINE F zero() { return _mm512_setzero_ps(); }
  static UPDRAFT_INLINE F set1(float x) { return _mm512_set1_ps(x); }
  static UPDRAFT_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  static UPDRAFT_INLINE void store(float* p, F f) { _mm512_storeu_ps(p, f); }
  static UPDRAFT_INLINE F load_first(const float* p, int n) {
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
  }
  static UPDRAFT_INLINE void store_first(float* p, F f, int n) {
    _mm512_mask_storeu_ps(p, first_lanes(n), f);
  }
  static UPDRAFT_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static UPDRAFT_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static UPDRAFT_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static UPDRAFT_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  static UPDRAFT_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static UPDRAFT_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  static UPDRAFT_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  static UPDRAFT_INLINE F abs(F a) { return _mm512_abs_ps(a); }
  static UPDRAFT_INLINE F keep_first(F a, int n, float fill) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(fill), first_lanes(n), a);
  }
  static UPDRAFT_INLINE float reduce_add(F a) { return _mm512_reduce_add_ps(a); }
  static UPDRAFT_INLINE float reduce_max(F a) { return _mm512_reduce_max_ps(a); }
  static UPDRAFT_INLINE float first(F a) { return _mm512_cvtss_f32(a); }
  static UPDRAFT_INLINE F round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static UPDRAFT_INLINE F scale_by_power(F a, F n) { return _mm512_scalef_ps(a, n); }

  static UPDRAFT_INLINE F load_half(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static UPDRAFT_INLINE F load_bf16(const void* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static UPDRAFT_INLINE F load_u8(const void* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  static UPDRAFT_INLINE F load_s8(const void* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  static UPDRAFT_INLINE void store_half(void* p, F f) {
    _mm256_storeu_si256(static_cast<__m256i*>(p),
                        _mm512_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static UPDRAFT_INLINE void store_bf16(void* p, F f) {
    const __m512i bits = _mm512_castps_si512(f);
    const __m512i upper = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
    const __m512i out = _mm512_mask_mov_epi32(rounded, nan, quiet);
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(out));
  }

  static UPDRAFT_INLINE I round_to_int(F a) { return _mm512_cvtps_epi32(a); }
  static UPDRAFT_INLINE void store_s8(int8_t* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a));
  }
  static UPDRAFT_INLINE I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static UPDRAFT_INLINE int32_t reduce_add_int(I a) { return _mm512_reduce_add_epi32(a); }
  // Optional: the sum of q[first .. first + 16).
  static UPDRAFT_INLINE int32_t sum_bytes(const int8_t* q, int first) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + first));
    __m128i sum = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), bytes);
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
  }
  static UPDRAFT_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static UPDRAFT_INLINE I set1_int(int32_t x) { return _mm512_set1_epi32(x); }
  template <int kShift>
  static UPDRAFT_INLINE I shift_left(I a) {
    return _mm512_slli_epi32(a, kShift);
  }
  static UPDRAFT_INLINE void prefetch(const void* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64)
      _mm_prefetch(static_cast<const char*>(p) + i, _MM_HINT_T0);
  }

  // --- byte vectors: 4 consecutive columns of each of 16 rows ---
  static UPDRAFT_INLINE B load_bytes(const void* p) { return _mm512_loadu_si512(p); }
  static UPDRAFT_INLINE B flip_sign(B a) {
    return _mm512_xor_si512(a, _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static UPDRAFT_INLINE B low_nibbles(B a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
  static UPDRAFT_INLINE B high_nibbles(B a) {
    return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15));
  }
  template <int kShift, int kMask>
  static UPDRAFT_INLINE B merge_high(B a, B high) {
    if constexpr (kShift > 0) high = _mm512_slli_epi16(high, kShift);
    if constexpr (kShift < 0) high = _mm512_srli_epi16(high, -kShift);
    return _mm512_ternarylogic_epi32(a, high, _mm512_set1_epi8(kMask), 0xF8);  // a | (high & mask)
  }
  // Two chains, so that one token's sums do not wait for each other; integers have no order.
  template <int kBits, int kGroups>
  static UPDRAFT_INLINE I dot(I init, const B* x, const int8_t* a) {
    if constexpr (kGroups == 1) return _mm512_dpbusd_epi32(init, x[0], broadcast_word(a));
    static_assert(kGroups == 1 || kGroups % 2 == 0, "whole pairs");
    I odd = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; g += 2) {
      init = _mm512_dpbusd_epi32(init, x[g], broadcast_word(a + 4 * g));
      odd = _mm512_dpbusd_epi32(odd, x[g + 1], broadcast_word(a + 4 * g + 4));
    }
    return _mm512_add_epi32(init, odd);
  }

  // --- panels (panel_kernel.h): signed weights, activations plus kActBias ---
  static UPDRAFT_INLINE void store_bytes(void* p, B a) { _mm512_storeu_si512(p, a); }
  static UPDRAFT_INLINE I load_int(const void* p) { return _mm512_loadu_si512(p); }
  static UPDRAFT_INLINE I negate_int(I a) { return _mm512_sub_epi32(_mm512_setzero_si512(), a); }
  template <int kValue>
  static UPDRAFT_INLINE B sub_bytes(B a) {
    return _mm512_sub_epi8(a, _mm512_set1_epi8(kValue));
  }
  static UPDRAFT_INLINE B bias_bytes() { return _mm512_set1_epi8(static_cast<char>(kActBias)); }
  static UPDRAFT_INLINE B broadcast_word(const void* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  static UPDRAFT_INLINE I dot_panel(I sum, B a, B w) { return _mm512_dpbusd_epi32(sum, a, w); }
};

}  // namespace
}  // namespace updraft
