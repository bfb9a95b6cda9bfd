// Vectors of 16 lanes: AVX-512 with VNNI and BF16, whose dpbf16 adds two products of bf16 per lane
// to an f32. Included by kernels_avx512bf16.cpp alone.
#pragma once

#include "kernels/cpu/vec_avx512.h"

namespace updraft {
namespace {

struct VecAvx512Bf16 : VecAvx512 {
  static UPDRAFT_INLINE F dot_pairs(F sum, B x, const void* two) {
    int32_t pair;
    __builtin_memcpy(&pair, two, 4);
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)_mm512_set1_epi32(pair));
  }
  static UPDRAFT_INLINE B first_of_pairs(B a) {
    return _mm512_and_si512(a, _mm512_set1_epi32(0xFFFF));
  }
  static UPDRAFT_INLINE void store_bf16(void* p, F f) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(f));
  }
};

}  // namespace
}  // namespace updraft
