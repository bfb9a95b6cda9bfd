// Flash attention over pages of bfloat16 by three warpgroups. The third brings in tiles of 64
// positions, keys and values each in a ring of their own. The other two have 64 rows of a unit's
// 128 each: the queries stay in registers; scores are queries times keys (K-major), sums are
// weights from registers times values (MN-major). While the values of one tile are added up, the
// scores of the next become weights; while one group waits for scores, the other is elsewhere.
//
// Sums, chunks and units are those of prefill_attention.cu, so a row's bits depend on its position
// alone here too; they are not that kernel's bits.
//
// Every wait has a bound: who gives up has NaN for a weight, and goes on to the end.
#include <algorithm>

#include "kernels/cuda/prefill_sums.h"
#include "kernels/cuda/prefill_warpgroup.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warpgroup.h"

namespace updraft::cuda {
// Not nameless: what targets without warpgroups leave unused is no warning then.
namespace prefill_groups {

inline constexpr int kMultiplyThreads = 2 * kGroupThreads;
inline constexpr int kMultiplyWarps = kMultiplyThreads / 32;
inline constexpr int kThreads = 3 * kGroupThreads;
inline constexpr int kGroupRows = 64;
inline constexpr int kStages = 4;
inline constexpr int kHalfBytes = kTilePositions * 128;  // 64 positions of 64 dimensions
inline constexpr int kSteps = kTilePositions / 16;

template <int kDim>
struct GroupTiles {
  static constexpr int kHalves = kDim / 64;
  static constexpr int kTileBytes = kHalves * kHalfBytes;
  static constexpr int kAheadBytes = 2 * kPatternBytes;
  static constexpr int kSharedBytes = kAheadBytes + 2 * kStages * kTileBytes;
};

// One of the two rings.
struct TileRing {
  uint64_t* full;
  uint64_t* empty;
  std::byte* tiles;
};
struct Rings {
  TileRing keys;
  TileRing values;
};
template <int kDim>
UPDRAFT_DEVICE Rings rings_of_block() {
  auto* barriers = dynamic_shared<uint64_t>();
  std::byte* tiles = next_pattern(dynamic_shared<std::byte>() + 4 * kStages * sizeof(uint64_t));
  return {{barriers, barriers + kStages, tiles},
          {barriers + 2 * kStages, barriers + 3 * kStages,
           tiles + kStages * GroupTiles<kDim>::kTileBytes}};
}

// Where both rings stand: which slot, and the parity of the phase in which it is filled.
struct Turn {
  int slot = 0;
  uint32_t parity = 0;
  UPDRAFT_DEVICE void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1U;
    }
  }
};

template <int kOfDim>
struct GroupSums {
  static constexpr int kTiles = 1;
  static constexpr int kDim = kOfDim;
  static constexpr int kThreads = kMultiplyThreads;
  float values[kDim / 2];
  float largest[1][2];
  float weight[1][2];
  UPDRAFT_DEVICE float& at(int /*m*/, int n, int i) { return values[4 * n + i]; }
};

// The positions of a unit, or of its chunk.
struct Positions {
  int begin;
  int end;
};
UPDRAFT_DEVICE Positions positions_of(const PrefillArguments& in, const PrefillUnit& unit) {
  const int tile_end = unit.end(in.shared_heads);
  const int begin = unit.chunk * kPrefillChunk;  // 0 where all chunks are ours
  return {begin, in.split && begin + kPrefillChunk < tile_end ? begin + kPrefillChunk : tile_end};
}

struct PageRows {  // of the matrix that the map describes: rows of padded_dim
  int32_t page;
  int32_t head;
  int32_t values;
  int32_t box;  // rows of one copy: a page's, at most a tile
};

