// Packing and its inverse, one weight at a time through slot_of(): load-time code, plain on
// purpose.
#include "kernels/cuda/weight_layout.h"

#include <algorithm>
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

int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

int64_t tile_bytes(DType type) { return type == DType::kBF16 ? 2 * kPieceBytes : kPieceBytes; }

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
std::byte* high_bits_at(std::byte* tile, const Slot& slot, int* shift) {
  const int bit = 2 * (slot.reg + 4 * slot.half);
  *shift = bit % 8;
  return tile + 8 * slot.lane + 2 * slot.step + bit / 8;
}
std::byte* byte_of(std::byte* tile, const Slot& slot) {
  return tile + 16 * slot.lane + 8 * slot.step + 4 * (slot.reg / 2) + slot.reg % 2 + 2 * slot.half;
}
std::byte* bf16_at(std::byte* tile, const Slot& slot) {
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
  std::byte* tiles;  // [cols / tile_cols]
  std::byte* high;   // Q6_K
  std::byte* scales;
  std::byte* supers;
};

Band band_of(const PackedLayout& layout, std::byte* packed, int64_t band) {
  const int64_t cols = layout.cols_padded;
  Band out{};
  out.tiles = packed + band * (cols / tile_cols(layout.type)) * tile_bytes(layout.type);
  out.high = packed + layout.high_offset + band * kTileRows * cols / 4;
  switch (layout.type) {
    case DType::kQ4_0:
    case DType::kQ8_0:
    case DType::kQ4_K:
      out.scales = packed + layout.scales_offset + band * cols / 32 * kTileRows * 2;
      break;
    case DType::kQ6_K:
      out.scales = packed + layout.scales_offset + band * cols / 16 * kTileRows;
      break;
    default:
      break;
  }
  const int64_t super_bytes = layout.type == DType::kQ4_K ? 4 : 2;
  out.supers = packed + layout.supers_offset + band * cols / kSuperBlock * kTileRows * super_bytes;
  return out;
}

void copy_half(std::byte* to, const std::byte* from) { std::memcpy(to, from, 2); }

// Quants and scales of one 32-column block of Q4_0 or Q8_0.
void pack_block_32(const PackedLayout& layout, const Band& band, int row, int64_t column,
                   const std::byte* block) {
  copy_half(band.scales + (column / 32 * kTileRows + row) * 2, block);
  const int width = tile_cols(layout.type);
  std::byte* tile = band.tiles + column / width * kPieceBytes;
  for (int i = 0; i < 32; ++i) {
    const Slot slot = slot_of(layout.type, row, static_cast<int>(column % width) + i);
    if (layout.type == DType::kQ8_0) {
      *byte_of(tile, slot) = block[kQ8_0Quants + i];
    } else {
      int shift = 0;
      std::byte* at = nibble_at(tile, slot, &shift);
      set_bits(at, shift, byte_at(block + kQ4_0Quants, i % 16) >> (i / 16 * 4) & 15);
    }
  }
}

void pack_q4_k(const Band& band, int row, int64_t column, const std::byte* block) {
  std::memcpy(band.supers + (column / kSuperBlock * kTileRows + row) * 4, block, 4);
  for (int s = 0; s < 8; ++s) {
    const ScaleMin both = unpack_scale_min(block + kKScales, s);
    std::byte* scale = band.scales + ((column / 32 + s) * kTileRows + row) * 2;
    scale[0] = static_cast<std::byte>(both.scale);
    scale[1] = static_cast<std::byte>(both.min);
    uint8_t q[32];
    unpack_q4_k(block, s, q);
    std::byte* tile = band.tiles + (column / 64 + s / 2) * kPieceBytes;
    for (int i = 0; i < 32; ++i) {
      int shift = 0;
      std::byte* at = nibble_at(tile, slot_of(DType::kQ4_K, row, s % 2 * 32 + i), &shift);
      set_bits(at, shift, q[i]);
    }
  }
}

