// Vectors of 8 lanes: AVX2 with FMA and F16C. Bytes are multiplied by maddubs, whose 16-bit sums of
// two products saturate; dot() therefore adds only as many of them in 16 bits as the width of the
// weights allows. Included by kernels_avx2.cpp and, as the base of its vectors, vec_avxvnni.h; why
// the namespace is anonymous: vec_generic.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/inline.h"

namespace updraft {
namespace {

struct VecAvx2 {
  static constexpr int kLanes = 8;
  static constexpr bool kSignedBytes = true;
  static constexpr int kTokens = 4;
  static constexpr int kSlab = 2;

  using F = __m256;
  using I = __m256i;
  using B = __m256i;

  static UPDRAFT_INLINE __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static UPDRAFT_INLINE F zero() { return _mm256_setzero_ps(); }
  static UPDRAFT_INLINE F set1(float x) { return _mm256_set1_ps(x); }
  static UPDRAFT_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
  static UPDRAFT_INLINE void store(float* p, F f) { _mm256_storeu_ps(p, f); }
  static UPDRAFT_INLINE F load_first(const float* p, int n) {
    return _mm256_maskload_ps(p, first_lanes(n));
  }
  static UPDRAFT_INLINE void store_first(float* p, F f, int n) {
    _mm256_maskstore_ps(p, first_lanes(n), f);
  }
  static UPDRAFT_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static UPDRAFT_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static UPDRAFT_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static UPDRAFT_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  static UPDRAFT_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static UPDRAFT_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  static UPDRAFT_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
  static UPDRAFT_INLINE F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }
  static UPDRAFT_INLINE F keep_first(F a, int n, float fill) {
    return _mm256_blendv_ps(_mm256_set1_ps(fill), a, _mm256_castsi256_ps(first_lanes(n)));
  }
  static UPDRAFT_INLINE float reduce_add(F a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static UPDRAFT_INLINE float reduce_max(F a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }
  static UPDRAFT_INLINE float first(F a) { return _mm256_cvtss_f32(a); }
  static UPDRAFT_INLINE F round(F a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static UPDRAFT_INLINE F scale_by_power(F a, F n) {
    const __m256i bits =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(bits));
  }

  static UPDRAFT_INLINE F load_half(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static UPDRAFT_INLINE F load_bf16(const void* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static UPDRAFT_INLINE F load_u8(const void* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  }
  static UPDRAFT_INLINE F load_s8(const void* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  }
  static UPDRAFT_INLINE void store_half(void* p, F f) {
    _mm_storeu_si128(static_cast<__m128i*>(p),
                     _mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static UPDRAFT_INLINE void store_bf16(void* p, F f) {
    const __m256i bits = _mm256_castps_si256(f);
    const __m256i upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i out = _mm256_blendv_epi8(rounded, quiet, nan);
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm_packus_epi32(_mm256_castsi256_si128(out),
                                                                _mm256_extracti128_si256(out, 1)));
  }

  static UPDRAFT_INLINE I round_to_int(F a) { return _mm256_cvtps_epi32(a); }
  static UPDRAFT_INLINE void store_s8(int8_t* p, I a) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static UPDRAFT_INLINE I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static UPDRAFT_INLINE int32_t reduce_add_int(I a) {
    __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xB1)));
  }
  static UPDRAFT_INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static UPDRAFT_INLINE I set1_int(int32_t x) { return _mm256_set1_epi32(x); }
  template <int kShift>
  static UPDRAFT_INLINE I shift_left(I a) {
    return _mm256_slli_epi32(a, kShift);
  }
  static UPDRAFT_INLINE void prefetch(const void* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64)
      _mm_prefetch(static_cast<const char*>(p) + i, _MM_HINT_T0);
  }

  // --- byte vectors: 4 consecutive columns of each of 8 rows ---
  static UPDRAFT_INLINE B load_bytes(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static UPDRAFT_INLINE B low_nibbles(B a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
  static UPDRAFT_INLINE B high_nibbles(B a) {
    return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15));
  }
  template <int kShift, int kMask>
  static UPDRAFT_INLINE B merge_high(B a, B high) {
    if constexpr (kShift > 0) high = _mm256_slli_epi16(high, kShift);
    if constexpr (kShift < 0) high = _mm256_srli_epi16(high, -kShift);
    return _mm256_or_si256(a, _mm256_and_si256(high, _mm256_set1_epi8(kMask)));
  }
  template <int kBits, int kGroups>
  static UPDRAFT_INLINE I dot(I init, const B* x, const int8_t* a) {
    // Largest sum of one maddubs: 2 * 127 * (2^bits - 1); that many fit below 2^15. For 8 bits the
    // weight's sign moves to the activation: 2 * 127 * 128 fits once.
    constexpr int kPerWord = kBits == 4 ? 8 : kBits == 5 ? 4 : kBits == 6 ? 2 : 1;
    constexpr int kRun = kPerWord < kGroups ? kPerWord : kGroups;
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; g += kRun) {
      __m256i words = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int i = g; i < g + kRun; ++i) {
        int32_t four;
        __builtin_memcpy(&four, a + 4 * i, 4);
        const __m256i act = _mm256_set1_epi32(four);
        const __m256i products =
            kBits == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(x[i]), _mm256_sign_epi8(act, x[i]))
                       : _mm256_maddubs_epi16(x[i], act);
        words = kRun == 1 ? products : _mm256_add_epi16(words, products);
      }
      init = _mm256_add_epi32(init, _mm256_madd_epi16(words, ones));
    }
    return init;
  }
};

}  // namespace
}  // namespace updraft
