// The parts of a packed matrix as its packing and its unpacking see them. Internal to
// weight_layout.cpp and weight_pack.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/weight_layout.h"
#include "kernels/quant/block_layout.h"

namespace updraft::cuda {

// One band of 16 rows.
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
inline BandBytes band_bytes(const PackedLayout& layout) {
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

inline Band band_of(const PackedLayout& layout, std::byte* packed, int64_t band) {
  const BandBytes bytes = band_bytes(layout);
  return {layout.type,
          packed_format(layout.type),
          packed + band * bytes.tiles,
          packed + layout.high_offset + band * bytes.high,
          packed + layout.scales_offset + band * bytes.scales,
          packed + layout.supers_offset + band * bytes.supers};
}

}  // namespace updraft::cuda
