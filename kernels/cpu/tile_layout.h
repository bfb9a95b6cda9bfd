// How the CPU backend keeps a weight matrix: tiles of R rows (16 for AVX-512, 8 for AVX2, 4
// otherwise), the rows interleaved so that one vector register holds one thing of R rows. Shared by
// the repacking, the row decoder and the kernels.
//
// A tile of a float format: for each column its R values.
// A tile of a quantised format: groups of blocks of 32 columns, each its header and then its
// quants, so that a product with one token reads memory in one ascending stream, which the hardware
// fetches ahead best (with all headers in front of all quants it reached three quarters of the
// rate). Header and quants are whole vectors of 4 * R bytes. Values are the file's own; nothing is
// quantised a second time.
//
//   headers, per group of 2 blocks:  Q8_0 Q4_0 Q5_0: 2 x d[R] f16
//                       1 block:     Q4_1 Q5_1: d[R] f16, m[R] f16
//                       8 (a superblock): Q4_K Q5_K: d[R] f16, dmin[R] f16, then 8 x { scale[R] u8,
//                                    min[R] u8 }
//                                    Q6_K: d[R] f16, then 8 x { scale[R] s8 of columns 0..15,
//                                    scale[R] s8 of 16..31 }, 2 * R unused
//   quants, per block of 32 columns, as sets of 4 columns: byte 4 * r + j of a set is row r, column
//   4 * set + j
//     Q8_0: 8 sets, signed bytes
//     others: 4 byte vectors of nibbles, vector i holding set i (low) and set i + 4 (high), then
//     Q5_*: one byte vector, bit g of a byte = fifth bit in set g
//     Q6_K: two byte vectors, bits 2g and 2g+1 of a byte = top bits in set g (first vector) and g +
//     4 (second)
// A row with an odd number of blocks ends with a group whose second block is missing.
#pragma once

#include <cstdint>

#include "kernels/quant/dtype.h"

namespace updraft {

inline constexpr int kBlockCols = 32;
inline constexpr int kSuperBlockCols = 256;

struct TileFormat {
  int group_blocks;          // blocks of 32 columns behind one header; 0: a float format
  int header_bytes_per_row;  // of a group
  int quant_bytes_per_row;   // per block of 32 columns; for a float format: per column
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
      return {2, 4, 32};
    case DType::kQ4_0:
      return {2, 4, 16};
    case DType::kQ4_1:
      return {1, 4, 16};
    case DType::kQ5_0:
      return {2, 4, 20};
    case DType::kQ5_1:
      return {1, 4, 20};
    case DType::kQ4_K:
      return {8, 20, 16};
    case DType::kQ5_K:
      return {8, 20, 20};
    case DType::kQ6_K:
      return {8, 20, 24};
    case DType::kF8_E4M3:
    case DType::kI8:
      break;
  }
  return {0, 0, 0};
}

constexpr bool is_float_format(DType type) { return tile_format(type).group_blocks == 0; }

// Where the header of a block's group begins in a tile of a quantised format, in bytes.
constexpr int64_t tile_header_offset(const TileFormat& format, int tile_rows, int64_t block) {
  const int64_t group_bytes =
      format.header_bytes_per_row + int64_t{format.group_blocks} * format.quant_bytes_per_row;
  return block / format.group_blocks * group_bytes * tile_rows;
}
// Where a block's quants begin.
constexpr int64_t tile_quants_offset(const TileFormat& format, int tile_rows, int64_t block) {
  const int64_t in_group =
      format.header_bytes_per_row + block % format.group_blocks * format.quant_bytes_per_row;
  return tile_header_offset(format, tile_rows, block) + in_group * tile_rows;
}

constexpr int64_t tile_bytes(DType type, int tile_rows, int64_t cols) {
  const TileFormat format = tile_format(type);
  if (is_float_format(type)) return (cols * format.quant_bytes_per_row * tile_rows + 63) / 64 * 64;
  const int64_t last = cols / kBlockCols - 1;
  const int64_t end =
      tile_quants_offset(format, tile_rows, last) + int64_t{format.quant_bytes_per_row} * tile_rows;
  return (end + 63) / 64 * 64;
}

}  // namespace updraft
