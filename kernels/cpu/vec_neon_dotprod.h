// NEON with the dot product extension (Armv8.2: Cortex-A55, A75 and later, Neoverse N1): sdot adds
// four products per lane, and takes four activations of a register by its index, so that no
// broadcast is needed. Included by kernels_neon_dotprod.cpp and kernels_neon_i8mm.cpp alone.
#pragma once

#include "kernels/cpu/vec_neon.h"

namespace updraft {
namespace {

struct VecNeonDotprod : VecNeon {
  static UPDRAFT_INLINE I dot4(I init, const B* x, const int8_t* a) {
    const int8x16_t acts = vld1q_s8(a);
    init = vdotq_laneq_s32(init, vreinterpretq_s8_u8(x[0]), acts, 0);
    init = vdotq_laneq_s32(init, vreinterpretq_s8_u8(x[1]), acts, 1);
    init = vdotq_laneq_s32(init, vreinterpretq_s8_u8(x[2]), acts, 2);
    return vdotq_laneq_s32(init, vreinterpretq_s8_u8(x[3]), acts, 3);
  }
  template <int kBits, int kGroups>
  static UPDRAFT_INLINE I dot(I init, const B* x, const int8_t* a) {
    if constexpr (kGroups % 4 == 0) {
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; g += 4) init = dot4(init, x + g, a + 4 * g);
    } else {
#pragma GCC unroll 8
      for (int g = 0; g < kGroups; ++g) {
        const auto acts = vld1q_dup_s32(reinterpret_cast<const int32_t*>(a + 4 * g));
        init = vdotq_s32(init, vreinterpretq_s8_u8(x[g]), vreinterpretq_s8_s32(acts));
      }
    }
    return init;
  }
};

}  // namespace
}  // namespace updraft
