// How prefill attention is cut into units of work, for both of its kernels: the query heads that
// share a key head lie beside each other in the rows of a tile: row i of 128 is query row i /
// shared of the slice, head i % shared of the key head.
#pragma once

#include "kernels/cuda/kv_tile.h"
#include "kernels/cuda/prefill_attention.h"

namespace updraft::cuda {

inline constexpr int kPrefillTileRows = 128;

struct PrefillArguments {
  KvLayer layer;
  const Bf16* q;
  int64_t q_stride;
  const PrefillSlice* slices;
  int32_t slice_count;
  const int32_t* table;
  int32_t table_stride;
  int32_t head_count;
  int32_t shared_heads;  // query heads of one key head
  float scale_log2;
  Bf16* out;
  Vec16* workspace;
  bool split;  // a block for each chunk
};

// One tile of a slice for one key head, all of its positions or one chunk of them.
struct PrefillUnit {
  PrefillSlice slice;
  int tile;
  int kv_head;
  int chunk;     // where blocks have a chunk each
  int chunks;    // of the slice
  int64_t slot;  // chunk 0's in the workspace; kv_head_count slots to the next chunk's

  UPDRAFT_DEVICE int rows(int shared_heads) const { return slice.row_count * shared_heads; }
  // One behind the last position that a row of the tile sees.
  UPDRAFT_DEVICE int end(int shared_heads) const {
    const int last = (tile + 1) * kPrefillTileRows - 1;
    const int rows_all = rows(shared_heads);
    return slice.cached_count + (last < rows_all ? last : rows_all - 1) / shared_heads + 1;
  }
};

// The unit of this number, of whole tiles or of chunks of them; false behind the last.
template <bool kOfChunks>
UPDRAFT_DEVICE bool find_unit(const PrefillArguments& in, int64_t number, PrefillUnit* out) {
  int64_t slot_first = 0;
  for (int s = 0; s < in.slice_count; ++s) {
    const PrefillSlice slice = load(in.slices + s);
    const int tiles = (slice.row_count * in.shared_heads + kPrefillTileRows - 1) / kPrefillTileRows;
    const int chunks = (slice.cached_count + slice.row_count + kPrefillChunk - 1) / kPrefillChunk;
    const int heads = in.layer.kv_head_count;
    const int64_t units = static_cast<int64_t>(tiles) * heads * (kOfChunks ? chunks : 1);
    if (number < units) {
      const auto in_slice = static_cast<int>(number);
      out->slice = slice;
      out->kv_head = in_slice % heads;
      out->chunk = kOfChunks ? in_slice / heads % chunks : 0;
      const int rank = kOfChunks ? in_slice / heads / chunks : in_slice / heads;
      out->tile = tiles - 1 - rank;
      out->chunks = chunks;
      out->slot = slot_first + static_cast<int64_t>(rank) * chunks * heads + out->kv_head;
      return true;
    }
    number -= units;
    slot_first += static_cast<int64_t>(tiles) * heads * chunks;
  }
  return false;
}

}  // namespace updraft::cuda
