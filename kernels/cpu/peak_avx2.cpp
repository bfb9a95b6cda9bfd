// Peak loops for AVX2: 32 products of bytes in two instructions and a third that widens their sums.
#include <immintrin.h>

#include "kernels/cpu/peak.h"

namespace updraft {
namespace {

constexpr int kChains = 8;
constexpr int kFmaChains = 12;

// Keeps a value in a register and unknown, so that nothing is computed before its turn.
inline void hide(__m256i& value) { asm volatile("" : "+x"(value)); }
inline void hide(__m256& value) { asm volatile("" : "+x"(value)); }

int32_t int8_loop(int64_t rounds) {
  __m256i sums[kChains];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  __m256i a = _mm256_set1_epi8(3);
  __m256i b = _mm256_set1_epi8(-1);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t r = 0; r < rounds; ++r) {
    // Eight pairs of products fit 16 bits with weights of 4 bits, as in the kernels.
    __m256i words[kChains];
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      hide(a);
      words[c] = _mm256_maddubs_epi16(a, b);
    }
    __m256i sum = words[0];
#pragma GCC unroll 8
    for (int c = 1; c < kChains; ++c) sum = _mm256_add_epi16(sum, words[c]);
    sums[r % kChains] = _mm256_add_epi32(sums[r % kChains], _mm256_madd_epi16(sum, ones));
  }
  int32_t all = 0;
  for (const __m256i& sum : sums) {
    int32_t lanes[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sum);
    for (const int32_t lane : lanes) all += lane;
  }
  return all;
}

float fma_loop(int64_t rounds) {
  __m256 sums[kFmaChains];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  __m256 one = _mm256_set1_ps(1.0F);
  hide(one);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kFmaChains; ++c) sums[c] = _mm256_fmadd_ps(sums[c], one, one);
  }
  float all = 0.0F;
  for (const __m256& sum : sums) {
    float lanes[8];
    _mm256_storeu_ps(lanes, sum);
    for (const float lane : lanes) all += lane;
  }
  return all;
}

uint64_t read_loop(const void* at, int64_t bytes) {
  const auto* p = static_cast<const __m256i*>(at);
  const auto* end = p + bytes / 32;
  __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                     _mm256_setzero_si256()};
  for (; p != end; p += 8) {
    _mm_prefetch(reinterpret_cast<const char*>(p) + 4096, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p) + 4160, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p) + 4224, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p) + 4288, _MM_HINT_T0);
    for (int c = 0; c < 8; ++c)
      sums[c % 4] = _mm256_xor_si256(sums[c % 4], _mm256_loadu_si256(p + c));
  }
  const __m256i all =
      _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 1) ^
                               _mm256_extract_epi64(all, 2) ^ _mm256_extract_epi64(all, 3));
}

}  // namespace

const PeakLoops& avx2_peak_loops() {
  static constexpr PeakLoops kLoops = {2.0 * 32 * kChains, 2.0 * 8 * kFmaChains, int8_loop,
                                       fma_loop, read_loop};
  return kLoops;
}

}  // namespace updraft
