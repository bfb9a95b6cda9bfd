// Where K and V lie in the pool. A page of the pool is, for each layer and kv head in turn, a page
// of that head, so that what a step writes for all layers lies close together: a few tokens take a
// few megabytes from the system, not a huge page for every layer and head.
//
//   page of a head:
//     K in groups of 16 positions, each [head_dim padded to 4][16]: one register holds one
//       dimension of 16 keys, so 16 scores need no horizontal sums
//     V as rows [position][head_dim padded to 16]
//     int8 pages only: the scales of K, then of V, f32 [positions padded to 16]
//
// bf16 where the instruction set multiplies pairs: K groups are [head_dim / 2][16][2], V groups of
// 16 positions are [8][head_dim][2 positions].
//
// int8: 4 bytes that a dot product takes at once lie together. K groups are [head_dim / 4][16][4],
// V groups of 16 positions are [4][head_dim][4 positions]. The bytes are those of the rotated heads
// (head_rotation.h), offset by 128 where the instruction set wants them unsigned.
#pragma once

#include <cstdint>

#include "kernels/quant/dtype.h"

namespace updraft {

inline constexpr int kKeyGroup = 16;   // positions interleaved in K
inline constexpr int kKeyChunk = 128;  // keys between two updates of the running softmax
inline constexpr int kSegmentChunks =
    4;  // chunks per segment: the unit in which threads share a long sequence
inline constexpr int kQueryGroup = 8;  // queries that share one read of K and V

struct KvLayout {
  DType type = DType::kF16;
  int head_dim = 0;
  int head_dim_padded = 0;  // multiple of 16
  int page_tokens = 0;
  int groups_per_page = 0;
  int64_t k_group_bytes = 0;
  int64_t v_offset_bytes = 0;
  int64_t v_row_bytes = 0;
  int64_t k_scale_offset_bytes = 0;
  int64_t v_scale_offset_bytes = 0;
  int64_t page_bytes = 0;   // of one kv head in one layer
  int64_t page_stride = 0;  // bytes from a page of one kv head in one layer to the next page of it

  static constexpr int value_bytes(DType type) {
    return type == DType::kF32 ? 4 : type == DType::kQ8_0 ? 1 : 2;
  }

  // heads: kv heads of all layers.
  static constexpr KvLayout of(DType type, int head_dim, int page_tokens, int64_t heads) {
    KvLayout kv;
    const int bytes = value_bytes(type);
    kv.type = type;
    kv.head_dim = head_dim;
    kv.head_dim_padded = (head_dim + 15) / 16 * 16;
    kv.page_tokens = page_tokens;
    kv.groups_per_page = (page_tokens + kKeyGroup - 1) / kKeyGroup;
    const int64_t slots = static_cast<int64_t>(kv.groups_per_page) * kKeyGroup;
    kv.k_group_bytes = static_cast<int64_t>((head_dim + 3) / 4 * 4) * kKeyGroup * bytes;
    kv.v_offset_bytes = (kv.groups_per_page * kv.k_group_bytes + 63) / 64 * 64;
    kv.v_row_bytes = static_cast<int64_t>(kv.head_dim_padded) * bytes;
    kv.k_scale_offset_bytes = (kv.v_offset_bytes + slots * kv.v_row_bytes + 63) / 64 * 64;
    const int64_t scale_bytes = type == DType::kQ8_0 ? slots * 4 : 0;
    kv.v_scale_offset_bytes = kv.k_scale_offset_bytes + scale_bytes;
    kv.page_bytes = kv.v_scale_offset_bytes + scale_bytes;
    kv.page_stride = kv.page_bytes * heads;
    return kv;
  }
};

}  // namespace updraft
