// Weight tiles times activations, for every format and any vector type V (vec_*.h). One register
// holds R = V::kLanes rows of the matrix; a pass multiplies one tile with up to V::kTokens
// activation rows and reads the tile once for all of them.
//
// Quantised formats: an integer dot product per block of 32, then one f32 multiply-add with the
// product of the scales. The f32 sums run over the blocks in order, for one token as for eight, so
// a row's result does not depend on its batch.
#pragma once

#include <cstdint>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/tile_layout.h"

namespace updraft {

// The scales of one block of 32 columns, as f32 of R rows.
template <class V>
struct BlockScales {
  typename V::F scale;
  typename V::F
      second;  // the minimum to add (formats with one), or the scale of columns 16..31 (Q6_K)
};

// What the superblock's header holds; unused by the formats of 32.
template <class V>
struct SuperScales {
  typename V::F d;
  typename V::F dmin;
};

template <class V, DType kType>
struct QuantFormat {
  static constexpr int kRows = V::kLanes;
  static constexpr TileFormat kFormat = tile_format(kType);
  static constexpr int kGroupBlocks = kFormat.group_blocks;
  static constexpr int64_t kHeaderBytes = int64_t{kFormat.header_bytes_per_row} * kRows;
  static constexpr int64_t kQuantBytes = int64_t{kFormat.quant_bytes_per_row} * kRows;
  static constexpr bool kSuper = kGroupBlocks * kBlockCols == kSuperBlockCols;
  static constexpr bool kHasMin = kType == DType::kQ4_1 || kType == DType::kQ5_1 ||
                                  kType == DType::kQ4_K || kType == DType::kQ5_K;
  static constexpr bool kHalves = kType == DType::kQ6_K;
  static constexpr int kBits = kType == DType::kQ8_0               ? 8
                               : kType == DType::kQ6_K             ? 6
                               : kFormat.quant_bytes_per_row == 20 ? 5
                                                                   : 4;
  // log2 of the offset of unsigned weights; -1: none.
  static constexpr int kOffsetShift = kType == DType::kQ4_0                       ? 3
                                      : kType == DType::kQ5_0                     ? 4
                                      : kType == DType::kQ6_K                     ? 5
                                      : kType == DType::kQ8_0 && !V::kSignedBytes ? 7
                                                                                  : -1;

  static UPDRAFT_INLINE void load_super(const std::byte* header, SuperScales<V>& super) {
    super.d = V::load_half(header);
    if constexpr (kHasMin) super.dmin = V::load_half(header + 2 * kRows);
  }

  // `header` is that of the block's group, `s` the block in it.
  static UPDRAFT_INLINE BlockScales<V> scales(const std::byte* header, const SuperScales<V>& super,
                                              int s) {
    BlockScales<V> out;
    if constexpr (kHalves) {
      out.scale = V::mul(super.d, V::load_s8(header + (2 + 2 * s) * kRows));
      out.second = V::mul(super.d, V::load_s8(header + (3 + 2 * s) * kRows));
    } else if constexpr (kSuper) {
      out.scale = V::mul(super.d, V::load_u8(header + (4 + 2 * s) * kRows));
      out.second = V::sub(V::zero(), V::mul(super.dmin, V::load_u8(header + (5 + 2 * s) * kRows)));
    } else {
      out.scale = V::load_half(header + 2 * s * kRows);
      if constexpr (kHasMin) out.second = V::load_half(header + 2 * kRows);
    }
    return out;
  }

  static UPDRAFT_INLINE void unpack(const std::byte* quants, typename V::B* x) {
    constexpr int kVector = 4 * kRows;
    if constexpr (kBits == 8) {
      for (int g = 0; g < 8; ++g) {
        x[g] = V::load_bytes(quants + g * kVector);
        if constexpr (!V::kSignedBytes) x[g] = V::flip_sign(x[g]);
      }
      return;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const typename V::B both = V::load_bytes(quants + i * kVector);
      x[i] = V::low_nibbles(both);
      x[i + 4] = V::high_nibbles(both);
    }
    if constexpr (kBits == 5) {
      const typename V::B high = V::load_bytes(quants + 4 * kVector);
      x[0] = V::template merge_high<4, 0x10>(x[0], high);
      x[1] = V::template merge_high<3, 0x10>(x[1], high);
      x[2] = V::template merge_high<2, 0x10>(x[2], high);
      x[3] = V::template merge_high<1, 0x10>(x[3], high);
      x[4] = V::template merge_high<0, 0x10>(x[4], high);
      x[5] = V::template merge_high<-1, 0x10>(x[5], high);
      x[6] = V::template merge_high<-2, 0x10>(x[6], high);
      x[7] = V::template merge_high<-3, 0x10>(x[7], high);
    }
    if constexpr (kBits == 6) {
      for (int half = 0; half < 2; ++half) {
        const typename V::B high = V::load_bytes(quants + (4 + half) * kVector);
        typename V::B* y = x + 4 * half;
        y[0] = V::template merge_high<4, 0x30>(y[0], high);
        y[1] = V::template merge_high<2, 0x30>(y[1], high);
        y[2] = V::template merge_high<0, 0x30>(y[2], high);
        y[3] = V::template merge_high<-2, 0x30>(y[3], high);
      }
    }
  }