// One warp brings in the tiles of all units of the block.
template <int kDim>
UPDRAFT_DEVICE void bring_tiles(const PrefillArguments& in, const PageRows& page,
                                const TensorMap* map, const Rings& rings, int lane) {
  using T = GroupTiles<kDim>;
  Turn turn;
  bool free = true;  // the first round finds the slots so
  for (int64_t number = block_x();; number += grid_x()) {
    PrefillUnit unit;
    const bool found =
        in.split ? find_unit<true>(in, number, &unit) : find_unit<false>(in, number, &unit);
    if (!found) return;
    const int32_t* table = in.table + static_cast<int64_t>(unit.slice.line) * in.table_stride;
    const Positions positions = positions_of(in, unit);
    UPDRAFT_NO_UNROLL
    for (int first = positions.begin; first < positions.end; first += kTilePositions) {
      const int left = positions.end - first;
      const int filled = left < kTilePositions ? left : kTilePositions;
      const int boxes = (filled + page.box - 1) / page.box;
      // Lane 2 * b + h (with one half: b) copies half h of box b.
      const int box = lane / T::kHalves;
      const int half = lane % T::kHalves;
      const int position = first + box * page.box;
      const bool copies = box < boxes;
      const int row = copies ? table[position >> in.layer.page_shift] * page.page +
                                   unit.kv_head * page.head +
                                   (position & ((1 << in.layer.page_shift) - 1))
                             : 0;
      const int at = turn.slot * T::kTileBytes + half * kHalfBytes + box * page.box * 128;
      const auto bytes = static_cast<uint32_t>(boxes * T::kHalves * page.box * 128);
      UPDRAFT_UNROLL
      for (int part = 0; part < 2; ++part) {
        const TileRing& ring = part == 0 ? rings.keys : rings.values;
        if (!free && !all(wait_phase(ring.empty + turn.slot, turn.parity ^ 1U))) return;
        if (lane == 0) arrive_expecting(ring.full + turn.slot, bytes);
        if (copies) {
          copy_box(ring.tiles + at, map, half * 64, row + part * page.values,
                   ring.full + turn.slot);
        }
      }
      turn.advance();
      free = free && turn.slot != 0;
    }
  }
}

// Rows g and g + 8 of a warp: what of the queries their mma registers hold, and the last position
// that each sees. Rows behind the last one see what it does.
template <int kDim>
struct GroupQueries {
  uint32_t words[kDim / 16][4];
  int last[2];

  UPDRAFT_DEVICE void load_rows(const PrefillArguments& in, const PrefillUnit& unit, int warp,
                                int lane) {
    const int rows = unit.rows(in.shared_heads);
    UPDRAFT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = unit.tile * kPrefillTileRows + warp * 16 + lane / 4 + 8 * half;
      const int known = row < rows ? row : rows - 1;
      last[half] = unit.slice.cached_count + known / in.shared_heads;
      const int64_t q_row = unit.slice.row_first + known / in.shared_heads;
      const int64_t head = unit.kv_head * in.shared_heads + known % in.shared_heads;
      const Bf16* q = in.q + q_row * in.q_stride + head * in.layer.head_dim;
      UPDRAFT_UNROLL
      for (int k = 0; k < kDim / 16; ++k) {
        UPDRAFT_UNROLL
        for (int j = 0; j < 2; ++j) {
          const int dim = 16 * k + 8 * j + 2 * (lane % 4);
          words[k][half + 2 * j] =
              dim < in.layer.head_dim ? load(reinterpret_cast<const uint32_t*>(q + dim)) : 0U;
        }
      }
    }
  }
};

using GroupScores = float[kTilePositions / 2];

// scores = queries times the keys of a tile, from now to a group_wait().
template <int kDim>
UPDRAFT_DEVICE void start_scores(GroupScores& scores, const GroupQueries<kDim>& queries,
                                 const std::byte* keys) {
  const uint64_t matrix = k_major_matrix(shared_address(keys));
  group_fence();
  group_mma_bf16_first(scores, queries.words[0], matrix);
  UPDRAFT_UNROLL
  for (int k = 1; k < kDim / 16; ++k) {
    // 16 dimensions are 32 bytes of a row; 64 are a half.
    constexpr uint64_t kHalfStep = kHalfBytes >> 4;
    group_mma_bf16(
        scores, queries.words[k],
        matrix + static_cast<uint64_t>(k / 4) * kHalfStep + static_cast<uint64_t>(2 * (k % 4)));
  }
  group_commit();
}

// sums += weights times the values of a tile, likewise.
template <int kDim>
UPDRAFT_DEVICE void start_values(GroupSums<kDim>& sums, const uint32_t (&weights)[kSteps][4],
                                 const std::byte* values) {
  const uint64_t matrix = mn_major_matrix(shared_address(values), kHalfBytes);
  group_fence();
  UPDRAFT_UNROLL
  for (int k = 0; k < kSteps; ++k) {
    constexpr uint64_t kStep = 16 * 128 >> 4;  // 16 positions
    group_mma_bf16_transposed(sums.values, weights[k], matrix + static_cast<uint64_t>(k) * kStep);
  }
  group_commit();
}

