// Peak loop for AVX-VNNI: 32 products of bytes added to 8 sums by one instruction; the rest is
// AVX2's.
#include <immintrin.h>

#include "kernels/cpu/peak.h"

namespace updraft {
namespace {

constexpr int kChains = 12;  // more than latency times instructions per cycle

int32_t int8_loop(int64_t rounds) {
  __m256i sums[kChains];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  __m256i a = _mm256_set1_epi8(3);
  __m256i b = _mm256_set1_epi8(-1);
  asm volatile("" : "+x"(a), "+x"(b));  // unknown to the compiler
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = _mm256_dpbusd_avx_epi32(sums[c], a, b);
  }
  int32_t all = 0;
  for (const __m256i& sum : sums) {
    int32_t lanes[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sum);
    for (const int32_t lane : lanes) all += lane;
  }
  return all;
}

}  // namespace

const PeakLoops& avxvnni_peak_loops() {
  static const PeakLoops kLoops = [] {
    PeakLoops loops = avx2_peak_loops();
    loops.int8_ops_per_round = 2.0 * 32 * kChains;
    loops.int8 = int8_loop;
    return loops;
  }();
  return kLoops;
}

}  // namespace updraft
