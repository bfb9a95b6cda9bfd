// NEON with 8-bit matrix multiplication (Armv8.6, and Neoverse N2, V1 before it): smmla multiplies
// 8 columns of two activation rows with 8 columns of two weight rows, twice the products of sdot.
// matmul_pair_kernel.h uses it; a single row goes through sdot. Included by kernels_neon_i8mm.cpp
// alone.
#pragma once

#include "kernels/cpu/vec_neon_dotprod.h"

namespace updraft {
namespace {

struct VecNeonI8mm : VecNeonDotprod {
  // Two byte vectors (4 columns of each of 4 rows) as one of 8 columns of each of rows 0 and 1, and
  // one of rows 2 and 3.
  static UPDRAFT_INLINE void pair_rows(B a, B b, B* out) {
    const uint32x4_t x = vreinterpretq_u32_u8(a);
    const uint32x4_t y = vreinterpretq_u32_u8(b);
    out[0] = vreinterpretq_u8_u32(vzip1q_u32(x, y));
    out[1] = vreinterpretq_u8_u32(vzip2q_u32(x, y));
  }
  // 16 columns of two activation rows as two vectors of 8 columns of both.
  static UPDRAFT_INLINE void pair_tokens(const int8_t* a, const int8_t* b, B* out) {
    const uint64x2_t x = vreinterpretq_u64_s8(vld1q_s8(a));
    const uint64x2_t y = vreinterpretq_u64_s8(vld1q_s8(b));
    out[0] = vreinterpretq_u8_u64(vzip1q_u64(x, y));
    out[1] = vreinterpretq_u8_u64(vzip2q_u64(x, y));
  }
  template <int kValue>
  static UPDRAFT_INLINE B sub_bytes(B a) {
    return vsubq_u8(a, vdupq_n_u8(kValue));
  }
  // Lanes: token 0 with rows 0 and 1 of the pair, token 1 with them.
  static UPDRAFT_INLINE I dot_pairs(I sum, B acts, B weights) {
    return vmmlaq_s32(sum, vreinterpretq_s8_u8(acts), vreinterpretq_s8_u8(weights));
  }

  // Values per row in those lanes, of rows 0 and 1 and of rows 2 and 3; values per token likewise.
  static UPDRAFT_INLINE void twice_per_row(F a, F* out) {
    const float64x2_t x = vreinterpretq_f64_f32(a);
    out[0] = vreinterpretq_f32_f64(vdupq_laneq_f64(x, 0));
    out[1] = vreinterpretq_f32_f64(vdupq_laneq_f64(x, 1));
  }
  static UPDRAFT_INLINE F twice_per_token(const float& a, const float& b) {
    return vcombine_f32(vld1_dup_f32(&a), vld1_dup_f32(&b));
  }
  // Rows 0 and 1 and rows 2 and 3 of two tokens become the 4 rows of each token; and back.
  static UPDRAFT_INLINE void swap_pairs(F a, F b, F* out) {
    const float64x2_t x = vreinterpretq_f64_f32(a);
    const float64x2_t y = vreinterpretq_f64_f32(b);
    out[0] = vreinterpretq_f32_f64(vzip1q_f64(x, y));
    out[1] = vreinterpretq_f32_f64(vzip2q_f64(x, y));
  }
};

}  // namespace
}  // namespace updraft
