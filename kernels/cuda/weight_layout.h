// How weights lie in GPU memory: in the order in which the tensor cores want them, so that a lane
// of a warp loads what it multiplies with 16-byte loads and no shuffles. Packed once at load time.
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
//   4 bits (Q4_0, Q4_K, and the low ones of Q5_0, Q5_1, Q5_K, Q6_K): 64 columns, one piece; word s
//     of a lane is step s: nibbles j and j + 4 of the word are the first and second column of
//     register aj
//   high bits of Q6_K: 8 bytes a lane: half-word s is step s, 2 bits each in the same order; of the
//     five-bit formats: 4 bytes a lane: byte s is step s, one bit each
//   8 bits (Q8_0, F8_E4M3): 32 columns, one piece; words 2s and 2s + 1 are step s: bytes 0 and 2 of
//     the first are a0, its bytes 1 and 3 are a1; the second holds a2 and a3 likewise
//   I8: 32 columns, one piece, in the order of mma.sync m16n8k32: words 0 and 1 are columns 8 * t
//   ..
//     8 * t + 3 of the rows g and g + 8, words 2 and 3 their columns 8 * t + 4 .. 8 * t + 7
//   BF16, F16: 32 columns, two pieces; piece s is step s, word j is register aj
//
// Scales lie [rows / 16][cols / group][16]: Q4_0, Q5_0 and Q8_0 fp16; Q5_1 fp16 {d, m}; Q4_K and
// Q5_K bytes {scale, min} and fp16 {d, dmin} of each superblock; Q6_K signed bytes of 16 columns
// and fp16 d. F8_E4M3 and I8 have one f32 a row. Rows and columns are padded to whole tiles by
// weights of value zero.
//
// What is lost: nothing of the quantised formats, of BF16 and of F16 (unpacking gives the values of
// dequantize_row() bit for bit); F32 becomes BF16, rounded to nearest even. Our own formats of 4
// and 8 bits, made at load from float weights, are Q4_0 (groups of 32, symmetric, fp16 scales; a
// matrix with scales per 64 or 128 columns becomes one by repeating them) and Q8_0, by
// quantize_row(); F8_E4M3 (largest of a row = 448) and I8 (largest of a row = 127) are made by
// pack_tiles() itself.
#pragma once

#include <cstdint>
#include <span>

#include "common/base/result.h"
#include "kernels/quant/dtype.h"

namespace updraft::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kPieceBytes = 512;

struct PackedFormat {
  int tile_cols = 0;    // 0: no layout of its own
  int piece_count = 0;  // of a tile
  int high_bits = 0;    // a weight, beside the piece
  int group_cols = 0;   // columns of a scale; 0: none
  int scale_bytes = 0;  // of a group
  int super_bytes = 0;  // of a superblock
  bool row_scale = false;
};

constexpr PackedFormat packed_format(DType type) {
  switch (type) {
    case DType::kQ4_0:
      return {64, 1, 0, 32, 2, 0};
    case DType::kQ5_0:
      return {64, 1, 1, 32, 2, 0};
    case DType::kQ5_1:
      return {64, 1, 1, 32, 4, 0};
    case DType::kQ4_K:
      return {64, 1, 0, 32, 2, 4};
    case DType::kQ5_K:
      return {64, 1, 1, 32, 2, 4};
    case DType::kQ6_K:
      return {64, 1, 2, 16, 1, 2};
    case DType::kQ8_0:
      return {32, 1, 0, 32, 2, 0};
    case DType::kBF16:
    case DType::kF16:
      return {32, 2, 0, 0, 0, 0};
    case DType::kF8_E4M3:
    case DType::kI8:
      return {32, 1, 0, 0, 0, 0, true};
    default:
      return {};
  }
}

// Columns of a tile; 0: this format has no layout of its own (packed_type() says which it takes).
constexpr int tile_cols(DType type) { return packed_format(type).tile_cols; }

// The layout that the weights of a file's format take: their own; Q4_1 (whose quants and scales are
// also Q5_1's) Q5_1; F32 BF16.
DType packed_type(DType type);

// Byte offsets of the parts of a packed matrix, each a multiple of 256.
struct PackedLayout {
  DType type = DType::kBF16;
  int64_t rows = 0;  // of the matrix
  int64_t cols = 0;
  int64_t rows_padded = 0;   // multiple of 16
  int64_t cols_padded = 0;   // multiple of the tile
  int64_t quants_bytes = 0;  // at offset 0
  int64_t high_offset = 0;   // high bits of five- and six-bit formats
  int64_t scales_offset = 0;
  int64_t supers_offset = 0;  // d (and dmin) of superblocks
  int64_t bytes = 0;          // in all
  // Two matrices of rows / 2 rows each, gate and up, whose bands alternate: so one block of a
  // kernel has both halves of the same outputs. rows is then a multiple of 32.
  bool gated = false;

  // Errors: a format without a layout, a shape that it does not take.
  static Result<PackedLayout> of(DType type, int64_t rows, int64_t cols, bool gated = false);
};

// Packs the rows [tile_first * 16, tile_end * 16) of `weight` into `packed` [layout.bytes]; several
// threads may pack different tiles of one matrix. `weight` has the layout's format or one whose
// packed_type() it is; BF16, F8_E4M3 and I8 tiles are made from F32, F16 and BF16. A row of
// F8_E4M3 or I8 with a value that is not finite has the scale NaN; bytes that are F8_E4M3 already
// stay as they are, with their row's scale.
void pack_tiles(const WeightView& weight, const PackedLayout& layout, int64_t tile_first,
                int64_t tile_end, std::span<std::byte> packed);
// The same for a gated layout; gate and up have one format.
void pack_gated_tiles(const WeightView& gate, const WeightView& up, const PackedLayout& layout,
                      int64_t tile_first, int64_t tile_end, std::span<std::byte> packed);

// Row `row` of a packed matrix (gated: gate's rows, then up's) as f32, `out` [layout.cols].
void unpack_row(const PackedLayout& layout, std::span<const std::byte> packed, int64_t row,
                std::span<float> out);

}  // namespace updraft::cuda
