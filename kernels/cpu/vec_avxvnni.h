// Vectors of 8 lanes for processors with AVX-VNNI and without AVX-512: those of AVX2, with dpbusd
// in place of maddubs. Included by kernels_avxvnni.cpp alone; why the namespace is anonymous:
// vec_generic.h.
#pragma once

#include "kernels/cpu/vec_avx2.h"

namespace updraft {
namespace {

struct VecAvxVnni : VecAvx2 {
  static constexpr bool kSignedBytes = false;  // Q8_0's bytes become unsigned by an offset of 128

  static UPDRAFT_INLINE B flip_sign(B a) {
    return _mm256_xor_si256(a, _mm256_set1_epi8(static_cast<char>(0x80)));
  }
  template <int kBits, int kGroups>
  static UPDRAFT_INLINE I dot(I init, const B* x, const int8_t* a) {
    if constexpr (kGroups == 1) return _mm256_dpbusd_avx_epi32(init, x[0], broadcast_word(a));
    static_assert(kGroups == 1 || kGroups % 2 == 0, "whole pairs");
    I odd = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; g += 2) {
      init = _mm256_dpbusd_avx_epi32(init, x[g], broadcast_word(a + 4 * g));
      odd = _mm256_dpbusd_avx_epi32(odd, x[g + 1], broadcast_word(a + 4 * g + 4));
    }
    return _mm256_add_epi32(init, odd);
  }
  static UPDRAFT_INLINE int32_t sum_bytes(const int8_t* q, int first) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + first));
    __m128i sum = _mm_dpbusd_avx_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), bytes);
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
  }

  // --- panels (panel_kernel.h): signed weights, activations plus kActBias ---
  // Two tiles times three tokens: 6 integer and 6 float sums, two weights, one activation.
  static constexpr int kPanelTokens = 3;
  static constexpr int kActBias = 128;
  static UPDRAFT_INLINE void store_bytes(void* p, B a) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), a);
  }
  static UPDRAFT_INLINE I load_int(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static UPDRAFT_INLINE I negate_int(I a) { return _mm256_sub_epi32(_mm256_setzero_si256(), a); }
  template <int kValue>
  static UPDRAFT_INLINE B sub_bytes(B a) {
    return _mm256_sub_epi8(a, _mm256_set1_epi8(kValue));
  }
  static UPDRAFT_INLINE B bias_bytes() { return _mm256_set1_epi8(static_cast<char>(kActBias)); }
  static UPDRAFT_INLINE B broadcast_word(const void* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }
  static UPDRAFT_INLINE I dot_panel(I sum, B a, B w) { return _mm256_dpbusd_avx_epi32(sum, a, w); }
};

}  // namespace
}  // namespace updraft