// Takes from the scores of the positions `first` .. those that a row does not see.
UPDRAFT_DEVICE void mask(GroupScores& scores, int first, const int (&last)[2], int lane) {
  UPDRAFT_UNROLL
  for (int i = 0; i < kTilePositions / 2; ++i) {
    const int position = first + i / 4 * 8 + 2 * (lane % 4) + i % 2;
    if (position > last[i / 2 % 2]) scores[i] = kNever;
  }
}

// From scores to weights. fade: by which the sums so far are to be multiplied.
template <int kDim>
UPDRAFT_DEVICE void weigh(GroupScores& scores, GroupSums<kDim>& sums, float (&fade)[2],
                          float scale_log2) {
  UPDRAFT_UNROLL
  for (int half = 0; half < 2; ++half) {
    float top = sums.largest[0][half];
    UPDRAFT_UNROLL
    for (int i = 0; i < kTilePositions / 2; ++i) {
      if (i / 2 % 2 == half) top = top > scores[i] ? top : scores[i];
    }
    UPDRAFT_UNROLL
    for (uint32_t step = 1; step <= 2; step *= 2) {
      const float other = shuffle_xor(top, step);
      top = top > other ? top : other;
    }
    fade[half] = exp2_fast((sums.largest[0][half] - top) * scale_log2);
    sums.largest[0][half] = top;
    // A row that has seen nothing of the chunk has weights of zero, not of 2^(a rounding error of
    // 1e30).
    const float base = top > kNever ? -top * scale_log2 : 0.0F;
    float weight = 0.0F;
    UPDRAFT_UNROLL
    for (int i = 0; i < kTilePositions / 2; ++i) {
      if (i / 2 % 2 != half) continue;
      scores[i] = exp2_fast(fma(scores[i], scale_log2, base));
      weight += scores[i];
    }
    sums.weight[0][half] = fma(sums.weight[0][half], fade[half], weight);
  }
}

// What lies behind the end may be anything, and zero times NaN is one: both groups write the same
// zeros, each before its own products.
template <int kDim>
UPDRAFT_DEVICE void clear_behind_end(std::byte* values, int filled) {
  const int thread = static_cast<int>(thread_x()) % kGroupThreads;
  for (int i = filled * 8 + thread; i < kTilePositions * 8; i += kGroupThreads) {
    UPDRAFT_UNROLL
    for (int half = 0; half < kDim / 64; ++half) {
      *reinterpret_cast<Vec16*>(values + half * kHalfBytes + i * 16) = Vec16{};
    }
  }
  fence_async();
  if (thread_x() < kGroupThreads) {
    sync_named(1, kGroupThreads);
  } else {
    sync_named(2, kGroupThreads);
  }
}

// What a warp of the multiplying groups keeps from unit to unit.
template <int kDim>
struct Multiplier {
  using T = GroupTiles<kDim>;
  const PrefillArguments& in;
  const Rings& rings;
  int warp;
  int lane;
  Turn turn;
  bool whole = true;
  GroupSums<kDim> sums;

  UPDRAFT_DEVICE void wait(const TileRing& ring, int slot, uint32_t parity) {
    if (whole) whole = all(wait_phase(ring.full + slot, parity));
  }
  UPDRAFT_DEVICE void release(const TileRing& ring, int slot) const {
    sync_warp();
    if (lane == 0) arrive_at(ring.empty + slot);
  }
  UPDRAFT_DEVICE Vec16* aside(const PrefillUnit& unit) const {
    const int64_t slot = in.split
                             ? unit.slot + static_cast<int64_t>(unit.chunk) * in.layer.kv_head_count
                             : static_cast<int64_t>(block_x());
    return in.workspace + slot * kSlotVectors<GroupSums<kDim>> * kMultiplyThreads;
  }
  UPDRAFT_DEVICE void make_scores(GroupScores& scores, const GroupQueries<kDim>& queries) {
    wait(rings.keys, turn.slot, turn.parity);
    start_scores(scores, queries, rings.keys.tiles + turn.slot * T::kTileBytes);
    group_wait<0>();
    pin(scores);
    release(rings.keys, turn.slot);
  }
  // What the other group alone sees.
  UPDRAFT_DEVICE void pass_over(int tiles) {
    UPDRAFT_NO_UNROLL
    for (int i = 0; i < tiles; ++i) {
      wait(rings.keys, turn.slot, turn.parity);
      release(rings.keys, turn.slot);
      wait(rings.values, turn.slot, turn.parity);
      release(rings.values, turn.slot);
      turn.advance();
    }
  }

