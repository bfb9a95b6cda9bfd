// Where the parts of a packed matrix lie, and its unpacking: one weight at a time through
// slot_of(), plain on purpose, because it is what the packing (weight_pack.cpp) is tested against.
#include "kernels/cuda/weight_layout.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/check.h"
#include "kernels/cuda/weight_band.h"
#include "kernels/quant/block_layout.h"
#include "kernels/quant/quant.h"

namespace updraft::cuda {
namespace {

constexpr int64_t kPartAlignment = 256;

int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

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

int get_bits(const std::byte* at, int shift, int mask) {
  return static_cast<uint8_t>(*at) >> shift & mask;
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
