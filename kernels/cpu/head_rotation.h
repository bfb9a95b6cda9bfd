// The rotation that int8 pages live in: each head of q, k and v is multiplied by a Hadamard matrix
// before it becomes bytes, and the attention's output by the same matrix afterwards.
//
// Why: one scale serves a whole head, and in trained models a few channels of k are tens of times
// larger than the rest, which would leave the others two or three bits. A Hadamard matrix H spreads
// each channel evenly over all of them, and (Hq).(Hk) = n q.k, H(Hv) = n v, so nothing else changes
// (the idea is QuaRot's, Ashkboos et al. 2024). n is a power of two: dividing by it rounds nothing.
#pragma once

#include <cstdint>

#include "kernels/cpu/inline.h"

namespace updraft {

// The largest power of two that divides head_dim: heads are rotated in blocks of this size.
constexpr int rotation_block(int head_dim) { return head_dim & -head_dim; }

// Row j of the Hadamard matrix of one register's lanes: sign of (i & j)'s parity.
template <class V>
struct LaneSigns {
  alignas(64) float row[V::kLanes][V::kLanes]{};
  constexpr LaneSigns() {
    for (unsigned j = 0; j < V::kLanes; ++j) {
      for (unsigned i = 0; i < V::kLanes; ++i) {
        row[j][i] = __builtin_parity(i & j) != 0 ? -1.0F : 1.0F;
      }
    }
  }
};
template <class V>
inline constexpr LaneSigns<V> kLaneSigns{};

// x = H x per block of rotation_block(head_dim) values.
template <class V>
UPDRAFT_INLINE void rotate_head(float* x, int head_dim) {
  const int block = rotation_block(head_dim);
  if (block < V::kLanes) {
    for (int stride = 1; stride < block; stride *= 2) {
      for (int i = 0; i < head_dim; ++i) {
        if ((i & stride) != 0) continue;
        const float a = x[i];
        const float b = x[i + stride];
        x[i] = a + b;
        x[i + stride] = a - b;
      }
    }
    return;
  }
  // Within registers as a sum of signed broadcasts, across registers by butterflies.
  for (int first = 0; first < head_dim; first += V::kLanes) {
    typename V::F sum[2] = {V::zero(), V::zero()};
#pragma GCC unroll 16
    for (int j = 0; j < V::kLanes; ++j) {
      sum[j % 2] = V::fma(V::set1(x[first + j]), V::load(kLaneSigns<V>.row[j]), sum[j % 2]);
    }
    V::store(x + first, V::add(sum[0], sum[1]));
  }
  for (int stride = V::kLanes; stride < block; stride *= 2) {
    for (int i = 0; i < head_dim; i += V::kLanes) {
      if ((i & stride) != 0) continue;
      const typename V::F a = V::load(x + i);
      const typename V::F b = V::load(x + i + stride);
      V::store(x + i, V::add(a, b));
      V::store(x + i + stride, V::sub(a, b));
    }
  }
}

}  // namespace updraft
