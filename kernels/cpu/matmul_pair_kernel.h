// Weight tiles times pairs of activation rows, for vector types that multiply 2 x 8 with 8 x 2
// bytes at once (vec_neon_i8mm.h). Weights must be unpacked and rearranged for that, so it is done
// once for all tokens: kPairBlocks blocks of kPairTiles tiles become a panel that stays in the
// first-level cache. One pass multiplies it with up to kPairsMax pairs of rows; between the panels
// of a tile the sums rest in the output.
//
// The integer sums are those of matmul_kernel.h and the f32 operations the same in the same order,
// so a row's bits do not depend on whether it had a partner.
#pragma once

#include "kernels/cpu/matmul_kernel.h"

namespace updraft {

inline constexpr int kPairTiles = 2;      // each pair of activations meets 8 rows
inline constexpr int kPairsMax = 2;       // 8 totals, 4 of activations, 4 sums, their scales
inline constexpr int kPairBlocks = 16;    // 5 KB
inline constexpr int kPairTokensMin = 4;  // fewer do not pay for the panel

// One block of 32 columns of one tile.
template <class V>
struct PairedBlock {
  typename V::B weights[8];  // columns 8i..8i+7 of rows 0 and 1 at 2i, of rows 2 and 3 at 2i+1
  typename V::F scale[2];    // of rows 0 and 1, of rows 2 and 3
  typename V::F second[2];   // as BlockScales
};

template <class V, DType kType>
struct PairedFormat {
  using Format = QuantFormat<V, kType>;
  static constexpr int kOffset = Format::kOffsetShift < 0 ? 0 : 1 << (Format::kOffsetShift & 7);
  static constexpr bool kHasSecond = Format::kHalves || Format::kHasMin;

  // Blocks [first, first + count) of one tile into out[0], out[kPairTiles], ...
  static UPDRAFT_INLINE void pack(const std::byte* tile, int64_t first, int64_t count,
                                  PairedBlock<V>* out) {
    SuperScales<V> super{V::zero(), V::zero()};
    for (int64_t b = first; b < first + count; ++b, out += kPairTiles) {
      const std::byte* header = tile + tile_header_offset(Format::kFormat, V::kLanes, b);
      const std::byte* quants = tile + tile_quants_offset(Format::kFormat, V::kLanes, b);
      if constexpr (Format::kSuper) Format::load_super(header, super);
      V::prefetch(quants + kPrefetchBytes, Format::kQuantBytes);
      const BlockScales<V> scales =
          Format::scales(header, super, static_cast<int>(b % Format::kGroupBlocks));
      typename V::B x[8];
      Format::unpack(quants, x);
#pragma GCC unroll 4
      for (int i = 0; i < 8; i += 2) {
        V::pair_rows(V::template sub_bytes<kOffset>(x[i]), V::template sub_bytes<kOffset>(x[i + 1]),
                     out->weights + i);
      }
      V::twice_per_row(scales.scale, out->scale);
      if constexpr (kHasSecond) V::twice_per_row(scales.second, out->second);
    }
  }

