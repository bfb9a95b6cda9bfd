// Weight tiles times many activation rows, for the quantised formats and any vector type V that has
// V::kPanelTokens. Where matmul_kernel.h unpacks a tile's nibbles for each pass of a few tokens,
// here they are unpacked once for all tokens, into a panel that stays in the first-level cache, and
// each activation that is broadcast meets two tiles.
//
// A panel is kPanelBlocks blocks of kPanelTiles tiles as signed bytes, with everything that a block
// needs beside its bytes: the f32 scales (and minimums), and where the integer dot product starts
// from when the vector type's activations carry a bias: sum w * (a + bias) - bias * sum w.
//
// The integers are exact and the f32 operations are those of matmul_kernel.h in the same order, so
// a row has the same bits from either.
#pragma once

#include <cstdint>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/matmul_kernel.h"
#include "kernels/cpu/row_kernel.h"
#include "kernels/cpu/tile_layout.h"

namespace updraft {

template <class V>
concept HasPanel = requires {
  V::kPanelTokens;
};

inline constexpr int kPanelTiles = 2;
inline constexpr int kPanelBlocks = 16;  // whole superblocks

// What distinguishes the panels of the formats.
enum class PanelKind { kScale, kScaleMin, kHalves };

template <class V, DType kType>
constexpr PanelKind panel_kind() {
  using Format = QuantFormat<V, kType>;
  return Format::kHalves   ? PanelKind::kHalves
         : Format::kHasMin ? PanelKind::kScaleMin
                           : PanelKind::kScale;
}

// Byte offsets inside one block of a panel; a field is one register per tile.
template <class V, PanelKind kKind>
struct PanelLayout {
  static constexpr int64_t kRegister = 4 * V::kLanes;
  static constexpr int64_t kField = kPanelTiles * kRegister;
  static constexpr int kParts = kKind == PanelKind::kHalves ? 2 : 1;  // dot products per block
  static constexpr int64_t kStart = 0;                                // [part][tile] int32 rows
  static constexpr int64_t kScale = kStart + kParts * kField;         // [part][tile] f32 rows
  static constexpr int64_t kMin = kScale + kParts * kField;           // [tile] f32 rows
  static constexpr int64_t kBytes = kMin + (kKind == PanelKind::kScaleMin ? kField : 0);
  static constexpr int64_t kBlock = kBytes + 8 * kField;  // [group of 4 columns][tile]
};

// Blocks [block, block + count) of one tile into its registers of a panel. Meanwhile the blocks
// that the next panel unpacks, `ahead` from `block` on, are fetched: memory works while this panel
// is multiplied.
struct PanelSource {
  const std::byte* tile;
  int64_t block;
};
template <class V, DType kType>
UPDRAFT_INLINE void unpack_panel_tile(const PanelSource& from, const PanelSource& ahead,
                                      int64_t count, int tile_index, std::byte* panel) {
  using Format = QuantFormat<V, kType>;
  constexpr PanelKind kKind = panel_kind<V, kType>();
  using Layout = PanelLayout<V, kKind>;
  constexpr TileFormat kFormat = Format::kFormat;
  static_assert(kPanelBlocks % Format::kGroupBlocks == 0, "a panel begins with a header");
  std::byte* to = panel + tile_index * Layout::kRegister;
  SuperScales<V> super{V::zero(), V::zero()};
  for (int64_t i = 0; i < count; ++i, to += Layout::kBlock) {
    const std::byte* header = from.tile + tile_header_offset(kFormat, V::kLanes, from.block + i);
    const int s = static_cast<int>(i % Format::kGroupBlocks);
    const std::byte* quants = header + Format::kHeaderBytes + s * Format::kQuantBytes;
    const std::byte* later = ahead.tile + tile_quants_offset(kFormat, V::kLanes, ahead.block + i);
    V::prefetch(later, Format::kQuantBytes);
    if (s == 0) V::prefetch(later - Format::kHeaderBytes, Format::kHeaderBytes);
    if constexpr (Format::kSuper) {
      if (s == 0) Format::load_super(header, super);
    }
    const BlockScales<V> scales = Format::scales(header, super, s);
    V::store(reinterpret_cast<float*>(to + Layout::kScale), scales.scale);
    if constexpr (kKind == PanelKind::kHalves) {
      V::store(reinterpret_cast<float*>(to + Layout::kScale + Layout::kField), scales.second);
    }
    if constexpr (kKind == PanelKind::kScaleMin) {
      V::store(reinterpret_cast<float*>(to + Layout::kMin), scales.second);
    }
    typename V::B x[8];
    Format::unpack_signed(quants, x);
    typename V::I sum = V::set1_int(0);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      V::store_bytes(to + Layout::kBytes + g * Layout::kField, x[g]);
      sum = V::dot_panel(sum, V::bias_bytes(), x[g]);
      if (kKind == PanelKind::kHalves && g == 3) {
        V::store_bytes(to + Layout::kStart, V::negate_int(sum));
        sum = V::set1_int(0);
      }
    }
    V::store_bytes(to + Layout::kStart + (Layout::kParts - 1) * Layout::kField, V::negate_int(sum));
  }
}

