// Weight tiles times pairs of activation rows, for vector types that multiply 2 x 8 with 8 x 2
// bytes at once (vec_neon_i8mm.h). Weights are unpacked and paired once per block for up to
// kPairsMax pairs. The integer sums are those of matmul_kernel.h and the f32 operations the same in
// the same order, so a row's bits do not depend on whether it had a partner.
#pragma once

#include "kernels/cpu/matmul_kernel.h"

namespace updraft {

inline constexpr int kPairsMax = 4;  // 8 vectors of weights, 8 totals, 4 of activations, scales

template <class V, DType kType>
struct PairedBlock {
  using Format = QuantFormat<V, kType>;
  static constexpr int kOffset = Format::kOffsetShift < 0 ? 0 : 1 << (Format::kOffsetShift & 7);
  typename V::B weights[8];  // columns 8i..8i+7 of rows 0 and 1 at 2i, of rows 2 and 3 at 2i+1
  typename V::F scale[2];    // of rows 0 and 1, of rows 2 and 3
  typename V::F second[2];

  UPDRAFT_INLINE void load(const std::byte* quants, const BlockScales<V>& scales) {
    typename V::B x[8];
    Format::unpack(quants, x);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
      V::pair_rows(V::template sub_bytes<kOffset>(x[i]), V::template sub_bytes<kOffset>(x[i + 1]),
                   weights + i);
    }
    V::twice_per_row(scales.scale, scale);
    if constexpr (Format::kHalves || Format::kHasMin) V::twice_per_row(scales.second, second);
  }

  // The block's share of rows 2 * h and 2 * h + 1.
  UPDRAFT_INLINE typename V::F accumulate(typename V::F total, int h, const typename V::B* acts,
                                          typename V::F act_scale, typename V::F act_sum) const {
    typename V::I low = V::set1_int(0);
    low = V::dot_pairs(low, acts[0], weights[h]);
    low = V::dot_pairs(low, acts[1], weights[2 + h]);
    typename V::I high = Format::kHalves ? V::set1_int(0) : low;
    high = V::dot_pairs(high, acts[2], weights[4 + h]);
    high = V::dot_pairs(high, acts[3], weights[6 + h]);
    if constexpr (Format::kHalves) {
      const auto both = V::fma(V::to_float(high), second[h], V::mul(V::to_float(low), scale[h]));
      return V::fma(both, act_scale, total);
    }
    total = V::fma(V::to_float(high), V::mul(scale[h], act_scale), total);
    if constexpr (Format::kHasMin) total = V::fma(second[h], act_sum, total);
    return total;
  }
};

// One tile times kPairs pairs of rows.
template <class V, DType kType, int kPairs>
__attribute__((noinline)) void pair_tile(const std::byte* tile, int64_t header_bytes, int64_t cols,
                                         const std::byte* acts, int64_t act_stride, float* out,
                                         int64_t out_stride) {
  using Format = QuantFormat<V, kType>;
  static_assert(V::kLanes == 4);
  constexpr int64_t kQuantBytes = Format::kFormat.quant_bytes_per_row * V::kLanes;
  constexpr int64_t kHeaderBytes = Format::kFormat.header_bytes_per_row * V::kLanes;
  const std::byte* header = tile;
  const std::byte* quants = tile + header_bytes;
  typename V::F total[kPairs][2];
#pragma GCC unroll 4
  for (int p = 0; p < kPairs; ++p) total[p][0] = total[p][1] = V::zero();
  SuperScales<V> super{V::zero(), V::zero()};
  const int64_t blocks = cols / kBlockCols;
  for (int64_t b = 0; b < blocks; ++b) {
    const int s = Format::kSuper ? static_cast<int>(b % 8) : 0;
    if constexpr (Format::kSuper) {
      if (s == 0) Format::load_super(header, super);
    }
    V::prefetch(quants + kPrefetchQuantBytes, kQuantBytes);
    V::prefetch(header + kPrefetchHeaderBytes, 1);
    PairedBlock<V, kType> block;
    block.load(quants, Format::scales(header, super, s));
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
      const auto& first = reinterpret_cast<const ActBlock*>(acts + 2 * p * act_stride)[b];
      const auto& second = reinterpret_cast<const ActBlock*>(acts + (2 * p + 1) * act_stride)[b];
      typename V::B q[4];
      V::pair_tokens(first.q, second.q, q);
      V::pair_tokens(first.q + 16, second.q + 16, q + 2);
      const auto scale = V::twice_per_token(first.scale, second.scale);
      const auto sum = V::twice_per_token(first.scaled_sum, second.scaled_sum);
      total[p][0] = block.accumulate(total[p][0], 0, q, scale, sum);
      total[p][1] = block.accumulate(total[p][1], 1, q, scale, sum);
    }
    quants += kQuantBytes;
    if (!Format::kSuper || s == 7) header += kHeaderBytes;
  }
#pragma GCC unroll 4
  for (int p = 0; p < kPairs; ++p) {
    typename V::F rows[2];
    V::split_tokens(total[p][0], total[p][1], rows);
    V::store(out + 2 * p * out_stride, rows[0]);
    V::store(out + (2 * p + 1) * out_stride, rows[1]);
  }
}

template <class V, DType kType, int kPairs>
UPDRAFT_INLINE void pair_tokens(const MatmulTiles& op, int64_t tile, int64_t token) {
  pair_tile<V, kType, kPairs>(op.tiles + tile * op.tile_stride_bytes, op.header_bytes, op.cols,
                              static_cast<const std::byte*>(op.acts) + token * op.act_stride_bytes,
                              op.act_stride_bytes,
                              op.out + token * op.out_stride + tile * V::kLanes, op.out_stride);
}

template <class V, DType kType>
void matmul_pairs(const MatmulTiles& op) {
  for (int64_t tile = 0; tile < op.tile_count; ++tile) {
    int64_t token = 0;
    for (; token + 2 * kPairsMax <= op.tokens; token += 2 * kPairsMax) {
      pair_tokens<V, kType, kPairsMax>(op, tile, token);
    }
    if (token + 4 <= op.tokens) {
      pair_tokens<V, kType, 2>(op, tile, token);
      token += 4;
    }
    if (token + 2 <= op.tokens) {
      pair_tokens<V, kType, 1>(op, tile, token);
      token += 2;
    }
    if (token < op.tokens) matmul_tokens<V, kType, 1>(op, tile, 1, token);
  }
}

// A table of kernels with the products of the quantised formats in pairs.
template <class V>
constexpr Kernels with_pairs(Kernels k) {
  k.matmul[static_cast<int>(DType::kQ8_0)] = matmul_pairs<V, DType::kQ8_0>;
  k.matmul[static_cast<int>(DType::kQ4_0)] = matmul_pairs<V, DType::kQ4_0>;
  k.matmul[static_cast<int>(DType::kQ4_1)] = matmul_pairs<V, DType::kQ4_1>;
  k.matmul[static_cast<int>(DType::kQ5_0)] = matmul_pairs<V, DType::kQ5_0>;
  k.matmul[static_cast<int>(DType::kQ5_1)] = matmul_pairs<V, DType::kQ5_1>;
  k.matmul[static_cast<int>(DType::kQ4_K)] = matmul_pairs<V, DType::kQ4_K>;
  k.matmul[static_cast<int>(DType::kQ5_K)] = matmul_pairs<V, DType::kQ5_K>;
  k.matmul[static_cast<int>(DType::kQ6_K)] = matmul_pairs<V, DType::kQ6_K>;
  return k;
}

}  // namespace updraft
