// NEON's peak loops with another integer instruction: one loop for all that add products of the
// bytes of two registers to four sums.
#pragma once

#include <arm_neon.h>

#include "kernels/cpu/peak.h"

namespace updraft {

// kProduct(sums, a, b) adds kProducts products.
template <int kProducts, int32x4_t (*kProduct)(int32x4_t, int8x16_t, int8x16_t)>
struct NeonInt8Loop {
  static constexpr int kChains = 12;

  // As PeakLoops::int8.
  static int32_t run(int64_t rounds) {
    int32x4_t sums[kChains];
    for (int32x4_t& sum : sums) sum = vdupq_n_s32(0);
    int8x16_t a = vdupq_n_s8(3);
    int8x16_t b = vdupq_n_s8(-1);
    asm volatile("" : "+w"(a), "+w"(b));  // unknown to the compiler
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) sums[c] = kProduct(sums[c], a, b);
    }
    int32_t all = 0;
    for (const int32x4_t& sum : sums) all += vaddvq_s32(sum);
    return all;
  }

  static PeakLoops loops() {
    PeakLoops loops = neon_peak_loops();
    loops.int8_ops_per_round = 2.0 * kProducts * kChains;
    loops.int8 = run;
    return loops;
  }
};

}  // namespace updraft