  // The positions [begin, end) of one chunk, of which some row of the group sees the begin;
  // first_seen: the last one that its first row sees. Nothing is under way before and after it:
  // ptxas wants sums that other instructions touch apart from the products.
  UPDRAFT_DEVICE void attend_chunk(const GroupQueries<kDim>& queries, int begin, int end,
                                   int first_seen) {
    GroupScores scores;
    uint32_t weights[kSteps][4];
    bool open = false;  // products with the values of slot_before are under way
    int slot_before = 0;
    make_scores(scores, queries);
    UPDRAFT_NO_UNROLL
    for (int first = begin; first < end; first += kTilePositions) {
      if (first + kTilePositions - 1 > first_seen) mask(scores, first, queries.last, lane);
      float fade[2];
      weigh(scores, sums, fade, in.scale_log2);
      group_wait<0>();  // what is added to is there
      pin(sums.values);
      if (open) release(rings.values, slot_before);
      UPDRAFT_UNROLL
      for (int i = 0; i < kDim / 2; ++i) sums.values[i] *= fade[i / 2 % 2];
      pin(sums.values);
      UPDRAFT_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        UPDRAFT_UNROLL
        for (int j = 0; j < 4; ++j) {
          const int at = 4 * (2 * k + j / 2) + j % 2 * 2;
          weights[k][j] = pack_bf16(scores[at], scores[at + 1]);
        }
      }

      const Turn now = turn;
      turn.advance();
      const int next = first + kTilePositions;
      // Not beside the products with the values: ptxas would make both wait.
      if (next < end) make_scores(scores, queries);
      wait(rings.values, now.slot, now.parity);
      std::byte* values = rings.values.tiles + now.slot * T::kTileBytes;
      if (next > end) clear_behind_end<kDim>(values, end - first);
      start_values(sums, weights, values);
      open = true;
      slot_before = now.slot;
    }
    group_wait<0>();
    pin(sums.values);
    release(rings.values, slot_before);
  }

  UPDRAFT_DEVICE void attend(const PrefillUnit& unit) {
    const Positions positions = positions_of(in, unit);
    if (positions.begin >= positions.end) return;  // a chunk that none of the rows sees
    GroupQueries<kDim> queries;
    queries.load_rows(in, unit, warp, lane);
    // Of the group: the last position that its first and its last row see.
    const int rows_before = unit.tile * kPrefillTileRows + warp / 4 * kGroupRows;
    const int row_last = unit.rows(in.shared_heads) - 1;
    const auto position_of = [&](int row) {
      return unit.slice.cached_count + (row < row_last ? row : row_last) / in.shared_heads;
    };
    const int first_seen = position_of(rows_before);
    const int last_seen = position_of(rows_before + kGroupRows - 1);

    UPDRAFT_NO_UNROLL
    for (int begin = positions.begin; begin < positions.end; begin += kPrefillChunk) {
      const int end = begin + kPrefillChunk < positions.end ? begin + kPrefillChunk : positions.end;
      // Whole tiles, as long as some row of the group sees their begin.
      const int tiles = (end - begin + kTilePositions - 1) / kTilePositions;
      int seen = last_seen < begin ? 0 : (last_seen - begin) / kTilePositions + 1;
      seen = seen < tiles ? seen : tiles;
      clear(sums);
      if (seen > 0) {
        const int seen_end = begin + seen * kTilePositions;
        attend_chunk(queries, begin, seen_end < end ? seen_end : end, first_seen);
      }
      pass_over(tiles - seen);
      if (!whole) sums.weight[0][0] = sums.weight[0][1] = bits_float(0x7FC00000U);
      if (in.split) {
        put_aside(sums, aside(unit));
        return;
      }
      if (begin > 0) join<false>(sums, aside(unit), in.scale_log2);
      if (end < positions.end) put_aside(sums, aside(unit));
    }
    finish<KvType::kBf16>(in, unit, sums);
  }
};

