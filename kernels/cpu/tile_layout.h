// How the CPU backend keeps a weight matrix: tiles of R rows (16 for AVX-512, 8 for AVX2, 4
// otherwise), the rows interleaved so that one vector register holds one thing of R rows. Shared by
// the repacking, the row decoder and the kernels.
//
// A tile of a float format: for each column its R values.
// A tile of a quantised format: first the headers of all blocks, padded to 64 bytes, then the
// quants of all blocks of 32 columns. Values are the file's own; nothing is quantised a second
// time.
//
//   headers, per block of 32:      Q8_0 Q4_0 Q5_0: d[R] f16      Q4_1 Q5_1: d[R] f16, m[R] f16
//   headers, per superblock (256): Q4_K Q5_K: d[R] f16, dmin[R] f16, then 8 x { scale[R] u8, min[R]
//   u8 }
//                                  Q6_K: d[R] f16, then 8 x { scale[R] s8 of columns 0..15,
//                                  scale[R] s8 of 16..31 }
//   quants, per block of 32 columns, as groups of 4 columns: byte 4 * r + j of a group is row r,
//   column 4 * group + j
//     Q8_0: 8 groups, signed bytes
//     others: 4 byte vectors of nibbles, vector i holding group i (low) and group i + 4 (high),
//     then Q5_*: one byte vector, bit g of a byte = fifth bit in group g Q6_K: two byte vectors,
//     bits 2g and 2g+1 of a byte = top bits in group g (first vector) and g + 4 (second)
#pragma once

#include <cstdint>

#include "kernels/quant/dtype.h"

namespace updraft {

inline constexpr int kBlockCols = 32;
inline constexpr int kSuperBlockCols = 256;

struct TileFormat {
  int header_cols;  // columns that one header covers; 0: a float format
  int header_bytes_per_row;
  int quant_bytes_per_row;  // per block of 32 columns; for a float format: per column
};

constexpr TileFormat tile_format(DType type) {
  switch (type) {
    case DType::kF32:
      return {0, 0, 4};
    case DType::kF16:
      return {0, 0, 2};
    case DType::kBF16:
      return {0, 0, 2};
    case DType::kQ8_0:
      return {32, 2, 32};
    case DType::kQ4_0:
      return {32, 2, 16};
    case DType::kQ4_1:
      return {32, 4, 16};
    case DType::kQ5_0:
      return {32, 2, 20};
    case DType::kQ5_1:
      return {32, 4, 20};
    case DType::kQ4_K:
      return {256, 20, 16};
    case DType::kQ5_K:
      return {256, 20, 20};
    case DType::kQ6_K:
      return {256, 18, 24};
  }
  return {0, 0, 0};
}

constexpr bool is_float_format(DType type) { return tile_format(type).header_cols == 0; }

// Bytes of the headers in front of a tile's quants.
constexpr int64_t tile_header_bytes(DType type, int tile_rows, int64_t cols) {
  const TileFormat format = tile_format(type);
  if (format.header_cols == 0) return 0;
  return (cols / format.header_cols * format.header_bytes_per_row * tile_rows + 63) / 64 * 64;
}

constexpr int64_t tile_bytes(DType type, int tile_rows, int64_t cols) {
  const TileFormat format = tile_format(type);
  const int64_t unit = format.header_cols == 0 ? 1 : kBlockCols;
  const int64_t quants = cols / unit * format.quant_bytes_per_row * tile_rows;
  return tile_header_bytes(type, tile_rows, cols) + (quants + 63) / 64 * 64;
}

}  // namespace updraft
