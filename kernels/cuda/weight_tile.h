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
  // F8_E4M3 and I8: one scale a row. For host code.
  const float* row_scales() const { return reinterpret_cast<const float*>(scales); }
};

inline constexpr int kChunk = 32;  // columns of one 16-byte load of activations

// What one lane holds of one tile until it is multiplied.
template <DType kType>
struct TileRegisters {
  static constexpr PackedFormat kFormat = packed_format(kType);
  static constexpr int kPieces = kFormat.piece_count;
  static constexpr int kChunks = kFormat.tile_cols / kChunk;
  static constexpr bool kSuper = kFormat.super_bytes != 0;
  // A chunk's weights are scale * q - min.
  static constexpr bool kHasMin =
      kType == DType::kQ4_K || kType == DType::kQ5_K || kType == DType::kQ5_1;
  static constexpr bool kScaled = kFormat.group_cols != 0;  // per chunk
  static constexpr bool kTwoScaledChunks = kScaled && kChunks == 2 && kPieces == 1;
  static constexpr int kHighWords = kFormat.high_bits;
  static constexpr int kScaleWords = !kScaled                   ? 0
                                     : kFormat.scale_bytes == 4 ? 2 * kChunks
                                                                : kChunks;
  static constexpr int kSuperWords = kFormat.super_bytes / 2;
  Vec16 quants[kPieces];
  uint32_t high[kHighWords == 0 ? 1 : kHighWords];
  // Of a chunk: 16 bits of row g, 16 bits of row g + 8; Q5_1: a word {d, m} of each row; Q6_K: 8
  // bits each of both rows, step 0 before step 1.
  uint32_t scales[kScaleWords == 0 ? 1 : kScaleWords];
  uint32_t supers[kSuperWords == 0 ? 1 : kSuperWords];  // {d, dmin} of row g, of row g + 8; Q6_K: d
                                                        // of both in one
};

// Where the parts of one tile begin.
struct TilePlace {
  const std::byte* quants;
  const std::byte* high;
  const std::byte* scales;
  const std::byte* supers;
};

template <DType kType>
UPDRAFT_DEVICE TilePlace place_of(const PackedWeight& in, int band, int tile) {
  constexpr PackedFormat kFormat = TileRegisters<kType>::kFormat;
  constexpr int kGroups = kFormat.group_cols == 0 ? 0 : kFormat.tile_cols / kFormat.group_cols;
  const int64_t at = static_cast<int64_t>(band) * in.tiles + tile;
  TilePlace out{};
  out.quants = in.quants + at * (kFormat.piece_count * kPieceBytes);
  out.high = in.high + at * (kTileRows * kFormat.tile_cols * kFormat.high_bits / 8);
  out.scales = in.scales + at * (kGroups * kTileRows * kFormat.scale_bytes);
  out.supers = in.supers + (static_cast<int64_t>(band) * (in.tiles / 4) + tile / 4) *
                               (kTileRows * kFormat.super_bytes);
  return out;
}

// What reads a tile: from global memory, each byte once; or copies of it in shared memory.
struct ReadGlobal {
  template <typename T>
  static UPDRAFT_DEVICE T once(const T* at) {
    return load_once(at);
  }
  template <typename T>
  static UPDRAFT_DEVICE T small(const T* at) {
    return load(at);
  }
};
struct ReadShared {
  template <typename T>
  static UPDRAFT_DEVICE T once(const T* at) {
    return *at;
  }
  template <typename T>
  static UPDRAFT_DEVICE T small(const T* at) {
    return *at;
  }
};