void pack_q6_k(const Band& band, int row, int64_t column, const std::byte* block) {
  copy_half(band.supers + (column / kSuperBlock * kTileRows + row) * 2, block + kQ6KD);
  for (int s = 0; s < 16; ++s) {
    band.scales[(column / 16 + s) * kTileRows + row] = block[kQ6KScales + s];
  }
  for (int s = 0; s < 8; ++s) {
    uint8_t q[32];
    unpack_q6_k(block, s, q);
    const int64_t tile_index = column / 64 + s / 2;
    for (int i = 0; i < 32; ++i) {
      const Slot slot = slot_of(DType::kQ6_K, row, s % 2 * 32 + i);
      int shift = 0;
      std::byte* at = nibble_at(band.tiles + tile_index * kPieceBytes, slot, &shift);
      set_bits(at, shift, q[i] & 15);
      at = high_bits_at(band.high + tile_index * kPieceBytes / 2, slot, &shift);
      set_bits(at, shift, q[i] >> 4);
    }
  }
}

void pack_bf16(const WeightView& weight, const Band& band, int row, const std::byte* source,
               std::vector<float>& values) {
  values.resize(static_cast<size_t>(weight.cols));
  dequantize_row(weight.type, source, values);
  for (int64_t c = 0; c < weight.cols; ++c) {
    const uint16_t bits = float_to_bf16(values[static_cast<size_t>(c)]);
    std::memcpy(bf16_at(band.tiles + c / 32 * 2 * kPieceBytes,
                        slot_of(DType::kBF16, row, static_cast<int>(c % 32))),
                &bits, 2);
  }
}

}  // namespace

Result<PackedLayout> PackedLayout::of(DType type, int64_t rows, int64_t cols) {
  const int width = tile_cols(type);
  if (width == 0) {
    return fail(std::string("weights of format ") + dtype_info(type).name +
                " have no layout for the GPU");
  }
  if (rows <= 0 || cols <= 0 || cols % dtype_info(type).block_elems != 0) {
    return fail("a matrix of " + std::to_string(rows) + " x " + std::to_string(cols) + " in " +
                dtype_info(type).name);
  }
  PackedLayout out;
  out.type = type;
  out.rows = rows;
  out.cols = cols;
  out.rows_padded = rounded_up(rows, kTileRows);
  out.cols_padded = rounded_up(cols, width);
  const int64_t weights = out.rows_padded * out.cols_padded;
  int64_t at = weights / (kTileRows * width) * tile_bytes(type);
  const auto part = [&](int64_t bytes) {
    const int64_t offset = rounded_up(at, kPartAlignment);
    at = offset + bytes;
    return offset;
  };
  out.quants_bytes = at;
  switch (type) {
    case DType::kQ4_0:
    case DType::kQ8_0:
      out.scales_offset = part(weights / 32 * 2);
      break;
    case DType::kQ4_K:
      out.scales_offset = part(weights / 32 * 2);
      out.supers_offset = part(weights / kSuperBlock * 4);
      break;
    case DType::kQ6_K:
      out.high_offset = part(weights / 4);
      out.scales_offset = part(weights / 16);
      out.supers_offset = part(weights / kSuperBlock * 2);
      break;
    default:
      break;
  }
  out.bytes = rounded_up(at, kPartAlignment);
  return out;
}

