// A lane's part of a tile of packed weights (weight_layout.h), from memory to mma fragments. For
// kernels.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/weight_layout.h"

namespace updraft::cuda {

// A packed matrix as kernels take it.
struct PackedWeight {
  const std::byte* quants;
  const std::byte* high;
  const std::byte* scales;
  const std::byte* supers;
  int32_t tiles;  // across the columns

  static PackedWeight of(const PackedLayout& layout, const std::byte* packed) {
    return {packed, packed + layout.high_offset, packed + layout.scales_offset,
            packed + layout.supers_offset,
            static_cast<int32_t>(layout.cols_padded / tile_cols(layout.type))};
  }
};

inline constexpr int kChunk = 32;  // columns of one 16-byte load of activations

// What one lane holds of one tile until it is multiplied.
template <DType kType>
struct TileRegisters {
  static constexpr int kPieces = kType == DType::kBF16 ? 2 : 1;
  static constexpr int kChunks = tile_cols(kType) / kChunk;
  static constexpr bool kSuper = kType == DType::kQ4_K || kType == DType::kQ6_K;
  static constexpr int kScaleWords = kType == DType::kBF16 ? 0 : kChunks;
  static constexpr int kSuperWords = kType == DType::kQ4_K ? 2 : kType == DType::kQ6_K ? 1 : 0;
  Vec16 quants[kPieces];
  Vec8 high;  // Q6_K
  // Of a chunk: 16 bits of row g, 16 bits of row g + 8; Q6_K: 8 bits each of both rows, step 0
  // before step 1.
  uint32_t scales[kScaleWords == 0 ? 1 : kScaleWords];
  uint32_t supers[kSuperWords == 0 ? 1 : kSuperWords];  // Q4_K: of row g, of row g + 8; Q6_K: both
                                                        // in one
};

template <DType kType>
UPDRAFT_DEVICE TileRegisters<kType> fetch_tile(const PackedWeight& in, int band, int tile,
                                               int lane) {
  using Registers = TileRegisters<kType>;
  Registers out;
  const int64_t at = static_cast<int64_t>(band) * in.tiles + tile;
  const auto* pieces = reinterpret_cast<const Vec16*>(in.quants) + at * Registers::kPieces * 32;
  UPDRAFT_UNROLL
  for (int p = 0; p < Registers::kPieces; ++p) out.quants[p] = load_once(pieces + p * 32 + lane);
  if constexpr (kType == DType::kQ6_K) {
    out.high = load_once(reinterpret_cast<const Vec8*>(in.high) + at * 32 + lane);
  }
  const int g = lane / 4;
  UPDRAFT_UNROLL
  for (int c = 0; c < Registers::kScaleWords; ++c) {
    const int64_t index = at * Registers::kScaleWords + c;
    if constexpr (kType == DType::kQ6_K) {
      const auto* bytes = reinterpret_cast<const uint8_t*>(in.scales) + index * 2 * kTileRows + g;
      out.scales[c] = static_cast<uint32_t>(load(bytes)) |
                      static_cast<uint32_t>(load(bytes + 8)) << 8 |
                      static_cast<uint32_t>(load(bytes + 16)) << 16 |
                      static_cast<uint32_t>(load(bytes + 24)) << 24;
    } else {
      const auto* both = reinterpret_cast<const uint16_t*>(in.scales) + index * kTileRows + g;
      out.scales[c] = static_cast<uint32_t>(load(both)) | static_cast<uint32_t>(load(both + 8))
                                                              << 16;
    }
  }
  if constexpr (Registers::kSuper) {
    const int64_t super = (static_cast<int64_t>(band) * (in.tiles / 4) + tile / 4) * kTileRows + g;
    if constexpr (kType == DType::kQ4_K) {
      const auto* pairs = reinterpret_cast<const uint32_t*>(in.supers) + super;
      out.supers[0] = load(pairs);
      out.supers[1] = load(pairs + 8);
    } else {
      const auto* halves = reinterpret_cast<const uint16_t*>(in.supers) + super;
      out.supers[0] = static_cast<uint32_t>(load(halves)) | static_cast<uint32_t>(load(halves + 8))
                                                                << 16;
    }
  }
  return out;
}

// Registers a0..a3 of one step of a tile: bfloat16 pairs of the quants, their offset removed (Q4_K
// has none).
template <DType kType>
UPDRAFT_DEVICE void make_fragment(const TileRegisters<kType>& tile, int step, uint32_t (&a)[4]) {
  if constexpr (kType == DType::kBF16) {
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) a[j] = tile.quants[step].word[j];
  } else if constexpr (kType == DType::kQ8_0) {
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) {
      const uint32_t q = tile.quants[0].word[2 * step + j / 2] >> (8 * (j % 2));
      // Seven bits, less 128, or less 256 when the sign bit is set.
      a[j] = add_bf16_pairs((q & 0x007F007FU) | 0x43004300U, (q & 0x00800080U) | 0xC300C300U);
    }
  } else {
    const uint32_t low = tile.quants[0].word[step];
    uint32_t high = 0;
    uint32_t offset = kType == DType::kQ4_0 ? 0xC308C308U : 0xC300C300U;  // -136, -128
    if constexpr (kType == DType::kQ6_K) {
      offset = 0xC320C320U;  // -160
      const uint32_t bits = tile.high.word[step / 2] >> (16 * (step % 2)) & 0xFFFFU;
      high = bits | bits << 8;
    }
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) {
      uint32_t q = low >> (4 * j) & 0x000F000FU;
      if constexpr (kType == DType::kQ6_K) q |= (high >> (2 * j) & 0x00030003U) << 4;
      a[j] = add_bf16_pairs(q | 0x43004300U, offset);
    }
  }
}

UPDRAFT_DEVICE float half_bits(uint32_t bits) {
  return to_float(Half{static_cast<uint16_t>(bits & 0xFFFFU)});
}

// What the sums of a chunk are multiplied by. [step][row g, row g + 8]: formats with one scale a
// chunk use step 0.
struct ChunkScales {
  float scale[2][2];
  float min[2];  // Q4_K: times the sum of the activations, to be subtracted
};

template <DType kType>
UPDRAFT_DEVICE ChunkScales chunk_scales(const TileRegisters<kType>& tile, int chunk) {
  ChunkScales out{};
  if constexpr (kType == DType::kQ4_0 || kType == DType::kQ8_0) {
    out.scale[0][0] = half_bits(tile.scales[chunk]);
    out.scale[0][1] = half_bits(tile.scales[chunk] >> 16);
  } else if constexpr (kType == DType::kQ4_K) {
    UPDRAFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t both = tile.scales[chunk] >> (16 * i);
      out.scale[0][i] = half_bits(tile.supers[i]) * static_cast<float>(both & 0xFFU);
      out.min[i] = half_bits(tile.supers[i] >> 16) * static_cast<float>(both >> 8 & 0xFFU);
    }
  } else if constexpr (kType == DType::kQ6_K) {
    UPDRAFT_UNROLL
    for (int s = 0; s < 2; ++s) {
      UPDRAFT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const auto factor = static_cast<int8_t>(tile.scales[chunk] >> (16 * s + 8 * i) & 0xFFU);
        out.scale[s][i] = half_bits(tile.supers[0] >> (16 * i)) * static_cast<float>(factor);
      }
    }
  }
  return out;
}

}  // namespace updraft::cuda
