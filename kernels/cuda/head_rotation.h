// The rotation that int8 pages live in: each head of q, k and v is multiplied by a Hadamard matrix
// H before it becomes bytes, and the attention's output by the same matrix afterwards. One scale
// serves a whole head, and in trained models a few channels of k are tens of times larger than the
// rest, which would leave the others two or three bits; H spreads each channel over all of them
// (QuaRot, Ashkboos et al. 2024). H H = n, so q is divided by n, as is the output: n is a power of
// two, which rounds nothing.
#pragma once

#include "kernels/cuda/device.h"

namespace updraft::cuda {

// x = H x per block of `block` values of a head that a warp holds: v[j] of lane l is dimension
// j * kRegisterStride + l * kLaneStride.
template <int kRegisterStride, int kLaneStride, int kPer>
UPDRAFT_DEVICE void rotate_head(float (&v)[kPer], int block, int lane) {
  UPDRAFT_UNROLL
  for (int step = 1; step < kPer; step *= 2) {
    if (step * kRegisterStride >= block) continue;
    UPDRAFT_UNROLL
    for (int j = 0; j < kPer; ++j) {
      if ((j & step) != 0) continue;
      const float a = v[j];
      const float b = v[j + step];
      v[j] = a + b;
      v[j + step] = a - b;
    }
  }
  UPDRAFT_UNROLL
  for (int step = 1; step < 32; step *= 2) {
    if (step * kLaneStride >= block) continue;
    UPDRAFT_UNROLL
    for (int j = 0; j < kPer; ++j) {
      const float other = shuffle_xor(v[j], static_cast<uint32_t>(step));
      v[j] = (lane & step) != 0 ? other - v[j] : v[j] + other;
    }
  }
}

}  // namespace updraft::cuda
