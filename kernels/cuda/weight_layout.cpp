// Packing and its inverse, one weight at a time through slot_of(): load-time code, plain on
// purpose.
#include "kernels/cuda/weight_layout.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/check.h"
#include "kernels/quant/block_layout.h"
#include "kernels/quant/quant.h"

namespace updraft::cuda {
namespace {

constexpr int64_t kPartAlignment = 256;
constexpr float kLargestF8 = 448.0F;
constexpr float kLargestI8 = 127.0F;

int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

bool is_float(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

// Where one weight of a tile lies: lane, step, register and which half of it.
struct Slot {
  int lane;
  int step;
  int reg;
  int half;
};

Slot slot_of(DType type, int row, int column) {
  const int in_chunk = column % 32;
  const bool halves = type == DType::kQ6_K;  // lanes take 4 columns of either half of a chunk
  const int t = halves ? in_chunk / 4 % 4 : in_chunk / 8;
  const int step = halves ? in_chunk / 16 : in_chunk / 4 % 2;
  const int e = column % 4;
  return {4 * (row % 8) + t, column / 32 * 2 + step, row / 8 + e / 2 * 2, e % 2};
}

// The byte of a tile with the weight's bits, and their place in it, for formats below 8 bits.
std::byte* nibble_at(std::byte* tile, const Slot& slot, int* shift) {
  const int bit = 4 * (slot.reg + 4 * slot.half);
  *shift = bit % 8;
  return tile + 16 * slot.lane + 4 * slot.step + bit / 8;
}
std::byte* high_bits_at(std::byte* tile, int bits, const Slot& slot, int* shift) {
  const int bit = bits * (slot.reg + 4 * slot.half);
  *shift = bit % 8;
  return tile + 4 * bits * slot.lane + bits * slot.step + bit / 8;
}
std::byte* byte_of(std::byte* tile, const Slot& slot) {
  return tile + 16 * slot.lane + 8 * slot.step + 4 * (slot.reg / 2) + slot.reg % 2 + 2 * slot.half;
}
std::byte* whole_byte_at(std::byte* tile, int row, int column) {  // I8
  const int word = row / 8 + column / 4 % 2 * 2;
  return tile + 16 * (4 * (row % 8) + column / 8) + 4 * word + column % 4;
}
std::byte* pair_at(std::byte* tile, const Slot& slot) {  // BF16, F16
  return tile + kPieceBytes * slot.step + 16 * slot.lane + 4 * slot.reg + 2 * slot.half;
}

void set_bits(std::byte* at, int shift, int value) {
  *at |= static_cast<std::byte>(value << shift);
}
int get_bits(const std::byte* at, int shift, int mask) {
  return static_cast<uint8_t>(*at) >> shift & mask;
}

// The parts of a packed matrix as the packing and the unpacking of one band of 16 rows see them.
struct Band {
  DType type;
  PackedFormat format;
  std::byte* tiles;
  std::byte* high;
  std::byte* scales;
  std::byte* supers;

  std::byte* tile(int64_t column) const {
    return tiles + column / format.tile_cols * format.piece_count * kPieceBytes;
  }
  std::byte* high_tile(int64_t column) const {
    return high + column / format.tile_cols * (kTileRows * format.tile_cols * format.high_bits / 8);
  }
  std::byte* scale(int row, int64_t column) const {
    if (format.row_scale) return scales + row * 4;
    return scales + (column / format.group_cols * kTileRows + row) * format.scale_bytes;
  }
  std::byte* super(int row, int64_t column) const {
    return supers + (column / kSuperBlock * kTileRows + row) * format.super_bytes;
  }
};

// Bytes of each part for one band.
struct BandBytes {
  int64_t tiles = 0;
  int64_t high = 0;
  int64_t scales = 0;
  int64_t supers = 0;
};
BandBytes band_bytes(const PackedLayout& layout) {
  const PackedFormat format = packed_format(layout.type);
  BandBytes out;
  out.tiles = layout.cols_padded / format.tile_cols * format.piece_count * kPieceBytes;
  out.high = kTileRows * layout.cols_padded * format.high_bits / 8;
  if (format.group_cols != 0) {
    out.scales = layout.cols_padded / format.group_cols * kTileRows * format.scale_bytes;
  }
  if (format.row_scale) out.scales = kTileRows * int64_t{sizeof(float)};
  if (format.super_bytes != 0) {
    out.supers = layout.cols_padded / kSuperBlock * kTileRows * format.super_bytes;
  }
  return out;
}

Band band_of(const PackedLayout& layout, std::byte* packed, int64_t band) {
  const BandBytes bytes = band_bytes(layout);
  return {layout.type,
          packed_format(layout.type),
          packed + band * bytes.tiles,
          packed + layout.high_offset + band * bytes.high,
          packed + layout.scales_offset + band * bytes.scales,
          packed + layout.supers_offset + band * bytes.supers};
}

// Bits are or-ed in, and what pads is zero.
void clear(const Band& band, const BandBytes& bytes) {
  std::fill_n(band.tiles, bytes.tiles, std::byte{0});
  std::fill_n(band.high, bytes.high, std::byte{0});
  std::fill_n(band.scales, bytes.scales, std::byte{0});
  std::fill_n(band.supers, bytes.supers, std::byte{0});
}

// The 32 unsigned quants of sub-block `index` of a file's block; of Q8_0 its bytes.
void unpack_quants(DType type, const std::byte* block, int index, uint8_t* q) {
  switch (type) {
    case DType::kQ4_K:
      return unpack_q4_k(block, index, q);
    case DType::kQ5_K:
      return unpack_q5_k(block, index, q);
    case DType::kQ6_K:
      return unpack_q6_k(block, index, q);
    case DType::kQ8_0:
      std::memcpy(q, block + kQ8_0Quants, 32);
      return;
    default:
      break;
  }
  const bool five = type == DType::kQ5_0 || type == DType::kQ5_1;
  const int quants = type == DType::kQ4_0   ? kQ4_0Quants
                     : type == DType::kQ4_1 ? kQ4_1Quants
                     : type == DType::kQ5_0 ? kQ5_0Quants
                                            : kQ5_1Quants;
  const uint32_t high =
      five ? load_le<uint32_t>(block + (type == DType::kQ5_0 ? kQ5_0High : kQ5_1High)) : 0;
  for (int i = 0; i < 32; ++i) {
    const int low = byte_at(block + quants, i % 16) >> (i / 16 * 4) & 15;
    q[i] = static_cast<uint8_t>(low | (high >> i & 1U) << 4);
  }
}

void pack_scales(const Band& band, DType type, int row, int64_t column, const std::byte* block) {
  switch (type) {
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

void pack_blocks(const Band& band, DType type, int row, int64_t cols, const std::byte* source) {
  const DTypeInfo& info = dtype_info(type);
  for (int64_t column = 0; column < cols; column += info.block_elems, source += info.block_bytes) {
    pack_scales(band, type, row, column, source);
    for (int s = 0; s < info.block_elems / 32; ++s) {
      uint8_t q[32];
      unpack_quants(type, source, s, q);
      for (int i = 0; i < 32; ++i) {
        const int64_t at_column = column + 32 * s + i;
        const Slot slot =
            slot_of(band.type, row, static_cast<int>(at_column % band.format.tile_cols));
        std::byte* tile = band.tile(at_column);
        if (band.type == DType::kQ8_0) {
          *byte_of(tile, slot) = static_cast<std::byte>(q[i]);
          continue;
        }
        int shift = 0;
        std::byte* at = nibble_at(tile, slot, &shift);
        set_bits(at, shift, q[i] & 15);
        if (band.format.high_bits == 0) continue;
        at = high_bits_at(band.high_tile(at_column), band.format.high_bits, slot, &shift);
        set_bits(at, shift, q[i] >> 4);
      }
    }
  }
}

// One row of values in a float format, or in bytes with a scale of the row. own_scale: of bytes
// that are already in the format.
void pack_values(const Band& band, DType type, int row, const std::byte* source, float own_scale,
                 std::vector<float>& values) {
  dequantize_row(type, source, values);
  float inverse = 1.0F;
  if (band.format.row_scale) {
    float largest = 0.0F;
    // max() keeps a NaN that it holds.
    for (const float v : values) {
      largest = std::isfinite(v) ? std::max(largest, std::abs(v)) : NAN;
    }
    const float scale = type == band.type
                            ? own_scale
                            : largest / (band.type == DType::kI8 ? kLargestI8 : kLargestF8);
    std::memcpy(band.scale(row, 0), &scale, sizeof scale);
    // Bytes that are in the format are multiplied by nothing.
    if (type != band.type) inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
  }
  std::vector<std::byte> encoded(
      static_cast<size_t>(row_bytes(band.type, static_cast<int64_t>(values.size()))));
  for (float& v : values) v *= inverse;
  quantize_row(band.type, values, encoded.data());
  const int bytes = dtype_info(band.type).block_bytes;
  for (size_t c = 0; c < values.size(); ++c) {
    const int column = static_cast<int>(c % 32);
    std::byte* tile = band.tile(static_cast<int64_t>(c));
    const Slot slot = slot_of(band.type, row, column);
    std::byte* at = band.type == DType::kI8 ? whole_byte_at(tile, row, column)
                    : band.format.row_scale ? byte_of(tile, slot)
                                            : pair_at(tile, slot);
    std::memcpy(at, encoded.data() + c * static_cast<size_t>(bytes), static_cast<size_t>(bytes));
  }
}

void pack_band(const WeightView& weight, int64_t row_first, const PackedLayout& layout,
               int64_t band_index, std::span<std::byte> packed) {
  const Band band = band_of(layout, packed.data(), band_index);
  clear(band, band_bytes(layout));
  const int64_t source_bytes = row_bytes(weight.type, weight.cols);
  std::vector<float> values;
  for (int r = 0; r < kTileRows && row_first + r < weight.rows; ++r) {
    const std::byte* source = weight.data + (row_first + r) * source_bytes;
    if (is_float(weight.type) || weight.type == DType::kF8_E4M3) {
      values.resize(static_cast<size_t>(weight.cols));
      const float own_scale =
          weight.row_scales == nullptr ? 1.0F : weight.row_scales[row_first + r];
      pack_values(band, weight.type, r, source, own_scale, values);
    } else {
      pack_blocks(band, weight.type, r, weight.cols, source);
    }
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

DType packed_type(DType type) {
  if (type == DType::kQ4_1) return DType::kQ5_1;
  if (type == DType::kF32) return DType::kBF16;
  return type;
}

Result<PackedLayout> PackedLayout::of(DType type, int64_t rows, int64_t cols, bool gated) {
  const PackedFormat format = packed_format(type);
  if (format.tile_cols == 0) {
    return fail(std::string("weights of format ") + dtype_info(type).name +
                " have no layout for the GPU");
  }
  if (rows <= 0 || cols <= 0 || cols % dtype_info(type).block_elems != 0 ||
      (gated && rows % (2 * kTileRows) != 0)) {
    return fail("a " + std::string(gated ? "gated " : "") + "matrix of " + std::to_string(rows) +
                " x " + std::to_string(cols) + " in " + dtype_info(type).name);
  }
  PackedLayout out;
  out.type = type;
  out.rows = rows;
  out.cols = cols;
  out.rows_padded = rounded_up(rows, kTileRows);
  out.cols_padded = rounded_up(cols, format.tile_cols);
  out.gated = gated;
  const BandBytes bytes = band_bytes(out);
  const int64_t bands = out.rows_padded / kTileRows;
  out.quants_bytes = bands * bytes.tiles;
  int64_t at = out.quants_bytes;
  const auto part = [&](int64_t of_band) {
    if (of_band == 0) return int64_t{0};
    const int64_t offset = rounded_up(at, kPartAlignment);
    at = offset + bands * of_band;
    return offset;
  };
  out.high_offset = part(bytes.high);
  out.scales_offset = part(bytes.scales);
  out.supers_offset = part(bytes.supers);
  out.bytes = rounded_up(at, kPartAlignment);
  return out;
}

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

void unpack_row(const PackedLayout& layout, std::span<const std::byte> packed, int64_t row,
                std::span<float> out) {
  UPDRAFT_CHECK(row >= 0 && row < layout.rows, "a row of the matrix");
  UPDRAFT_CHECK(static_cast<int64_t>(out.size()) == layout.cols, "room for one row");
  int64_t band_index = row / kTileRows;
  if (layout.gated) {
    const int64_t half = layout.rows / 2;
    band_index = row % half / kTileRows * 2 + row / half;
  }
  const Band band =
      band_of(layout, const_cast<std::byte*>(packed.data()), band_index);  // only read
  const int r = static_cast<int>(row % kTileRows);
  const PackedFormat& format = band.format;
  float row_scale = 1.0F;
  if (format.row_scale) std::memcpy(&row_scale, band.scale(r, 0), sizeof row_scale);
  for (int64_t c = 0; c < layout.cols; ++c) {
    const int column = static_cast<int>(c % format.tile_cols);
    const Slot slot = slot_of(layout.type, r, column);
    std::byte* tile = band.tile(c);
    const std::byte* scale = format.group_cols != 0 ? band.scale(r, c) : nullptr;
    const std::byte* super = band.super(r, c);
    int q = 0;
    if (format.tile_cols == 64) {
      int shift = 0;
      const std::byte* at = nibble_at(tile, slot, &shift);
      q = get_bits(at, shift, 15);
      if (format.high_bits != 0) {
        at = high_bits_at(band.high_tile(c), format.high_bits, slot, &shift);
        q |= get_bits(at, shift, (1 << format.high_bits) - 1) << 4;
      }
    }
    float value = 0.0F;
    switch (layout.type) {
      case DType::kBF16:
        value = bf16_to_float(load_le<uint16_t>(pair_at(tile, slot)));
        break;
      case DType::kF16:
        value = load_half(pair_at(tile, slot));
        break;
      case DType::kF8_E4M3:
        value = row_scale * f8_to_float(static_cast<uint8_t>(*byte_of(tile, slot)));
        break;
      case DType::kI8:
        value =
            row_scale * static_cast<float>(static_cast<int8_t>(*whole_byte_at(tile, r, column)));
        break;
      case DType::kQ8_0:
        value = load_half(scale) * static_cast<float>(static_cast<int8_t>(*byte_of(tile, slot)));
        break;
      case DType::kQ4_0:
        value = load_half(scale) * static_cast<float>(q - 8);
        break;
      case DType::kQ5_0:
        value = load_half(scale) * static_cast<float>(q - 16);
        break;
      case DType::kQ5_1:
        value = load_half(scale) * static_cast<float>(q) + load_half(scale + 2);
        break;
      case DType::kQ4_K:
      case DType::kQ5_K:
        value = load_half(super) * static_cast<float>(byte_at(scale, 0)) * static_cast<float>(q) -
                load_half(super + 2) * static_cast<float>(byte_at(scale, 1));
        break;
      case DType::kQ6_K:
        value = load_half(super) * static_cast<float>(static_cast<int8_t>(*scale)) *
                static_cast<float>(q - 32);
        break;
      default:
        break;
    }
    out[static_cast<size_t>(c)] = value;
  }
}

}  // namespace updraft::cuda