  // The same as signed bytes, the offset taken off: |x| <= 128, and at most 63 below 8 bits.
  static UPDRAFT_INLINE void unpack_signed(const std::byte* quants, typename V::B* x) {
    if constexpr (kBits == 8) {
      for (int g = 0; g < 8; ++g) x[g] = V::load_bytes(quants + g * 4 * kRows);
    } else {
      unpack(quants, x);
      if constexpr (kOffsetShift >= 0) {
        for (int g = 0; g < 8; ++g) x[g] = V::template sub_bytes<1 << kOffsetShift>(x[g]);
      }
    }
  }

  // What the integer dot product starts from, given the negated sum of its activations.
  static UPDRAFT_INLINE typename V::I start(typename V::I neg_sum) {
    if constexpr (kOffsetShift < 0) return V::set1_int(0);
    return V::template shift_left<(kOffsetShift < 0 ? 0 : kOffsetShift)>(neg_sum);
  }

  static UPDRAFT_INLINE typename V::F accumulate(typename V::F total, const typename V::B* x,
                                                 const BlockScales<V>& w, const ActBlock& a) {
    const typename V::F act_scale = V::set1(a.scale);
    if constexpr (kHalves) {
      const auto low = V::template dot<kBits, 4>(start(V::set1_int(a.neg_sum_low)), x, a.q);
      const auto high =
          V::template dot<kBits, 4>(start(V::set1_int(a.neg_sum_high)), x + 4, a.q + 16);
      const auto both = V::fma(V::to_float(high), w.second, V::mul(V::to_float(low), w.scale));
      return V::fma(both, act_scale, total);
    } else {
      const auto dot = V::template dot<kBits, 8>(start(V::set1_int(a.neg_sum)), x, a.q);
      total = V::fma(V::to_float(dot), V::mul(w.scale, act_scale), total);
      if constexpr (kHasMin) total = V::fma(w.second, V::set1(a.scaled_sum), total);
      return total;
    }
  }
};

// How far ahead of their use weights are fetched: memory takes about 100 ns, a core reads about 40
// bytes in each of them.
inline constexpr int64_t kPrefetchBytes = 4096;

// kBlocks blocks of a group, from its first on, times kTokens rows.
template <class V, DType kType, int kTokens, int kBlocks>
UPDRAFT_INLINE void quant_group(const std::byte* header, const std::byte* acts, int64_t act_stride,
                                typename V::F* total) {
  using Format = QuantFormat<V, kType>;
  const std::byte* quants = header + Format::kHeaderBytes;
  // The hardware's own fetching stops at page borders. Where the tile is in the cache already, this
  // costs little.
  V::prefetch(header + kPrefetchBytes, Format::kHeaderBytes);
  SuperScales<V> super{V::zero(), V::zero()};
  if constexpr (Format::kSuper) Format::load_super(header, super);
#pragma GCC unroll 2
  for (int s = 0; s < kBlocks; ++s, quants += Format::kQuantBytes) {
    V::prefetch(quants + kPrefetchBytes, Format::kQuantBytes);
    const BlockScales<V> scales = Format::scales(header, super, s);
    typename V::B x[8];
    Format::unpack(quants, x);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const auto& a = reinterpret_cast<const ActBlock*>(acts + t * act_stride)[s];
      total[t] = Format::accumulate(total[t], x, scales, a);
    }
  }
}

// One tile times kTokens rows.
template <class V, DType kType, int kTokens>
__attribute__((noinline)) void quant_tile(const std::byte* tile, int64_t cols,
                                          const std::byte* acts, int64_t act_stride, float* out,
                                          int64_t out_stride) {
  using Format = QuantFormat<V, kType>;
  constexpr int kGroupBlocks = Format::kGroupBlocks;
  typename V::F total[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) total[t] = V::zero();
  const int64_t groups = cols / kBlockCols / kGroupBlocks;
  for (int64_t g = 0; g < groups; ++g) {
    quant_group<V, kType, kTokens, kGroupBlocks>(tile, acts, act_stride, total);
    tile += Format::kHeaderBytes + kGroupBlocks * Format::kQuantBytes;
    acts += kGroupBlocks * static_cast<int64_t>(sizeof(ActBlock));
  }
  if constexpr (kGroupBlocks == 2) {
    if (cols / kBlockCols % 2 != 0)
      quant_group<V, kType, kTokens, 1>(tile, acts, act_stride, total);
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) V::store(out + t * out_stride, total[t]);
}

