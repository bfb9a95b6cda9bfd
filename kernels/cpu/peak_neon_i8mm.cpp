// Peak loop for NEON with 8-bit matrix multiplication: 32 products of bytes added to 4 sums by one
// instruction; the rest is NEON's.
#include <arm_neon.h>

#include "kernels/cpu/peak.h"

namespace updraft {
namespace {

constexpr int kChains = 12;

int32_t int8_loop(int64_t rounds) {
  int32x4_t sums[kChains];
  for (int32x4_t& sum : sums) sum = vdupq_n_s32(0);
  int8x16_t a = vdupq_n_s8(3);
  int8x16_t b = vdupq_n_s8(-1);
  asm volatile("" : "+w"(a), "+w"(b));  // unknown to the compiler
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = vmmlaq_s32(sums[c], a, b);
  }
  int32_t all = 0;
  for (const int32x4_t& sum : sums) all += vaddvq_s32(sum);
  return all;
}

}  // namespace

const PeakLoops& neon_i8mm_peak_loops() {
  static const PeakLoops kLoops = [] {
    PeakLoops loops = neon_peak_loops();
    loops.int8_ops_per_round = 2.0 * 32 * kChains;
    loops.int8 = int8_loop;
    return loops;
  }();
  return kLoops;
}

}  // namespace updraft