// Where the results of two tiles go.
struct PanelOut {
  float* rows[kPanelTiles];
  int64_t stride[kPanelTiles];
};

// A panel times one group of kTokens tokens. `first`: the sums begin here; otherwise they are
// continued from what lies in `out`.
template <class V, PanelKind kKind, int kTokens>
__attribute__((noinline)) void panel_group(const std::byte* panel, const std::byte* acts,
                                           int64_t blocks, bool first, const PanelOut& out) {
  using Layout = PanelLayout<V, kKind>;
  constexpr int kGroups = 8 / Layout::kParts;  // of 4 columns per dot product
  const auto floats = [](const std::byte* at) {
    return V::load(reinterpret_cast<const float*>(at));
  };
  typename V::F total[kTokens][kPanelTiles];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int i = 0; i < kPanelTiles; ++i)
      total[t][i] = first ? V::zero() : V::load(out.rows[i] + t * out.stride[i]);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const auto* scales = reinterpret_cast<const float*>(acts);
    const std::byte* words = acts + 8 * kTokens;
    typename V::F both[kTokens][kPanelTiles];
#pragma GCC unroll 2
    for (int part = 0; part < Layout::kParts; ++part) {
      typename V::I dot[kTokens][kPanelTiles];
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
        for (int i = 0; i < kPanelTiles; ++i) {
          dot[t][i] =
              V::load_int(panel + Layout::kStart + part * Layout::kField + i * Layout::kRegister);
        }
      }
#pragma GCC unroll 8
      for (int g = part * kGroups; g < (part + 1) * kGroups; ++g) {
        typename V::B w[kPanelTiles];
#pragma GCC unroll 2
        for (int i = 0; i < kPanelTiles; ++i) {
          w[i] = V::load_bytes(panel + Layout::kBytes + g * Layout::kField + i * Layout::kRegister);
        }
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          const typename V::B a = V::broadcast_word(words + 4 * (g * kTokens + t));
#pragma GCC unroll 2
          for (int i = 0; i < kPanelTiles; ++i) dot[t][i] = V::dot_panel(dot[t][i], a, w[i]);
        }
      }
#pragma GCC unroll 2
      for (int i = 0; i < kPanelTiles; ++i) {
        const typename V::F scale =
            floats(panel + Layout::kScale + part * Layout::kField + i * Layout::kRegister);
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          const typename V::F value = V::to_float(dot[t][i]);
          if constexpr (kKind == PanelKind::kHalves) {
            if (part == 0) {
              both[t][i] = V::mul(value, scale);
            } else {
              total[t][i] =
                  V::fma(V::fma(value, scale, both[t][i]), V::set1(scales[t]), total[t][i]);
            }
          } else {
            total[t][i] = V::fma(value, V::mul(scale, V::set1(scales[t])), total[t][i]);
          }
        }
      }
    }
    if constexpr (kKind == PanelKind::kScaleMin) {
#pragma GCC unroll 2
      for (int i = 0; i < kPanelTiles; ++i) {
        const typename V::F min = floats(panel + Layout::kMin + i * Layout::kRegister);
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t)
          total[t][i] = V::fma(min, V::set1(scales[kTokens + t]), total[t][i]);
      }
    }
    panel += Layout::kBlock;
    acts += kTokens * kPanelBytesPerBlock;
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int i = 0; i < kPanelTiles; ++i) V::store(out.rows[i] + t * out.stride[i], total[t][i]);
  }
}