template <class V, DType kType>
UPDRAFT_INLINE typename V::F load_weights(const std::byte* at) {
  if constexpr (kType == DType::kF32) return V::load(reinterpret_cast<const float*>(at));
  if constexpr (kType == DType::kF16) return V::load_half(at);
  return V::load_bf16(at);
}

// kTiles tiles of a float format times kTokens rows; several tiles at once when there are few
// tokens, so that the multiply-adds of a cycle do not wait for each other. Sums of 256 columns are
// added up: the error grows with their number.
template <class V, DType kType, int kTokens, int kTiles>
__attribute__((noinline)) void float_tiles(const std::byte* tile, int64_t tile_stride, int64_t cols,
                                           const std::byte* acts, int64_t act_stride, float* out,
                                           int64_t out_stride) {
  constexpr int64_t kColBytes = tile_format(kType).quant_bytes_per_row * V::kLanes;
  typename V::F total[kTokens][kTiles];
  for (int t = 0; t < kTokens; ++t) {
    for (int i = 0; i < kTiles; ++i) total[t][i] = V::zero();
  }
  for (int64_t first = 0; first < cols; first += 256) {
    const int64_t last = first + 256 < cols ? first + 256 : cols;
    typename V::F sum[kTokens][kTiles];
    for (int t = 0; t < kTokens; ++t) {
      for (int i = 0; i < kTiles; ++i) sum[t][i] = V::zero();
    }
    for (int64_t c = first; c < last; ++c) {
#pragma GCC unroll 4
      for (int i = 0; i < kTiles; ++i) {
        const std::byte* at = tile + i * tile_stride + c * kColBytes;
        if constexpr (kTokens <= 2) V::prefetch(at + kPrefetchBytes / 2, 1);
        const typename V::F w = load_weights<V, kType>(at);
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          const float a = reinterpret_cast<const float*>(acts + t * act_stride)[c];
          sum[t][i] = V::fma(w, V::set1(a), sum[t][i]);
        }
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      for (int i = 0; i < kTiles; ++i) total[t][i] = V::add(total[t][i], sum[t][i]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int i = 0; i < kTiles; ++i) V::store(out + t * out_stride + i * V::kLanes, total[t][i]);
  }
}

template <class V, DType kType, int kTokens>
void matmul_tokens(const MatmulTiles& op, int64_t tile, int64_t tile_count, int64_t token) {
  const std::byte* tiles = op.tiles + tile * op.tile_stride_bytes;
  const std::byte* acts = static_cast<const std::byte*>(op.acts) + token * op.act_stride_bytes;
  float* out = op.out + token * op.out_stride + tile * V::kLanes;
  if constexpr (!is_float_format(kType)) {
    (void)tile_count;
    quant_tile<V, kType, kTokens>(tiles, op.cols, acts, op.act_stride_bytes, out, op.out_stride);
  } else if (tile_count == 4) {
    constexpr int kTiles = kTokens <= 2 ? 4 : 1;
    for (int i = 0; i < 4; i += kTiles) {
      float_tiles<V, kType, kTokens, kTiles>(tiles + i * op.tile_stride_bytes, op.tile_stride_bytes,
                                             op.cols, acts, op.act_stride_bytes,
                                             out + i * V::kLanes, op.out_stride);
    }
  } else {
    float_tiles<V, kType, kTokens, 1>(tiles, op.tile_stride_bytes, op.cols, acts,
                                      op.act_stride_bytes, out, op.out_stride);
  }
}

// All tokens over a few tiles: passes of V::kTokens, then what is left in powers of two.
template <class V, DType kType>
void matmul_all_tokens(const MatmulTiles& op, int64_t tile, int64_t tile_count) {
  int64_t token = 0;
  for (; token + V::kTokens <= op.tokens; token += V::kTokens) {
    matmul_tokens<V, kType, V::kTokens>(op, tile, tile_count, token);
  }
  if constexpr (V::kTokens > 4) {
    if (token + 4 <= op.tokens) {
      matmul_tokens<V, kType, 4>(op, tile, tile_count, token);
      token += 4;
    }
  }
  if (token + 2 <= op.tokens) {
    matmul_tokens<V, kType, 2>(op, tile, tile_count, token);
    token += 2;
  }
  if (token < op.tokens) matmul_tokens<V, kType, 1>(op, tile, tile_count, token);
}

template <class V, DType kType>
void matmul(const MatmulTiles& op) {
  constexpr int64_t kTiles = is_float_format(kType) ? 4 : 1;
  int64_t tile = 0;
  for (; tile + kTiles <= op.tile_count; tile += kTiles)
    matmul_all_tokens<V, kType>(op, tile, kTiles);
  for (; tile < op.tile_count; ++tile) matmul_all_tokens<V, kType>(op, tile, 1);
}

}  // namespace updraft
