// 64 positions of one head's keys or values in shared memory, and the operands of mma that are read
// from them; what decode and prefill attention share.
//
// Bytes (int8, fp8) become bfloat16 exactly on their way into registers. A lane reads 4
// neighbouring dimensions of a key with one load, so the query has its dimensions in the same order
// (query_dim); ldmatrix hands out pairs of values (two dimensions of a position) transposed, so
// even and odd dimensions become two mma tiles (value_dim).
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/kv_pages.h"

namespace updraft::cuda {

inline constexpr int kTilePositions = 64;
inline constexpr float kLog2E = 1.4426950408889634F;
inline constexpr float kNever = -1.0e30F;  // below every score; finite: differences are no NaN

// A layer of the pages, as kernels take it.
struct KvLayer {
  const std::byte* base;  // of the layer in page 0
  int64_t page_bytes;
  int64_t head_bytes;
  int64_t v_offset;
  int64_t k_scale_offset;
  int64_t v_scale_offset;
  int32_t page_shift;
  int32_t kv_head_count;
  int32_t head_dim;
  int32_t rotation_block;
};

inline KvLayer layer_of(const KvPages& pages, int32_t layer) {
  return {pages.base + layer * pages.layer_bytes,
          pages.page_bytes,
          pages.head_bytes,
          pages.v_offset,
          pages.k_scale_offset,
          pages.v_scale_offset,
          pages.page_shift,
          pages.kv_head_count,
          pages.head_dim,
          pages.rotation_block};
}

// Bytes 0 and 2 of a word -> bfloat16: seven bits less 128, or less 256 when the sign bit is set.
UPDRAFT_DEVICE uint32_t int8_pair(uint32_t bytes) {
  return add_bf16_pairs((bytes & 0x007F007FU) | 0x43004300U, (bytes & 0x00800080U) | 0xC300C300U);
}
// Bytes 1 and 3 of a word, e4m3 -> bfloat16: exponent and mantissa put in place make 2^-120 of the
// value, subnormal ones too.
UPDRAFT_DEVICE uint32_t fp8_pair(uint32_t bytes) {
  return multiply_bf16_pairs((bytes & 0x80008000U) | (bytes >> 4 & 0x07F007F0U), 0x7B807B80U);
}
// Two bytes of a word, `first` and `second` counted from 0, as bfloat16.
template <KvType kType, uint32_t first, uint32_t second>
UPDRAFT_DEVICE uint32_t byte_pair(uint32_t word) {
  if constexpr (kType == KvType::kInt8) {
    return int8_pair(permute_bytes(word, 0x4040U | first | second << 8));
  } else {
    return fp8_pair(permute_bytes(word, 0x0404U | first << 4 | second << 12));
  }
}

UPDRAFT_DEVICE float shared_float(const std::byte* at) {
  return *reinterpret_cast<const float*>(at);
}

template <KvType kType, int kDim>
struct KvTile {
  static constexpr bool kBytes = kType != KvType::kBf16;
  static constexpr int kRowBytes = kDim * (kBytes ? 1 : 2);
  static constexpr int kRowPieces = kRowBytes / 16;
  static constexpr int kScaleOffset = kTilePositions * kRowBytes;
  static constexpr int kTileBytes = kScaleOffset + (kBytes ? kTilePositions * 4 : 0);

  // Byte offset of 16-byte piece `piece` of a row: pieces are spread so that 8 rows meet all banks.
  // at(row + 8, p) = at(row, p) + 8 rows; at(row, p ^ q) = at(row, p) ^ 16 q.
  static UPDRAFT_DEVICE int at(int row, int piece) {
    constexpr int kPieces = kRowPieces < 8 ? kRowPieces : 8;
    return row * kRowBytes + (piece ^ (row / (8 / kPieces) % kPieces)) * 16;
  }