template <DType kType, typename Read>
UPDRAFT_DEVICE TileRegisters<kType> read_tile(const TilePlace& in, int lane) {
  using Registers = TileRegisters<kType>;
  Registers out;
  const auto* pieces = reinterpret_cast<const Vec16*>(in.quants);
  UPDRAFT_UNROLL
  for (int p = 0; p < Registers::kPieces; ++p) out.quants[p] = Read::once(pieces + p * 32 + lane);
  if constexpr (Registers::kHighWords == 2) {
    const Vec8 both = Read::once(reinterpret_cast<const Vec8*>(in.high) + lane);
    out.high[0] = both.word[0];
    out.high[1] = both.word[1];
  } else if constexpr (Registers::kHighWords == 1) {
    out.high[0] = Read::small(reinterpret_cast<const uint32_t*>(in.high) + lane);
  }
  const int g = lane / 4;
  UPDRAFT_UNROLL
  for (int c = 0; c < (Registers::kScaled ? Registers::kChunks : 0); ++c) {
    if constexpr (kType == DType::kQ6_K) {
      const auto* bytes = reinterpret_cast<const uint8_t*>(in.scales) + c * 2 * kTileRows + g;
      out.scales[c] = static_cast<uint32_t>(Read::small(bytes)) |
                      static_cast<uint32_t>(Read::small(bytes + 8)) << 8 |
                      static_cast<uint32_t>(Read::small(bytes + 16)) << 16 |
                      static_cast<uint32_t>(Read::small(bytes + 24)) << 24;
    } else if constexpr (Registers::kFormat.scale_bytes == 4) {
      const auto* pairs = reinterpret_cast<const uint32_t*>(in.scales) + c * kTileRows + g;
      out.scales[2 * c] = Read::small(pairs);
      out.scales[2 * c + 1] = Read::small(pairs + 8);
    } else {
      const auto* both = reinterpret_cast<const uint16_t*>(in.scales) + c * kTileRows + g;
      out.scales[c] = static_cast<uint32_t>(Read::small(both)) |
                      static_cast<uint32_t>(Read::small(both + 8)) << 16;
    }
  }
  if constexpr (Registers::kSuperWords == 2) {
    const auto* pairs = reinterpret_cast<const uint32_t*>(in.supers) + g;
    out.supers[0] = Read::small(pairs);
    out.supers[1] = Read::small(pairs + 8);
  } else if constexpr (Registers::kSuperWords == 1) {
    const auto* halves = reinterpret_cast<const uint16_t*>(in.supers) + g;
    out.supers[0] = static_cast<uint32_t>(Read::small(halves)) |
                    static_cast<uint32_t>(Read::small(halves + 8)) << 16;
  }
  return out;
}

template <DType kType>
UPDRAFT_DEVICE TileRegisters<kType> fetch_tile(const PackedWeight& in, int band, int tile,
                                               int lane) {
  return read_tile<kType, ReadGlobal>(place_of<kType>(in, band, tile), lane);
}

// Registers a0..a3 of one step of a tile: bfloat16 pairs of the quants, their offset removed where
// the format has one. Quants become bfloat16 exactly: 0x4300 | q is 128 + q. F16: its nearest
// bfloat16; make_remainder() has the rest. I8: there are no steps; the words are registers.
template <DType kType>
UPDRAFT_DEVICE void make_fragment(const TileRegisters<kType>& tile, int step, uint32_t (&a)[4]) {
  if constexpr (kType == DType::kBF16) {
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) a[j] = tile.quants[step].word[j];
  } else if constexpr (kType == DType::kF16) {
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) {
      const uint32_t pair = tile.quants[step].word[j];
      a[j] = pack_bf16(low_half(pair), high_half(pair));
    }
  } else if constexpr (kType == DType::kF8_E4M3) {
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) {
      // With e4m3's exponent in the place of bfloat16's a value is 2^-120 of what it was, subnormal
      // ones too. NaN, which no packed row of finite weights has, is taken for 480.
      const uint32_t q = tile.quants[0].word[2 * step + j / 2] >> (8 * (j % 2));
      a[j] = multiply_bf16_pairs((q & 0x007F007FU) << 4 | (q & 0x00800080U) << 8, 0x7B807B80U);
    }
  } else if constexpr (kType == DType::kQ8_0) {
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) {
      const uint32_t q = tile.quants[0].word[2 * step + j / 2] >> (8 * (j % 2));
      // Seven bits, less 128, or less 256 when the sign bit is set.
      a[j] = add_bf16_pairs((q & 0x007F007FU) | 0x43004300U, (q & 0x00800080U) | 0xC300C300U);
    }
  } else {
    constexpr uint32_t kOffset = kType == DType::kQ4_0   ? 0xC308C308U   // -136
                                 : kType == DType::kQ5_0 ? 0xC310C310U   // -144
                                 : kType == DType::kQ6_K ? 0xC320C320U   // -160
                                                         : 0xC300C300U;  // -128
    const uint32_t low = tile.quants[0].word[step];
    uint32_t high = 0;  // of either column, the bits of all four registers
    if constexpr (TileRegisters<kType>::kHighWords == 2) {
      const uint32_t bits = tile.high[step / 2] >> (16 * (step % 2)) & 0xFFFFU;
      high = bits | bits << 8;
    } else if constexpr (TileRegisters<kType>::kHighWords == 1) {
      const uint32_t bits = tile.high[0] >> (8 * step) & 0xFFU;
      high = bits | bits << 12;
    }
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) {
      uint32_t q = low >> (4 * j) & 0x000F000FU;
      if constexpr (TileRegisters<kType>::kHighWords == 2)
        q |= (high >> (2 * j) & 0x00030003U) << 4;
      if constexpr (TileRegisters<kType>::kHighWords == 1) q |= (high >> j & 0x00010001U) << 4;
      a[j] = add_bf16_pairs(q | 0x43004300U, kOffset);
    }
  }
}

