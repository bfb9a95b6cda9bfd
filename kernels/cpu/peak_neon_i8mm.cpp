// Peak loop for NEON with 8-bit matrix multiplication: 32 products of bytes by one instruction.
#include "kernels/cpu/peak_neon_int8.h"

namespace updraft {
namespace {

inline int32x4_t multiply(int32x4_t sums, int8x16_t a, int8x16_t b) {
  return vmmlaq_s32(sums, a, b);
}

}  // namespace

const PeakLoops& neon_i8mm_peak_loops() {
  static const PeakLoops kLoops = NeonInt8Loop<32, multiply>::loops();
  return kLoops;
}

}  // namespace updraft