  // Starts the copies: positions [first, first + 64) of which those before `end` are filled, others
  // zero. (Their scales may be anything.)
  template <int kThreads, bool kValues>
  static UPDRAFT_DEVICE void fetch(const KvLayer& in, const int32_t* table, int kv_head, int first,
                                   int end, std::byte* to) {
    static_assert(kThreads % (8 * kRowPieces) == 0, "the spread of pieces repeats every 8 rows");
    constexpr int kRows = kThreads / kRowPieces;
    const int tid = static_cast<int>(thread_x());
    const int row_first = tid / kRowPieces;
    const int piece = tid % kRowPieces;
    const int mask = (1 << in.page_shift) - 1;
    const std::byte* base =
        in.base + (kValues ? in.v_offset : 0) + kv_head * in.head_bytes + piece * 16;
    std::byte* into = to + at(row_first, piece);
    UPDRAFT_UNROLL_BY(4)
    for (int row = row_first; row < kTilePositions; row += kRows) {
      const bool valid = first + row < end;
      const int position = valid ? first + row : first;
      const std::byte* from =
          base + table[position >> in.page_shift] * in.page_bytes + (position & mask) * kRowBytes;
      copy_async16(into, from, valid);
      into += kRows * kRowBytes;
    }
    if constexpr (kBytes) {
      // Four scales a copy; pages hold whole fours.
      if (tid < kTilePositions / 4) {
        const int row = tid * 4;
        const bool valid = first + row < end;
        const int position = valid ? first + row : first;
        const std::byte* from = in.base + table[position >> in.page_shift] * in.page_bytes +
                                (kValues ? in.v_scale_offset : in.k_scale_offset) +
                                ((kv_head << in.page_shift) + (position & mask)) * 4;
        copy_async16(to + kScaleOffset + row * 4, from, valid);
      }
    }
  }

  // The scale of a position's bytes, by which its scores (keys) or weights (values) are multiplied.
  static UPDRAFT_DEVICE float scale(const std::byte* tile, int position) {
    return shared_float(tile + kScaleOffset + position * 4);
  }

  // Which dimension an A fragment's element stands for: half 0 or 1 of the registers, first of two
  // neighbours, of 16 dimensions in lane t = lane % 4.
  static UPDRAFT_DEVICE int query_dim(int t, int half) {
    return kBytes ? 4 * t + half * 2 : 2 * t + half * 8;
  }

  // B fragments of q k: dimensions 16 k .. + 15 of the positions row .. row + 7 (b[0], b[1]) and
  // row + 8 .. row + 15; `row` is a multiple of 8, keys_at the lane's place for the first ones.
  static UPDRAFT_DEVICE int keys_at(int lane) {
    if constexpr (kBytes) return at(lane / 4, 0) + 4 * (lane % 4);
    return at(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  }
  static UPDRAFT_DEVICE void keys(uint32_t (&b)[4], const std::byte* tile, int keys_at, int row,
                                  int k) {
    if constexpr (kBytes) {
      const std::byte* from = tile + (keys_at ^ 16 * k) + row * kRowBytes;
      UPDRAFT_UNROLL
      for (int j = 0; j < 2; ++j) {
        const uint32_t word = *reinterpret_cast<const uint32_t*>(from + j * 8 * kRowBytes);
        b[2 * j] = byte_pair<kType, 0, 1>(word);
        b[2 * j + 1] = byte_pair<kType, 2, 3>(word);
      }
    } else {
      load_matrix(b, tile + (keys_at ^ 32 * k) + row * kRowBytes);
    }
  }

  // B fragments of p v: of 16 positions from `row`, kValueTiles tiles of 8 dimensions from tile
  // n * kValueTiles on.
  static constexpr int kValueTiles = kBytes ? 4 : 2;
  static UPDRAFT_DEVICE int values_at(int lane) { return at(lane % 16, lane / 16); }
  static UPDRAFT_DEVICE void values(uint32_t (&b)[kValueTiles][2], const std::byte* tile,
                                    int values_at, int row, int n) {
    uint32_t word[4];
    load_matrix_transposed(word, tile + (values_at ^ 32 * n) + row * kRowBytes);
    if constexpr (kBytes) {
      UPDRAFT_UNROLL
      for (int j = 0; j < 2; ++j) {
        UPDRAFT_UNROLL
        for (int half = 0; half < 2; ++half) {
          b[2 * j][half] = byte_pair<kType, 0, 2>(word[2 * j + half]);
          b[2 * j + 1][half] = byte_pair<kType, 1, 3>(word[2 * j + half]);
        }
      }
    } else {
      UPDRAFT_UNROLL
      for (int j = 0; j < 4; ++j) b[j / 2][j % 2] = word[j];
    }
  }
  // The dimension of column `column` of tile `n` of the sums.
  static UPDRAFT_DEVICE int value_dim(int n, int column) {
    return kBytes ? n / 2 * 16 + 2 * column + n % 2 : n * 8 + column;
  }
};

}  // namespace updraft::cuda
