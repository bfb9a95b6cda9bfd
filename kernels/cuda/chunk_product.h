// The arithmetic that all products of packed weights share, instruction for instruction: so a
// token's bits are the same in each of them.
//
// The columns are cut into 8 parts for each split. A part is added up in the order of its chunks,
// by the tensor cores within a chunk; its scale multiplies the fp32 sum of a chunk. Then the 8
// parts of a split are added, from the first to the last, and then the splits.
#pragma once

#include "kernels/cuda/weight_tile.h"

namespace updraft::cuda {

inline constexpr int kPartsPerSplit = 8;
inline constexpr int kTileTokens = 8;  // of one mma

// Tiles of one part: whole superblocks.
template <DType kType>
UPDRAFT_DEVICE int tiles_per_part(int tiles, int splits) {
  const int parts = kPartsPerSplit * splits;
  const int unit = TileRegisters<kType>::kSuper ? 4 : 1;
  return ((tiles + parts - 1) / parts + unit - 1) / unit * unit;
}

template <DType kType>
struct Sum {
  using Type = float;
};
template <>
struct Sum<DType::kI8> {
  using Type = int32_t;
};

// One chunk of one band, ready to be multiplied with any number of tokens.
template <DType kType>
struct ChunkOperand {
  uint32_t a[2][4];
  uint32_t rest[kType == DType::kF16 ? 2 : 1][4];
  ChunkScales by;
};

template <DType kType>
UPDRAFT_DEVICE ChunkOperand<kType> make_operand(const TileRegisters<kType>& tile, int chunk) {
  ChunkOperand<kType> out;
  if constexpr (kType == DType::kI8) {
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) out.a[0][j] = tile.quants[0].word[j];
  } else {
    UPDRAFT_UNROLL
    for (int s = 0; s < 2; ++s) {
      make_fragment(tile, 2 * chunk + s, out.a[s]);
      if constexpr (kType == DType::kF16) {
        make_remainder(tile, 2 * chunk + s, out.a[s], out.rest[s]);
      }
    }
    out.by = chunk_scales(tile, chunk);
  }
  return out;
}

// The sums of the activations of a chunk, of the tokens 2 * t and 2 * t + 1: ones times b.
UPDRAFT_DEVICE void add_columns(const Vec16& b, float (&sums)[2]) {
  constexpr uint32_t kOnes = 0x3F803F80U;
  const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
  float all[4] = {0.0F, 0.0F, 0.0F, 0.0F};
  mma_bf16(all, ones, b.word[0], b.word[1]);
  mma_bf16(all, ones, b.word[2], b.word[3]);
  sums[0] = all[0];
  sums[1] = all[1];
}

UPDRAFT_DEVICE void add_scaled(float (&sums)[4], const float (&group)[4], float low, float high) {
  sums[0] = fma(group[0], low, sums[0]);
  sums[1] = fma(group[1], low, sums[1]);
  sums[2] = fma(group[2], high, sums[2]);
  sums[3] = fma(group[3], high, sums[3]);
}

// Adds one chunk of one band times 8 tokens. b: words 2 * step and + 1 are the registers of a step;
// I8: words 0 and 1. column_sums: add_columns() of b, for formats with minima.
template <DType kType>
UPDRAFT_DEVICE void multiply_chunk(const ChunkOperand<kType>& w, const Vec16& b,
                                   const float (&column_sums)[2],
                                   typename Sum<kType>::Type (&sums)[4]) {
  if constexpr (kType == DType::kI8) {
    mma_s8(sums, w.a[0], b.word[0], b.word[1]);
  } else if constexpr (!TileRegisters<kType>::kScaled) {
    mma_bf16(sums, w.a[0], b.word[0], b.word[1]);
    if constexpr (kType == DType::kF16) mma_bf16(sums, w.rest[0], b.word[0], b.word[1]);
    mma_bf16(sums, w.a[1], b.word[2], b.word[3]);
    if constexpr (kType == DType::kF16) mma_bf16(sums, w.rest[1], b.word[2], b.word[3]);
  } else if constexpr (kType == DType::kQ6_K) {
    UPDRAFT_UNROLL
    for (int s = 0; s < 2; ++s) {
      float group[4] = {0.0F, 0.0F, 0.0F, 0.0F};
      mma_bf16(group, w.a[s], b.word[2 * s], b.word[2 * s + 1]);
      add_scaled(sums, group, w.by.scale[s][0], w.by.scale[s][1]);
    }
  } else {
    float group[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    mma_bf16(group, w.a[0], b.word[0], b.word[1]);
    mma_bf16(group, w.a[1], b.word[2], b.word[3]);
    add_scaled(sums, group, w.by.scale[0][0], w.by.scale[0][1]);
    if constexpr (TileRegisters<kType>::kHasMin) {
      sums[0] = fma(column_sums[0], -w.by.min[0], sums[0]);
      sums[1] = fma(column_sums[1], -w.by.min[0], sums[1]);
      sums[2] = fma(column_sums[0], -w.by.min[1], sums[2]);
      sums[3] = fma(column_sums[1], -w.by.min[1], sums[3]);
    }
  }
}

}  // namespace updraft::cuda
