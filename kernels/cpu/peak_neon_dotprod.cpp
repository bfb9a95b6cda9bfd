// Peak loop for NEON with dot products: 16 products of bytes by one instruction.
#include "kernels/cpu/peak_neon_int8.h"

namespace updraft {
namespace {

inline int32x4_t dot(int32x4_t sums, int8x16_t a, int8x16_t b) { return vdotq_s32(sums, a, b); }

}  // namespace

const PeakLoops& neon_dotprod_peak_loops() {
  static const PeakLoops kLoops = NeonInt8Loop<16, dot>::loops();
  return kLoops;
}

}  // namespace updraft