template <int kDim>
UPDRAFT_KERNEL_ALONE(kThreads)
prefill_warpgroup_kernel(const UPDRAFT_GRID_CONSTANT TensorMap map, PrefillArguments in,
                         PageRows page) {
  if constexpr (kHasWarpgroups) {
    const Rings rings = rings_of_block<kDim>();
    const int warp = static_cast<int>(thread_x()) / 32;
    const int lane = static_cast<int>(thread_x()) % 32;
    if (thread_x() == 0) {
      UPDRAFT_UNROLL
      for (int i = 0; i < kStages; ++i) {
        init_barrier(rings.keys.full + i, 1);
        init_barrier(rings.values.full + i, 1);
        init_barrier(rings.keys.empty + i, kMultiplyWarps);
        init_barrier(rings.values.empty + i, kMultiplyWarps);
      }
      publish_barriers();
    }
    sync_block();
    if (warp >= kMultiplyWarps) {
      if constexpr (kDim == 128) fewer_registers<kBringRegisters>();
      if (warp == kMultiplyWarps) bring_tiles<kDim>(in, page, &map, rings, lane);
    } else {
      if constexpr (kDim == 128) more_registers<kMultiplyRegisters>();  // else they have enough
      Multiplier<kDim> multiplier{in, rings, warp, lane, {}, true, {}};
      for (int64_t number = block_x();; number += grid_x()) {
        PrefillUnit unit;
        const bool found =
            in.split ? find_unit<true>(in, number, &unit) : find_unit<false>(in, number, &unit);
        if (!found) return;
        multiplier.attend(unit);
      }
    }
  } else {
    stop_device();  // the host never starts it here
  }
}

// The chunks of a tile, each in its slot, in their order.
template <int kDim>
UPDRAFT_KERNEL(kMultiplyThreads)
join_group_chunks_kernel(PrefillArguments in) {
  PrefillUnit unit;
  if (!find_unit<false>(in, block_x(), &unit)) return;
  const int end = unit.end(in.shared_heads);
  GroupSums<kDim> sums;
  clear(sums);
  const Vec16* slot = in.workspace + unit.slot * kSlotVectors<GroupSums<kDim>> * kMultiplyThreads;
  for (int first = 0; first < end; first += kPrefillChunk) {
    // Nothing joined with the first chunk is the first chunk: its part of the sum is exact.
    join<true>(sums, slot, in.scale_log2);
    slot += static_cast<int64_t>(in.layer.kv_head_count) * kSlotVectors<GroupSums<kDim>> *
            kMultiplyThreads;
  }
  finish<KvType::kBf16>(in, unit, sums);
}

template <int kDim>
Result<void> run(const PrefillAttention& op, const PrefillArguments& in, int64_t units,
                 Stream stream) {
  const KvPages& pages = op.pages;
  const int64_t row_bytes = int64_t{kDim} * 2;
  PageRows page;
  page.page = static_cast<int32_t>(pages.page_bytes / row_bytes);
  page.head = static_cast<int32_t>(pages.head_bytes / row_bytes);
  page.values = static_cast<int32_t>(pages.v_offset / row_bytes);
  page.box = std::min(pages.page_tokens, kTilePositions);
  // How many pages there are is not known here; the copies stay within those that the table names.
  BoxedMatrix matrix;
  matrix.data = reinterpret_cast<const Bf16*>(in.layer.base);
  matrix.rows = INT32_MAX;
  matrix.cols = kDim;
  matrix.stride = kDim;
  matrix.box_rows = page.box;
  TensorMap map;
  if (Result<void> made = make_tensor_map(matrix, &map); !made) return made;
  LaunchShape shape;
  shape.grid.x = static_cast<uint32_t>(std::min<int64_t>(units, op.multiprocessor_count));
  shape.block = {kThreads, 1, 1};
  shape.shared_bytes = GroupTiles<kDim>::kSharedBytes;
  auto launched = launch(prefill_warpgroup_kernel<kDim>, shape, stream, map, in, page);
  if (!launched || !in.split) return launched;
  const int64_t rows = int64_t{op.row_count_max} * in.shared_heads;
  shape.grid.x = static_cast<uint32_t>((rows + kPrefillTileRows - 1) / kPrefillTileRows *
                                       in.layer.kv_head_count * op.slice_count);
  shape.block = {kMultiplyThreads, 1, 1};
  shape.shared_bytes = 0;
  return launch(join_group_chunks_kernel<kDim>, shape, stream, in);
}

}  // namespace prefill_groups

Result<void> run_prefill_warpgroup(const PrefillAttention& op, const PrefillArguments& in,
                                   int64_t units, Stream stream) {
  return op.pages.padded_dim == 64 ? prefill_groups::run<64>(op, in, units, stream)
                                   : prefill_groups::run<128>(op, in, units, stream);
}

}  // namespace updraft::cuda