// The last, short group.
template <class V, PanelKind kKind, int kTokens>
UPDRAFT_INLINE void panel_some(int tokens, const std::byte* panel, const std::byte* acts,
                               int64_t blocks, bool first, const PanelOut& out) {
  if constexpr (kTokens > 0) {
    if (tokens == kTokens) return panel_group<V, kKind, kTokens>(panel, acts, blocks, first, out);
    panel_some<V, kKind, kTokens - 1>(tokens, panel, acts, blocks, first, out);
  }
}

// A panel times all tokens.
template <class V, PanelKind kKind>
__attribute__((noinline)) void panel_tokens(const MatmulPanel& op, const std::byte* panel,
                                            int64_t block_first, int64_t blocks, PanelOut out) {
  constexpr int kTokens = V::kPanelTokens;
  const int64_t token_bytes = op.cols / kBlockCols * kPanelBytesPerBlock;
  const bool first = block_first == 0;
  for (int64_t token = 0; token < op.tokens; token += kTokens) {
    const int64_t left = op.tokens - token;
    const int count = left < kTokens ? static_cast<int>(left) : kTokens;
    const std::byte* acts =
        op.acts + token * token_bytes + block_first * count * kPanelBytesPerBlock;
    if (count == kTokens) {
      panel_group<V, kKind, kTokens>(panel, acts, blocks, first, out);
    } else {
      panel_some<V, kKind, kTokens - 1>(count, panel, acts, blocks, first, out);
    }
    for (int i = 0; i < kPanelTiles; ++i) out.rows[i] += kTokens * out.stride[i];
  }
}

template <class V, DType kType>
void matmul_panel(const MatmulPanel& op) {
  constexpr PanelKind kKind = panel_kind<V, kType>();
  using Layout = PanelLayout<V, kKind>;
  alignas(64) std::byte panel[kPanelBlocks * Layout::kBlock];
  const int64_t blocks = op.cols / kBlockCols;
  for (int64_t tile = 0; tile < op.tile_count; tile += kPanelTiles) {
    // A tile without a second one is multiplied twice; the second result goes nowhere.
    float nowhere[V::kLanes];
    const bool pair = tile + 1 < op.tile_count;
    const std::byte* tiles[kPanelTiles] = {
        op.tiles + tile * op.tile_stride_bytes,
        op.tiles + (tile + (pair ? 1 : 0)) * op.tile_stride_bytes};
    float* rows = op.out + tile * V::kLanes;
    for (int64_t b = 0; b < blocks; b += kPanelBlocks) {
      const int64_t count = blocks - b < kPanelBlocks ? blocks - b : kPanelBlocks;
      const bool last = b + kPanelBlocks >= blocks;
      for (int i = 0; i < kPanelTiles; ++i) {
        const PanelSource ahead{tiles[i] + (last ? kPanelTiles * op.tile_stride_bytes : 0),
                                last ? 0 : b + kPanelBlocks};
        unpack_panel_tile<V, kType>({tiles[i], b}, ahead, count, i, panel);
      }
      const PanelOut out{{rows, pair ? rows + V::kLanes : nowhere},
                         {op.out_stride, pair ? op.out_stride : 0}};
      panel_tokens<V, kKind>(op, panel, b, count, out);
    }
  }
}

// A group of up to V::kPanelTokens rows into the panel layout.
template <class V>
void quantize_panel(const float* x, int64_t x_stride, int tokens, int64_t cols, std::byte* out) {
  const auto bias = static_cast<uint8_t>(V::kActBias);
  for (int64_t b = 0; b < cols / kBlockCols; ++b, out += tokens * kPanelBytesPerBlock) {
    for (int t = 0; t < tokens; ++t) {
      alignas(64) int8_t q[kBlockCols];
      const QuantisedBlock block = quantize_block<V>(x + t * x_stride + b * kBlockCols, q);
      const float sum = block.scale * static_cast<float>(block.sum_low + block.sum_high);
      __builtin_memcpy(out + 4 * t, &block.scale, 4);
      __builtin_memcpy(out + 4 * (tokens + t), &sum, 4);
      for (int g = 0; g < 8; ++g) {
        uint32_t word;
        __builtin_memcpy(&word, q + 4 * g, 4);
        word ^= bias * 0x01010101U;  // a bias of 128 turns the sign bit
        __builtin_memcpy(out + 8 * tokens + 4 * (g * tokens + t), &word, 4);
      }
    }
  }
}

}  // namespace updraft
