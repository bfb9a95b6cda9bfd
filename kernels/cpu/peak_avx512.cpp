// Peak loops for AVX-512 with VNNI: 64 products of bytes added to 16 sums by one instruction.
#include <immintrin.h>

#include "kernels/cpu/peak.h"

// GCC 12 sees an uninitialised variable in its own header where the intrinsic means "any value".
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

namespace updraft {
namespace {

constexpr int kChains = 16;  // more than latency times instructions per cycle

// Keeps a value in a register and unknown, so that nothing is computed before its turn.
inline void hide(__m512i& value) { asm volatile("" : "+v"(value)); }
inline void hide(__m512& value) { asm volatile("" : "+v"(value)); }

int32_t int8_loop(int64_t rounds) {
  __m512i sums[kChains];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  __m512i a = _mm512_set1_epi8(3);
  __m512i b = _mm512_set1_epi8(-1);
  hide(a);
  hide(b);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbusd_epi32(sums[c], a, b);
  }
  __m512i all = sums[0];
  for (int c = 1; c < kChains; ++c) all = _mm512_add_epi32(all, sums[c]);
  return _mm512_reduce_add_epi32(all);
}

float fma_loop(int64_t rounds) {
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  __m512 one = _mm512_set1_ps(1.0F);
  hide(one);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_fmadd_ps(sums[c], one, one);
  }
  __m512 all = sums[0];
  for (int c = 1; c < kChains; ++c) all = _mm512_add_ps(all, sums[c]);
  return _mm512_reduce_add_ps(all);
}

uint64_t read_loop(const void* at, int64_t bytes) {
  const auto* p = static_cast<const char*>(at);
  const char* end = p + bytes;
  __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                     _mm512_setzero_si512()};
  for (; p != end; p += 256) {
    _mm_prefetch(p + 4096, _MM_HINT_T0);
    _mm_prefetch(p + 4160, _MM_HINT_T0);
    _mm_prefetch(p + 4224, _MM_HINT_T0);
    _mm_prefetch(p + 4288, _MM_HINT_T0);
    for (int c = 0; c < 4; ++c) sums[c] = _mm512_xor_si512(sums[c], _mm512_loadu_si512(p + 64 * c));
  }
  const __m512i all =
      _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]));
  uint64_t words[8];
  _mm512_storeu_si512(words, all);
  uint64_t out = 0;
  for (const uint64_t word : words) out ^= word;
  return out;
}

}  // namespace

const PeakLoops& avx512_peak_loops() {
  static constexpr PeakLoops kLoops = {2.0 * 64 * kChains, 2.0 * 16 * kChains, int8_loop, fma_loop,
                                       read_loop};
  return kLoops;
}

}  // namespace updraft