  // The block's share of rows 2 * h and 2 * h + 1.
  static UPDRAFT_INLINE typename V::F accumulate(typename V::F total, const PairedBlock<V>& w,
                                                 int h, const typename V::B* acts,
                                                 typename V::F act_scale, typename V::F act_sum) {
    typename V::I low = V::set1_int(0);
    low = V::dot_pairs(low, acts[0], w.weights[h]);
    low = V::dot_pairs(low, acts[1], w.weights[2 + h]);
    typename V::I high = Format::kHalves ? V::set1_int(0) : low;
    high = V::dot_pairs(high, acts[2], w.weights[4 + h]);
    high = V::dot_pairs(high, acts[3], w.weights[6 + h]);
    if constexpr (Format::kHalves) {
      const auto both =
          V::fma(V::to_float(high), w.second[h], V::mul(V::to_float(low), w.scale[h]));
      return V::fma(both, act_scale, total);
    }
    total = V::fma(V::to_float(high), V::mul(w.scale[h], act_scale), total);
    if constexpr (Format::kHasMin) total = V::fma(w.second[h], act_sum, total);
    return total;
  }
};

// Where the results of the tiles of a panel go, and the distance between tokens there.
struct PairOut {
  float* rows[kPairTiles];
  int64_t stride[kPairTiles];
};

// A panel times kPairs pairs of rows, from block `first` of each. The sums begin at zero there, or
// are continued.
template <class V, DType kType, int kPairs>
__attribute__((noinline)) void pair_panel(const PairedBlock<V>* panel, int64_t first, int64_t count,
                                          const std::byte* acts, int64_t act_stride,
                                          const PairOut& out) {
  using Paired = PairedFormat<V, kType>;
  static_assert(V::kLanes == 4);
  typename V::F total[kPairs][kPairTiles][2];
#pragma GCC unroll 2
  for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 2
    for (int i = 0; i < kPairTiles; ++i) {
      if (first == 0) {
        total[p][i][0] = total[p][i][1] = V::zero();
      } else {
        const float* at = out.rows[i] + 2 * p * out.stride[i];
        V::swap_pairs(V::load(at), V::load(at + out.stride[i]), total[p][i]);
      }
    }
  }
  for (int64_t b = first; b < first + count; ++b, panel += kPairTiles) {
#pragma GCC unroll 2
    for (int p = 0; p < kPairs; ++p) {
      const auto& one = reinterpret_cast<const ActBlock*>(acts + 2 * p * act_stride)[b];
      const auto& two = reinterpret_cast<const ActBlock*>(acts + (2 * p + 1) * act_stride)[b];
      typename V::B q[4];
      V::pair_tokens(one.q, two.q, q);
      V::pair_tokens(one.q + 16, two.q + 16, q + 2);
      const auto scale = V::twice_per_token(one.scale, two.scale);
      const auto sum = V::twice_per_token(one.scaled_sum, two.scaled_sum);
#pragma GCC unroll 2
      for (int i = 0; i < kPairTiles; ++i) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h)
          total[p][i][h] = Paired::accumulate(total[p][i][h], panel[i], h, q, scale, sum);
      }
    }
  }
#pragma GCC unroll 2
  for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 2
    for (int i = 0; i < kPairTiles; ++i) {
      typename V::F rows[2];
      V::swap_pairs(total[p][i][0], total[p][i][1], rows);
      float* at = out.rows[i] + 2 * p * out.stride[i];
      V::store(at, rows[0]);
      V::store(at + out.stride[i], rows[1]);
    }
  }
}

template <class V, DType kType>
void matmul_pairs(const MatmulTiles& op) {
  using Paired = PairedFormat<V, kType>;
  if (op.tokens < kPairTokensMin) return matmul<V, kType>(op);
  const int64_t blocks = op.cols / kBlockCols;
  const int64_t paired = op.tokens / 2 * 2;
  const auto* acts = static_cast<const std::byte*>(op.acts);
  for (int64_t tile = 0; tile < op.tile_count; tile += kPairTiles) {
    // A last tile without a second one is multiplied twice; the second result goes nowhere.
    const bool both = tile + 1 < op.tile_count;
    const std::byte* at = op.tiles + tile * op.tile_stride_bytes;
    const std::byte* tiles[kPairTiles] = {at, both ? at + op.tile_stride_bytes : at};
    float nowhere[V::kLanes];
    PairedBlock<V> panel[kPairBlocks * kPairTiles];
    for (int64_t first = 0; first < blocks; first += kPairBlocks) {
      const int64_t count = blocks - first < kPairBlocks ? blocks - first : kPairBlocks;
      for (int i = 0; i < kPairTiles; ++i) Paired::pack(tiles[i], first, count, panel + i);
      float* rows = op.out + tile * V::kLanes;
      PairOut out{{rows, both ? rows + V::kLanes : nowhere},
                  {op.out_stride, both ? op.out_stride : 0}};
      int64_t token = 0;
      for (; token + 2 * kPairsMax <= paired; token += 2 * kPairsMax) {
        pair_panel<V, kType, kPairsMax>(panel, first, count, acts + token * op.act_stride_bytes,
                                        op.act_stride_bytes, out);
        for (int i = 0; i < kPairTiles; ++i) out.rows[i] += 2 * kPairsMax * out.stride[i];
      }
      if (token < paired) {
        pair_panel<V, kType, 1>(panel, first, count, acts + token * op.act_stride_bytes,
                                op.act_stride_bytes, out);
      }
    }
  }
  if (paired < op.tokens) {
    for (int64_t tile = 0; tile < op.tile_count; ++tile)
      matmul_tokens<V, kType, 1>(op, tile, 1, paired);
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
