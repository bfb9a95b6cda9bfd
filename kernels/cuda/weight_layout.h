// How weights lie in GPU memory: in the order in which the tensor cores want them, so that a lane
// of a warp loads what it multiplies with 16-byte loads and no shuffles. Packed once at load time,
// without loss: unpacking gives the values of dequantize_row() bit for bit.
//
// A tile is 16 rows by tile_cols() columns: pieces of 512 bytes, 16 for each of 32 lanes; tiles lie
// [rows / 16][cols / tile_cols]. Lane 4 * g + t holds the rows g and g + 8. Of each 32 columns (a
// chunk) its columns are 8 * t .. 8 * t + 7, so that it also loads its activations with one 16-byte
// load; in Q6_K, whose scales span 16, they are 4 * t .. 4 * t + 3 of either half. A step is what
// one mma.sync m16n8k16 takes, two a chunk; its registers are
//
//   a0 = row g     at columns c, c + 1      a2 = row g     at columns c + 2, c + 3
//   a1 = row g + 8 at columns c, c + 1      a3 = row g + 8 at columns c + 2, c + 3
//   with c = 8 * t + 4 * step, in Q6_K 16 * step + 4 * t
//
// (which column stands for which k of the instruction is free, as long as the activations agree).
//
//   Q4_0, Q4_K, Q6_K (low bits)  64 columns, one piece; word s of a lane is step s: nibbles j and j
//   + 4 of the word are the
//                                first and second column of register aj
//   Q6_K, high bits              8 bytes a lane: half-word s is step s, 2 bits each in the same
//   order Q8_0                         32 columns, one piece; words 2s and 2s + 1 are step s: bytes
//   0 and 2 of the first are a0,
//                                its bytes 1 and 3 are a1; the second holds a2 and a3 likewise
//   BF16                         32 columns, two pieces; piece s is step s, word j is register aj
//
// Scales: Q4_0 and Q8_0 fp16 [rows / 16][cols / 32][16]; Q4_K bytes {scale, min} in the same order
// and fp16 {d, dmin} [rows / 16][cols / 256][16]; Q6_K signed bytes [rows / 16][cols / 16][16] and
// fp16 d [rows / 16][cols / 256][16]. Rows and columns are padded to whole tiles by weights of
// value zero.
#pragma once

#include <cstdint>
#include <span>

#include "common/base/result.h"
#include "kernels/quant/dtype.h"

namespace updraft::cuda {

// Columns of a tile; 0: this format has no layout of its own (convert it to BF16 first).
constexpr int tile_cols(DType type) {
  switch (type) {
    case DType::kQ4_0:
    case DType::kQ4_K:
    case DType::kQ6_K:
      return 64;
    case DType::kQ8_0:
    case DType::kBF16:
      return 32;
    default:
      return 0;
  }
}
inline constexpr int kTileRows = 16;
inline constexpr int kPieceBytes = 512;

// Byte offsets of the parts of a packed matrix, each a multiple of 256.
struct PackedLayout {
  DType type = DType::kBF16;
  int64_t rows = 0;  // of the matrix
  int64_t cols = 0;
  int64_t rows_padded = 0;   // multiple of 16
  int64_t cols_padded = 0;   // multiple of the tile
  int64_t quants_bytes = 0;  // at offset 0
  int64_t high_offset = 0;   // Q6_K's high bits
  int64_t scales_offset = 0;
  int64_t supers_offset = 0;  // d (and dmin) of superblocks
  int64_t bytes = 0;          // in all

  // Errors: a format without a layout.
  static Result<PackedLayout> of(DType type, int64_t rows, int64_t cols);
};

// Packs the rows [tile_first * 16, tile_end * 16) of `weight` into `packed` [layout.bytes]; several
// threads may pack different tiles of one matrix. BF16 tiles are also made from F32 and F16
// (rounded to nearest even).
void pack_tiles(const WeightView& weight, const PackedLayout& layout, int64_t tile_first,
                int64_t tile_end, std::span<std::byte> packed);

// Row `row` of a packed matrix as f32, `out` [layout.cols].
void unpack_row(const PackedLayout& layout, std::span<const std::byte> packed, int64_t row,
                std::span<float> out);

}  // namespace updraft::cuda