void pack_tiles(const WeightView& weight, const PackedLayout& layout, int64_t tile_first,
                int64_t tile_end, std::span<std::byte> packed) {
  UPDRAFT_CHECK(weight.rows == layout.rows && weight.cols == layout.cols, "the layout's matrix");
  UPDRAFT_CHECK(
      weight.type == layout.type || (layout.type == DType::kBF16 &&
                                     (weight.type == DType::kF32 || weight.type == DType::kF16)),
      "the layout's format");
  UPDRAFT_CHECK(static_cast<int64_t>(packed.size()) == layout.bytes, "room for all of it");
  const int64_t source_row_bytes = row_bytes(weight.type, weight.cols);
  const DTypeInfo& info = dtype_info(weight.type);
  std::vector<float> values;
  for (int64_t b = tile_first; b < tile_end; ++b) {
    const Band band = band_of(layout, packed.data(), b);
    const Band next = band_of(layout, packed.data(), b + 1);
    // Bits are or-ed in, and what pads is zero.
    std::fill(band.tiles, next.tiles, std::byte{0});
    if (layout.high_offset != 0) std::fill(band.high, next.high, std::byte{0});
    if (layout.scales_offset != 0) std::fill(band.scales, next.scales, std::byte{0});
    if (layout.supers_offset != 0) std::fill(band.supers, next.supers, std::byte{0});
    for (int r = 0; r < kTileRows && b * kTileRows + r < weight.rows; ++r) {
      const std::byte* source = weight.data + (b * kTileRows + r) * source_row_bytes;
      if (layout.type == DType::kBF16) {
        pack_bf16(weight, band, r, source, values);
        continue;
      }
      for (int64_t c = 0; c < weight.cols; c += info.block_elems, source += info.block_bytes) {
        if (layout.type == DType::kQ4_K) {
          pack_q4_k(band, r, c, source);
        } else if (layout.type == DType::kQ6_K) {
          pack_q6_k(band, r, c, source);
        } else {
          pack_block_32(layout, band, r, c, source);
        }
      }
    }
  }
}

void unpack_row(const PackedLayout& layout, std::span<const std::byte> packed, int64_t row,
                std::span<float> out) {
  UPDRAFT_CHECK(row >= 0 && row < layout.rows, "a row of the matrix");
  UPDRAFT_CHECK(static_cast<int64_t>(out.size()) == layout.cols, "room for one row");
  const Band band =
      band_of(layout, const_cast<std::byte*>(packed.data()), row / kTileRows);  // only read
  const int r = static_cast<int>(row % kTileRows);
  const int width = tile_cols(layout.type);
  for (int64_t c = 0; c < layout.cols; ++c) {
    const Slot slot = slot_of(layout.type, r, static_cast<int>(c % width));
    std::byte* tile = band.tiles + c / width * tile_bytes(layout.type);
    const std::byte* scale = band.scales + (c / 32 * kTileRows + r) * 2;
    const int64_t super = c / kSuperBlock * kTileRows + r;
    float value = 0.0F;
    int shift = 0;
    switch (layout.type) {
      case DType::kBF16:
        value = bf16_to_float(load_le<uint16_t>(bf16_at(tile, slot)));
        break;
      case DType::kQ8_0:
        value = load_half(scale) * static_cast<float>(static_cast<int8_t>(*byte_of(tile, slot)));
        break;
      case DType::kQ4_0: {
        const std::byte* at = nibble_at(tile, slot, &shift);
        value = load_half(scale) * static_cast<float>(get_bits(at, shift, 15) - 8);
        break;
      }
      case DType::kQ4_K: {
        const std::byte* at = nibble_at(tile, slot, &shift);
        const float d = load_half(band.supers + super * 4);
        const float dmin = load_half(band.supers + super * 4 + 2);
        value = d * static_cast<float>(byte_at(scale, 0)) *
                    static_cast<float>(get_bits(at, shift, 15)) -
                dmin * static_cast<float>(byte_at(scale, 1));
        break;
      }
      case DType::kQ6_K: {
        const std::byte* low = nibble_at(tile, slot, &shift);
        int q = get_bits(low, shift, 15);
        const std::byte* high = high_bits_at(band.high + c / width * kPieceBytes / 2, slot, &shift);
        q |= get_bits(high, shift, 3) << 4;
        const auto s = static_cast<int8_t>(band.scales[c / 16 * kTileRows + r]);
        value =
            load_half(band.supers + super * 2) * static_cast<float>(s) * static_cast<float>(q - 32);
        break;
      }
      default:
        break;
    }
    out[static_cast<size_t>(c)] = value;
  }
}

}  // namespace updraft::cuda
