// Packing: two rows that share words of the layout, r and r + 8 of a band, 32 columns at a time, as
// whole words. Load-time code, which is to keep up with a disk.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/check.h"
#include "kernels/cuda/weight_band.h"
#include "kernels/quant/block_layout.h"
#include "kernels/quant/quant.h"

namespace updraft::cuda {
namespace {

constexpr float kLargestF8 = 448.0F;
constexpr float kLargestI8 = 127.0F;
constexpr int kColumns = 32;  // packed at a time: a chunk
constexpr uint64_t kEachByte = 0x0101010101010101ULL;

template <typename T>
void put(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

bool is_float(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

// Columns 8 t .. 8 t + 7 of a chunk in word[t], a byte each: the first lowest.
using Quants = std::array<uint64_t, 4>;

// The quants of sub-block `index` of a file's block, unsigned; of Q8_0 its bytes.
template <DType kType>
Quants quants_of(const std::byte* block, int index) {
  Quants out{};
  const auto nibbles = [&](const std::byte* at, int shift) {
    for (int t = 0; t < 4; ++t)
      out[static_cast<size_t>(t)] = load_le<uint64_t>(at + 8 * t) >> shift & 15 * kEachByte;
  };
  // Bits that lie above the nibbles, `bits` a column.
  const auto high = [&](const std::byte* at, int shift, int bits) {
    for (int t = 0; t < 4; ++t) {
      const uint64_t top = load_le<uint64_t>(at + 8 * t) >> shift;
      out[static_cast<size_t>(t)] |= (top & ((1U << bits) - 1) * kEachByte) << 4;
    }
  };
  switch (kType) {
    case DType::kQ8_0:
      for (int t = 0; t < 4; ++t)
        out[static_cast<size_t>(t)] = load_le<uint64_t>(block + kQ8_0Quants + 8 * t);
      return out;
    case DType::kQ4_K:
      nibbles(block + kQ4KQuants + 32 * (index / 2), 4 * (index % 2));
      return out;
    case DType::kQ5_K:
      nibbles(block + kQ5KQuants + 32 * (index / 2), 4 * (index % 2));
      high(block + kQ5KHigh, index, 1);
      return out;
    case DType::kQ6_K:
      nibbles(block + 64 * (index / 4) + 32 * (index % 2), 4 * (index % 4 / 2));
      high(block + kQ6KHigh + 32 * (index / 4), 2 * (index % 4), 2);
      return out;
    default:
      break;
  }
  // Byte i has the columns i and i + 16.
  const bool five = kType == DType::kQ5_0 || kType == DType::kQ5_1;
  const std::byte* low = block + (kType == DType::kQ4_0   ? kQ4_0Quants
                                  : kType == DType::kQ4_1 ? kQ4_1Quants
                                  : kType == DType::kQ5_0 ? kQ5_0Quants
                                                          : kQ5_1Quants);
  const uint32_t fifth =
      five ? load_le<uint32_t>(block + (kType == DType::kQ5_0 ? kQ5_0High : kQ5_1High)) : 0;
  for (int t = 0; t < 4; ++t) {
    const uint64_t both = load_le<uint64_t>(low + 8 * (t % 2)) >> (4 * (t / 2));
    // Bit i of eight to byte i: alone in a byte, then carried to its top.
    const uint64_t alone = (fifth >> (8 * t) & 0xFFU) * kEachByte & 0x8040201008040201ULL;
    const uint64_t bits = (alone + 0x7F * kEachByte) >> 7 & kEachByte;
    out[static_cast<size_t>(t)] = (both & 15 * kEachByte) | bits << 4;
  }
  return out;
}

// Of Q6_K a lane has the columns 4 t .. and 16 + 4 t ..: four of either half of a chunk.
Quants halves_of(const Quants& in) {
  Quants out{};
  for (size_t t = 0; t < 4; ++t) {
    const uint64_t low = in[t / 2] >> (32 * (t % 2)) & 0xFFFFFFFFU;
    const uint64_t high = in[2 + t / 2] >> (32 * (t % 2));
    out[t] = low | high << 32;
  }
  return out;
}

// Of each four columns the second and the third change places: the order of mma's registers.
uint64_t in_register_order(uint64_t eight) {
  return (eight & 0xFF0000FFFF0000FFULL) | (eight & 0x0000FF000000FF00ULL) << 8 |
         (eight & 0x00FF000000FF0000ULL) >> 8;
}

// Four bytes of a and four of b, in turns.
uint64_t interleaved(uint32_t a, uint32_t b) {
  const auto spread = [](uint64_t x) {
    x = (x | x << 16) & 0x0000FFFF0000FFFFULL;
    return (x | x << 8) & 0x00FF00FF00FF00FFULL;
  };
  return spread(a) | spread(b) << 8;
}

// One or two bits of each of eight columns of two rows, in register order, to the 16 or 32 bits of
// both steps: within a step column after column, of each the first row's, then the second's.
template <int kBits>
uint32_t gathered(uint64_t first, uint64_t second) {
  uint64_t x = first | second << kBits;  // 2 * kBits in each byte
  if constexpr (kBits == 1) {
    x = (x | x >> 6) & 0x000F000F000F000FULL;
    x = (x | x >> 12) & 0x000000FF000000FFULL;
    return static_cast<uint32_t>(x | x >> 24);
  } else {
    x = (x | x >> 4) & 0x00FF00FF00FF00FFULL;
    x = (x | x >> 8) & 0x0000FFFF0000FFFFULL;
    return static_cast<uint32_t>(x | x >> 16);
  }
}

// Quants of rows `row` and row + 8 to their lanes.
template <DType kType>
void place_quants(const Band& band, int row, int64_t column, const Quants& a, const Quants& b) {
  constexpr PackedFormat kFormat = packed_format(kType);
  std::byte* tile = band.tile(column) + 64 * row;
  if constexpr (kType == DType::kQ8_0) {
    for (size_t t = 0; t < 4; ++t) {
      for (int step = 0; step < 2; ++step) {
        put(tile + 16 * t + 8 * static_cast<size_t>(step),
            interleaved(static_cast<uint32_t>(a[t] >> 32 * step),
                        static_cast<uint32_t>(b[t] >> 32 * step)));
      }
    }
    return;
  }
  const int64_t chunk = column / kColumns % (kFormat.tile_cols / kColumns);
  std::byte* high = band.high_tile(column) + kFormat.high_bits * (16 * row + 2 * chunk);
  for (size_t t = 0; t < 4; ++t) {
    const uint64_t first = in_register_order(a[t]);
    const uint64_t second = in_register_order(b[t]);
    put(tile + 16 * t + 8 * chunk, (first & 15 * kEachByte) | (second & 15 * kEachByte) << 4);
    if constexpr (kFormat.high_bits == 1) {
      put(high + 4 * t,
          static_cast<uint16_t>(gathered<1>(first >> 4 & kEachByte, second >> 4 & kEachByte)));
    } else if constexpr (kFormat.high_bits == 2) {
      put(high + 8 * t, gathered<2>(first >> 4 & 3 * kEachByte, second >> 4 & 3 * kEachByte));
    }
  }
}

// 32 columns of two encoded rows of a float format, or of bytes with a scale of the row.
void place_values(const Band& band, int row, int64_t column, const std::byte* a,
                  const std::byte* b) {
  std::byte* tile = band.tile(column);
  for (int t = 0; t < 4; ++t) {
    std::byte* lane = tile + 16 * (4 * row + t);
    for (int step = 0; step < 2; ++step) {
      const int first = 8 * t + 4 * step;  // four columns from here
      if (!band.format.row_scale) {
        std::byte* at = lane + kPieceBytes * step;
        std::memcpy(at, a + 2 * first, 4);
        std::memcpy(at + 4, b + 2 * first, 4);
        std::memcpy(at + 8, a + 2 * first + 4, 4);
        std::memcpy(at + 12, b + 2 * first + 4, 4);
      } else if (band.type == DType::kI8) {
        std::memcpy(lane + 8 * step, a + first, 4);
        std::memcpy(lane + 8 * step + 4, b + first, 4);
      } else {
        put(lane + 8 * step,
            interleaved(load_le<uint32_t>(a + first), load_le<uint32_t>(b + first)));
      }
    }
  }
}

template <DType kType>
void pack_scales(const Band& band, int row, int64_t column, const std::byte* block) {
  switch (kType) {
    case DType::kQ4_1:
    case DType::kQ5_1:
      std::memcpy(band.scale(row, column), block, 4);
      return;
    case DType::kQ4_K:
    case DType::kQ5_K:
      std::memcpy(band.super(row, column), block, 4);
      for (int s = 0; s < 8; ++s) {
        const ScaleMin both = unpack_scale_min(block + kKScales, s);
        std::byte* scale = band.scale(row, column + 32 * s);
        scale[0] = static_cast<std::byte>(both.scale);
        scale[1] = static_cast<std::byte>(both.min);
      }
      return;
    case DType::kQ6_K:
      std::memcpy(band.super(row, column), block + kQ6KD, 2);
      for (int s = 0; s < 16; ++s) *band.scale(row, column + 16 * s) = block[kQ6KScales + s];
      return;
    default:
      std::memcpy(band.scale(row, column), block, 2);
  }
}

// A row in the band's format, encoded: the file's bytes where they are that already, else made in
// `encoded` by way of `values`; its scale goes to the band. own_scale: of bytes that are already in
// the format.
const std::byte* encode_row(const Band& band, DType type, int row, const std::byte* source,
                            float own_scale, std::vector<float>& values,
                            std::vector<std::byte>& encoded) {
  const bool is_encoded = type == band.type;
  if (band.format.row_scale) {
    float scale = own_scale;
    if (!is_encoded) {
      dequantize_row(type, source, values);
      float largest = 0.0F;
      bool finite = true;
      for (const float v : values) {
        largest = std::max(largest, std::abs(v));
        finite = finite && std::isfinite(v);
      }
      scale = (finite ? largest : NAN) / (band.type == DType::kI8 ? kLargestI8 : kLargestF8);
      const float inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
      for (float& v : values) v *= inverse;
    }
    std::memcpy(band.scale(row, 0), &scale, sizeof scale);
  } else if (!is_encoded) {
    dequantize_row(type, source, values);
  }
  if (is_encoded) return source;
  quantize_row(band.type, values, encoded.data());
  return encoded.data();
}

// The rows of a band in a file's bytes; null: beyond the matrix.
using BandRows = std::array<const std::byte*, kTileRows>;

template <DType kType>
void pack_blocks(const Band& band, const BandRows& rows, int64_t cols, int64_t cols_padded) {
  const int64_t block_elems = dtype_info(kType).block_elems;
  const int64_t block_bytes = dtype_info(kType).block_bytes;
  constexpr DType kPacked = kType == DType::kQ4_1 ? DType::kQ5_1 : kType;
  for (int row = 0; row < kTileRows / 2; ++row) {
    for (int64_t first = 0; first < cols_padded; first += block_elems) {
      std::array<const std::byte*, 2> blocks{};
      for (size_t i = 0; i < 2; ++i) {
        const std::byte* source = rows[static_cast<size_t>(row) + 8 * i];
        if (source == nullptr || first >= cols) continue;
        blocks[i] = source + first / block_elems * block_bytes;
        pack_scales<kType>(band, row + 8 * static_cast<int>(i), first, blocks[i]);
      }
      for (int s = 0; s < block_elems / kColumns; ++s) {
        std::array<Quants, 2> quants{};
        for (size_t i = 0; i < 2; ++i) {
          if (blocks[i] == nullptr) continue;
          quants[i] = quants_of<kType>(blocks[i], s);
          if constexpr (kType == DType::kQ6_K) quants[i] = halves_of(quants[i]);
        }
        place_quants<kPacked>(band, row, first + kColumns * s, quants[0], quants[1]);
      }
    }
  }
}

void pack_values(const Band& band, DType type, const BandRows& sources, const float* row_scales,
                 int64_t cols) {
  const auto element = static_cast<size_t>(dtype_info(band.type).block_bytes);
  std::vector<float> values(static_cast<size_t>(cols));
  std::array<std::vector<std::byte>, 2> encoded;
  for (auto& one : encoded) one.resize(static_cast<size_t>(cols) * element);
  const std::vector<std::byte> zeros(kColumns * element);
  for (int row = 0; row < kTileRows / 2; ++row) {
    std::array<const std::byte*, 2> rows{};
    for (size_t i = 0; i < 2; ++i) {
      const int in_band = row + 8 * static_cast<int>(i);
      const std::byte* source = sources[static_cast<size_t>(in_band)];
      if (source == nullptr) continue;
      rows[i] = encode_row(band, type, in_band, source,
                           row_scales == nullptr ? 1.0F : row_scales[in_band], values, encoded[i]);
    }
    for (int64_t column = 0; column < cols; column += kColumns) {
      // Of a width that is no multiple of a chunk the rest is copied.
      std::array<std::array<std::byte, kColumns * 2>, 2> rest{};
      const auto left = static_cast<size_t>(cols - column);
      const auto at = [&](size_t i) {
        if (rows[i] == nullptr) return zeros.data();
        const std::byte* from = rows[i] + static_cast<size_t>(column) * element;
        if (left >= kColumns) return from;
        std::memcpy(rest[i].data(), from, left * element);
        return static_cast<const std::byte*>(rest[i].data());
      };
      place_values(band, row, column, at(0), at(1));
    }
  }
}

void pack_band(const WeightView& weight, int64_t row_first, const PackedLayout& layout,
               int64_t band_index, std::span<std::byte> packed) {
  const Band band = band_of(layout, packed.data(), band_index);
  const BandBytes bytes = band_bytes(layout);
  // Of rows and columns that pad; quants are all written below.
  std::fill_n(band.scales, bytes.scales, std::byte{0});
  std::fill_n(band.supers, bytes.supers, std::byte{0});
  BandRows rows{};
  for (int r = 0; r < kTileRows && row_first + r < weight.rows; ++r) {
    rows[static_cast<size_t>(r)] =
        weight.data + (row_first + r) * row_bytes(weight.type, weight.cols);
  }
  const auto blocks = [&](auto pack) { pack(band, rows, weight.cols, layout.cols_padded); };
  switch (weight.type) {
    case DType::kQ4_0:
      return blocks(pack_blocks<DType::kQ4_0>);
    case DType::kQ4_1:
      return blocks(pack_blocks<DType::kQ4_1>);
    case DType::kQ5_0:
      return blocks(pack_blocks<DType::kQ5_0>);
    case DType::kQ5_1:
      return blocks(pack_blocks<DType::kQ5_1>);
    case DType::kQ8_0:
      return blocks(pack_blocks<DType::kQ8_0>);
    case DType::kQ4_K:
      return blocks(pack_blocks<DType::kQ4_K>);
    case DType::kQ5_K:
      return blocks(pack_blocks<DType::kQ5_K>);
    case DType::kQ6_K:
      return blocks(pack_blocks<DType::kQ6_K>);
    default:
      pack_values(band, weight.type, rows,
                  weight.row_scales == nullptr ? nullptr : weight.row_scales + row_first,
                  weight.cols);
  }
}

void check_view(const WeightView& weight, int64_t rows, const PackedLayout& layout,
                std::span<const std::byte> packed) {
  UPDRAFT_CHECK(weight.rows == rows && weight.cols == layout.cols, "the layout's matrix");
  const bool from_floats =
      layout.type == DType::kBF16 || layout.type == DType::kF8_E4M3 || layout.type == DType::kI8;
  UPDRAFT_CHECK(packed_type(weight.type) == layout.type || (from_floats && is_float(weight.type)),
                "the layout's format");
  UPDRAFT_CHECK(static_cast<int64_t>(packed.size()) == layout.bytes, "room for all of it");
}

}  // namespace

void pack_tiles(const WeightView& weight, const PackedLayout& layout, int64_t tile_first,
                int64_t tile_end, std::span<std::byte> packed) {
  UPDRAFT_CHECK(!layout.gated, "one matrix");
  check_view(weight, layout.rows, layout, packed);
  for (int64_t b = tile_first; b < tile_end; ++b) {
    pack_band(weight, b * kTileRows, layout, b, packed);
  }
}

void pack_gated_tiles(const WeightView& gate, const WeightView& up, const PackedLayout& layout,
                      int64_t tile_first, int64_t tile_end, std::span<std::byte> packed) {
  UPDRAFT_CHECK(layout.gated, "two matrices");
  check_view(gate, layout.rows / 2, layout, packed);
  check_view(up, layout.rows / 2, layout, packed);
  for (int64_t b = tile_first; b < tile_end; ++b) {
    pack_band(b % 2 == 0 ? gate : up, b / 2 * kTileRows, layout, b, packed);
  }
}

}  // namespace updraft::cuda
