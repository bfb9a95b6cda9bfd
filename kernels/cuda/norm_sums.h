// An RMS norm in two parts, so that no kernel stands between a product, the residual stream, the
// norm and the next product. Who changes the stream writes x = hidden * norm and, for each band of
// 16 elements of a row, the sum of its squares; the product that reads x multiplies its own sums by
// the row's factor 1 / sqrt(mean square + eps). For kernels.
//
// A row's factor has the same bits whoever adds: a band as a tree of neighbours, the bands by 32
// lanes, who take every 32nd each, and then as a tree.
#pragma once

#include "kernels/cuda/device.h"

namespace updraft::cuda {

inline constexpr int kNormBand = 16;

// The sum over the band that the 16 neighbouring lanes of a lane hold an element's square each of;
// the whole warp takes part. (With a mask of the band's lanes a warp would do it band after band.)
UPDRAFT_DEVICE float band_sum(float square) {
  UPDRAFT_UNROLL
  for (uint32_t step = 1; step < kNormBand; step *= 2) square += shuffle_xor(square, step);
  return square;
}
// The same where two neighbouring lanes hold 8 elements each.
UPDRAFT_DEVICE float band_sum_of_eight(const float (&v)[8]) {
  float sums[8];
  UPDRAFT_UNROLL
  for (int i = 0; i < 8; ++i) sums[i] = multiply(v[i], v[i]);
  UPDRAFT_UNROLL
  for (int step = 1; step < 8; step *= 2) {
    UPDRAFT_UNROLL
    for (int i = 0; i < 8; i += 2 * step) sums[i] += sums[i + step];
  }
  return sums[0] + shuffle_xor(sums[0], 1);
}

// The row's factor from its bands' sums, which `sum_of` gives by number; by a whole warp, to all
// its lanes.
template <typename SumOf>
UPDRAFT_DEVICE float norm_factor(int dim, float eps, int lane, const SumOf& sum_of) {
  float sum = 0.0F;
  for (int band = lane; band < dim / kNormBand; band += 32) sum += sum_of(band);
  UPDRAFT_UNROLL
  for (uint32_t step = 16; step > 0; step /= 2) sum += shuffle_xor(sum, step);
  return inverse_sqrt(sum / static_cast<float>(dim) + eps);
}

}  // namespace updraft::cuda