// F16: the three bits that make_fragment() leaves, exactly.
UPDRAFT_DEVICE void make_remainder(const TileRegisters<DType::kF16>& tile, int step,
                                   const uint32_t (&a)[4], uint32_t (&rest)[4]) {
  UPDRAFT_UNROLL
  for (int j = 0; j < 4; ++j) {
    const uint32_t pair = tile.quants[step].word[j];
    rest[j] = pack_bf16(low_half(pair) - low_bf16(a[j]), high_half(pair) - high_bf16(a[j]));
  }
}

// The tile's second chunk becomes its first, for formats of two chunks with a scale each.
template <DType kType>
UPDRAFT_DEVICE void drop_chunk(TileRegisters<kType>& tile) {
  using Registers = TileRegisters<kType>;
  static_assert(Registers::kTwoScaledChunks);
  tile.quants[0].word[0] = tile.quants[0].word[2];
  tile.quants[0].word[1] = tile.quants[0].word[3];
  if constexpr (Registers::kHighWords == 2) tile.high[0] = tile.high[1];
  if constexpr (Registers::kHighWords == 1) tile.high[0] >>= 16;
  constexpr int kWords = Registers::kScaleWords / 2;
  UPDRAFT_UNROLL
  for (int i = 0; i < kWords; ++i) tile.scales[i] = tile.scales[kWords + i];
}

// What the sums of a chunk are multiplied by. [step][row g, row g + 8]: formats with one scale a
// chunk use step 0.
struct ChunkScales {
  float scale[2][2];
  float min[2];  // times the sum of the activations, to be subtracted
};

template <DType kType>
UPDRAFT_DEVICE ChunkScales chunk_scales(const TileRegisters<kType>& tile, int chunk) {
  ChunkScales out{};
  if constexpr (kType == DType::kQ4_0 || kType == DType::kQ5_0 || kType == DType::kQ8_0) {
    out.scale[0][0] = low_half(tile.scales[chunk]);
    out.scale[0][1] = high_half(tile.scales[chunk]);
  } else if constexpr (kType == DType::kQ5_1) {
    UPDRAFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      out.scale[0][i] = low_half(tile.scales[2 * chunk + i]);
      out.min[i] = -high_half(tile.scales[2 * chunk + i]);
    }
  } else if constexpr (kType == DType::kQ4_K || kType == DType::kQ5_K) {
    UPDRAFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t both = tile.scales[chunk] >> (16 * i);
      out.scale[0][i] = low_half(tile.supers[i]) * static_cast<float>(both & 0xFFU);
      out.min[i] = high_half(tile.supers[i]) * static_cast<float>(both >> 8 & 0xFFU);
    }
  } else if constexpr (kType == DType::kQ6_K) {
    UPDRAFT_UNROLL
    for (int s = 0; s < 2; ++s) {
      UPDRAFT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const auto factor = static_cast<int8_t>(tile.scales[chunk] >> (16 * s + 8 * i) & 0xFFU);
        const float d = i == 0 ? low_half(tile.supers[0]) : high_half(tile.supers[0]);
        out.scale[s][i] = d * static_cast<float>(factor);
      }
    }
  }
  return out;
}

// Two weights of a register as bfloat16.
UPDRAFT_DEVICE uint32_t scaled_pair(uint32_t pair, float scale, float min) {
  return pack_bf16(fma(low_bf16(pair), scale, -min), fma(high_bf16(pair), scale, -min));
}

// make_fragment() of step `step` (0, 1) of a chunk, with its scales: the weights themselves,
// rounded to bfloat16 once. A scale of the row is not applied.
template <DType kType>
UPDRAFT_DEVICE void make_scaled_fragment(const TileRegisters<kType>& tile, int chunk, int step,
                                         const ChunkScales& by, uint32_t (&a)[4]) {
  make_fragment(tile, 2 * chunk + step, a);
  if constexpr (TileRegisters<kType>::kScaled) {
    const int group = kType == DType::kQ6_K ? step : 0;
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) {
      a[j] = scaled_pair(a[j], by.scale[group][j % 2], by.min[j % 2]);
    }
  }
}

}  // namespace updraft::cuda
