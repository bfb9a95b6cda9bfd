// Flash attention over pages. Each of 4 warps has 32 rows of a tile (prefill_unit.h) and reads the
// same tiles of 64 positions: the next keys arrive while the values are added up, the values while
// the scores are made. Blocks take tile after tile, the longest ones first.
//
// The sums of a chunk of positions live in registers; at its end they are added to those of the
// chunks before, which wait in the block's part of the workspace. A launch with too few tiles for
// the device gives each chunk of a tile to a block of its own, and a second kernel adds them in the
// same order with the same operations.
#include <algorithm>
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/prefill_sums.h"
#include "kernels/cuda/prefill_warpgroup.h"

namespace updraft::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kMmaRows = 16;
constexpr int kWarpTiles = 2;  // of 16 rows
constexpr int kTileRows = kPrefillTileRows;
static_assert(kTileRows == kWarps * kWarpTiles * kMmaRows);
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int64_t kSplitBytesMax = int64_t{64} << 20;

// What a warp's lane keeps of its rows g, g + 8, g + 16, g + 24.
template <int kOfDim>
struct Sums {
  static constexpr int kTiles = kWarpTiles;
  static constexpr int kDim = kOfDim;
  static constexpr int kThreads = 32 * kWarps;
  float values[kTiles][kDim / 8][4];
  float largest[kTiles][2];  // score, not scaled
  float weight[kTiles][2];   // of the lane's columns
  UPDRAFT_DEVICE float& at(int m, int n, int i) { return values[m][n][i]; }
};

template <KvType kType, int kDim>
struct Shape {
  using Tile = KvTile<kType, kDim>;
  using Query = KvTile<KvType::kBf16, kDim>;  // the same layout, of 128 rows
  static constexpr int kQueryBytes = kTileRows * kDim * 2;
  static constexpr int kSharedBytes = kQueryBytes + 2 * Tile::kTileBytes;
};

// The tile's queries into shared memory; rows and dimensions behind the last are zero. Where pages
// hold bytes the dimensions of 16 change places as those of the keys do (kv_tile.h).
template <KvType kType, int kDim>
UPDRAFT_DEVICE void load_queries(const PrefillArguments& in, const PrefillUnit& unit,
                                 std::byte* queries) {
  using S = Shape<kType, kDim>;
  const int rows = unit.rows(in.shared_heads);
  for (int i = static_cast<int>(thread_x()); i < kTileRows * kDim / 16; i += kThreads) {
    const int row = i / (kDim / 16);
    const int block = i % (kDim / 16);
    const int in_slice = unit.tile * kTileRows + row;
    Vec16 piece[2] = {};
    UPDRAFT_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int dim = block * 16 + j * 8;
      if (in_slice >= rows || dim >= in.layer.head_dim) continue;
      const int64_t q_row = unit.slice.row_first + in_slice / in.shared_heads;
      const int64_t head = unit.kv_head * in.shared_heads + in_slice % in.shared_heads;
      piece[j] = load_written(reinterpret_cast<const Vec16*>(in.q + q_row * in.q_stride +
                                                             head * in.layer.head_dim + dim));
    }
    if constexpr (S::Tile::kBytes) {
      const Vec16 even = {{piece[0].word[0], piece[0].word[2], piece[1].word[0], piece[1].word[2]}};
      const Vec16 odd = {{piece[0].word[1], piece[0].word[3], piece[1].word[1], piece[1].word[3]}};
      piece[0] = even;
      piece[1] = odd;
    }
    *reinterpret_cast<Vec16*>(queries + S::Query::at(row, 2 * block)) = piece[0];
    *reinterpret_cast<Vec16*>(queries + S::Query::at(row, 2 * block + 1)) = piece[1];
  }
}

using Scores = float[kWarpTiles][kTilePositions / 8][4];

template <KvType kType, int kDim>
UPDRAFT_DEVICE void score(Scores& scores, const std::byte* queries, const std::byte* keys,
                          int lane) {
  using S = Shape<kType, kDim>;
  // Kept from being known before the loop over positions: registers are few.
  const int queries_at = opaque(S::Query::values_at(lane));
  const int keys_at = opaque(S::Tile::keys_at(lane));
  UPDRAFT_UNROLL
  for (int m = 0; m < kWarpTiles; ++m) {
    UPDRAFT_UNROLL
    for (int n = 0; n < kTilePositions / 8; ++n) {
      UPDRAFT_UNROLL
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0F;
    }
  }
  UPDRAFT_UNROLL
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t q[kWarpTiles][4];
    UPDRAFT_UNROLL
    for (int m = 0; m < kWarpTiles; ++m) {
      load_matrix(q[m], queries + (queries_at ^ 32 * k) + m * kMmaRows * S::Query::kRowBytes);
    }
    UPDRAFT_UNROLL
    for (int n = 0; n < kTilePositions / 16; ++n) {
      uint32_t b[4];
      S::Tile::keys(b, keys, keys_at, n * 16, k);
      UPDRAFT_UNROLL
      for (int m = 0; m < kWarpTiles; ++m) {
        mma_bf16(scores[m][2 * n], q[m], b[0], b[1]);
        mma_bf16(scores[m][2 * n + 1], q[m], b[2], b[3]);
      }
    }
  }
  if constexpr (S::Tile::kBytes) {
    UPDRAFT_UNROLL
    for (int n = 0; n < kTilePositions / 8; ++n) {
      UPDRAFT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float scale = S::Tile::scale(keys, n * 8 + 2 * (lane % 4) + i);
        UPDRAFT_UNROLL
        for (int m = 0; m < kWarpTiles; ++m) {
          scores[m][n][i] *= scale;
          scores[m][n][2 + i] *= scale;
        }
      }
    }
  }
}

// Takes from the scores of the positions `first` .. those that a row does not see.
template <typename PositionOf>
UPDRAFT_DEVICE void mask(Scores& scores, int first, int lane, const PositionOf& position_of) {
  const int row = opaque(lane / 4);  // seldom used: not kept in registers around the loop
  UPDRAFT_UNROLL
  for (int m = 0; m < kWarpTiles; ++m) {
    UPDRAFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int last = position_of(m * kMmaRows + i * 8 + row) - first - 2 * (lane % 4);
      UPDRAFT_UNROLL
      for (int n = 0; n < kTilePositions / 8; ++n) {
        UPDRAFT_UNROLL
        for (int j = 0; j < 2; ++j) {
          if (n * 8 + j > last) scores[m][n][2 * i + j] = kNever;
        }
      }
    }
  }
}

// From the scores of the positions `first` .. to their weights, with which the sums go on.
template <KvType kType, int kDim>
UPDRAFT_DEVICE void weigh(Scores& scores, Sums<kDim>& sums, const std::byte* values, int first,
                          int end, float scale_log2, int lane) {
  using Tile = KvTile<kType, kDim>;
  const int column = 2 * (lane % 4);
  float fade[kWarpTiles][2];
  bool fades = false;
  UPDRAFT_UNROLL
  for (int m = 0; m < kWarpTiles; ++m) {
    UPDRAFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      float top = sums.largest[m][i];
      UPDRAFT_UNROLL
      for (int n = 0; n < kTilePositions / 8; ++n) {
        top = top > scores[m][n][2 * i] ? top : scores[m][n][2 * i];
        top = top > scores[m][n][2 * i + 1] ? top : scores[m][n][2 * i + 1];
      }
      UPDRAFT_UNROLL
      for (uint32_t step = 1; step <= 2; step *= 2) {
        const float other = shuffle_xor(top, step);
        top = top > other ? top : other;
      }
      fade[m][i] = exp2_fast((sums.largest[m][i] - top) * scale_log2);
      fades = fades || top > sums.largest[m][i];
      sums.largest[m][i] = top;
      // A row that has seen nothing of the chunk has weights of zero, not of 2^(a rounding error of
      // 1e30).
      const float base = top > kNever ? -top * scale_log2 : 0.0F;
      float weight = 0.0F;
      UPDRAFT_UNROLL
      for (int n = 0; n < kTilePositions / 8; ++n) {
        UPDRAFT_UNROLL
        for (int j = 2 * i; j < 2 * i + 2; ++j) {
          scores[m][n][j] = exp2_fast(fma(scores[m][n][j], scale_log2, base));
          weight += scores[m][n][j];
        }
      }
      sums.weight[m][i] = fma(sums.weight[m][i], fade[m][i], weight);
    }
  }
  if (any(fades)) {  // further on in a context the largest score is seldom a new one
    UPDRAFT_UNROLL
    for (int m = 0; m < kWarpTiles; ++m) {
      UPDRAFT_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        UPDRAFT_UNROLL
        for (int i = 0; i < 4; ++i) sums.values[m][n][i] *= fade[m][i / 2];
      }
    }
  }
  if constexpr (Tile::kBytes) {
    UPDRAFT_UNROLL
    for (int n = 0; n < kTilePositions / 8; ++n) {
      UPDRAFT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int position = n * 8 + column + i;
        // Beyond the end a scale may be anything.
        const float scale = first + position < end ? Tile::scale(values, position) : 0.0F;
        UPDRAFT_UNROLL
        for (int m = 0; m < kWarpTiles; ++m) {
          scores[m][n][i] *= scale;
          scores[m][n][2 + i] *= scale;
        }
      }
    }
  }
}

template <KvType kType, int kDim>
UPDRAFT_DEVICE void add_values(Sums<kDim>& sums, const Scores& weights, const std::byte* values,
                               int lane) {
  using Tile = KvTile<kType, kDim>;
  constexpr int kTiles = Tile::kValueTiles;
  const int values_at = opaque(Tile::values_at(lane));
  UPDRAFT_UNROLL
  for (int k = 0; k < kTilePositions / 16; ++k) {
    uint32_t p[kWarpTiles][4];
    UPDRAFT_UNROLL
    for (int m = 0; m < kWarpTiles; ++m) {
      UPDRAFT_UNROLL
      for (int j = 0; j < 4; ++j) {
        const float(&w)[4] = weights[m][2 * k + j / 2];
        p[m][j] = pack_bf16(w[j % 2 * 2], w[j % 2 * 2 + 1]);
      }
    }
    UPDRAFT_UNROLL
    for (int n = 0; n < kDim / 8 / kTiles; ++n) {
      uint32_t b[kTiles][2];
      Tile::values(b, values, values_at, k * 16, n);
      UPDRAFT_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        UPDRAFT_UNROLL
        for (int m = 0; m < kWarpTiles; ++m) {
          mma_bf16(sums.values[m][n * kTiles + j], p[m], b[j][0], b[j][1]);
        }
      }
    }
  }
}

template <KvType kType, int kDim>
UPDRAFT_DEVICE void attend(const PrefillArguments& in, const PrefillUnit& unit, std::byte* shared) {
  using S = Shape<kType, kDim>;
  using Tile = typename S::Tile;
  std::byte* queries = shared;
  std::byte* keys = queries + S::kQueryBytes;
  std::byte* values = keys + Tile::kTileBytes;
  const int warp = static_cast<int>(thread_x()) / 32;
  const int lane = static_cast<int>(thread_x()) % 32;
  const int32_t* table = in.table + static_cast<int64_t>(unit.slice.line) * in.table_stride;
  const int tile_end = unit.end(in.shared_heads);  // positions
  const int begin = unit.chunk * kPrefillChunk;    // 0 where all chunks are ours
  const int end = in.split && begin + kPrefillChunk < tile_end ? begin + kPrefillChunk : tile_end;
  if (begin >= end) return;

  Tile::template fetch<kThreads, false>(in.layer, table, unit.kv_head, begin, end, keys);
  copy_commit();
  load_queries<kType, kDim>(in, unit, queries);

  // Of the warp's rows. Rows behind the last one see what it does, and their output goes nowhere.
  const int rows_before = unit.tile * kTileRows + warp * kWarpTiles * kMmaRows;
  const auto position_of = [&](int row) {
    const int in_slice = rows_before + row;
    const int row_last = unit.rows(in.shared_heads) - 1;
    return unit.slice.cached_count + (in_slice < row_last ? in_slice : row_last) / in.shared_heads;
  };
  const int first_seen = position_of(0);  // the last position that the first row sees
  const int last_seen = position_of(kWarpTiles * kMmaRows - 1);

  const auto aside = [&] {
    const int64_t slot = in.split
                             ? unit.slot + static_cast<int64_t>(unit.chunk) * in.layer.kv_head_count
                             : static_cast<int64_t>(block_x());
    return in.workspace + slot * kSlotVectors<Sums<kDim>> * kThreads;
  };
  Sums<kDim> sums;
  clear(sums);
  for (int first = begin; first < end; first += kTilePositions) {
    copy_wait<0>();
    sync_block();  // the keys and queries are there, and nobody reads the values before any more
    Tile::template fetch<kThreads, true>(in.layer, table, unit.kv_head, first, end, values);
    copy_commit();
    const bool sees = first <= last_seen;
    Scores scores;
    if (sees) {
      score<kType, kDim>(scores, queries + warp * kWarpTiles * kMmaRows * S::Query::kRowBytes, keys,
                         lane);
    }
    copy_wait<0>();
    sync_block();  // the values are there, and nobody reads the keys any more
    if (first + kTilePositions < end) {
      Tile::template fetch<kThreads, false>(in.layer, table, unit.kv_head, first + kTilePositions,
                                            end, keys);
      copy_commit();
    }
    if (sees) {
      if (first + kTilePositions - 1 > first_seen) mask(scores, first, lane, position_of);
      weigh<kType, kDim>(scores, sums, values, first, end, in.scale_log2, lane);
      add_values<kType, kDim>(sums, scores, values, lane);
    }

    if (in.split || (first + kTilePositions) % kPrefillChunk != 0 ||
        first + kTilePositions >= end) {
      continue;
    }
    if (first >= kPrefillChunk) join<false>(sums, aside(), in.scale_log2);
    put_aside(sums, aside());
    clear(sums);
  }
  if (in.split) {
    put_aside(sums, aside());
    return;
  }
  if (end > kPrefillChunk) join<false>(sums, aside(), in.scale_log2);
  finish<kType>(in, unit, sums);
}

template <KvType kType, int kDim>
UPDRAFT_KERNEL(kThreads)
prefill_attention_kernel(PrefillArguments in) {
  let_next_start();
  wait_for_previous();
  auto* shared = dynamic_shared<std::byte>();
  auto* unit = shared_array<PrefillUnit, 1>();  // seldom read, and registers are few
  for (int64_t number = block_x();; number += grid_x()) {
    if (thread_x() == 0) {
      const bool found =
          in.split ? find_unit<true>(in, number, unit) : find_unit<false>(in, number, unit);
      if (!found) unit->tile = -1;
    }
    sync_block();
    if (unit->tile < 0) return;
    attend<kType, kDim>(in, *unit, shared);
    sync_block();  // nobody reads the unit any more
  }
}

// The chunks of a tile, each in its slot, in their order. Threads as in the kernel that made them.
template <KvType kType, int kDim>
UPDRAFT_KERNEL(kThreads)
join_chunks_kernel(PrefillArguments in) {
  let_next_start();
  wait_for_previous();
  PrefillUnit unit;
  if (!find_unit<false>(in, block_x(), &unit)) return;
  const int end = unit.end(in.shared_heads);
  Sums<kDim> sums;
  clear(sums);
  const Vec16* slot = in.workspace + unit.slot * kSlotVectors<Sums<kDim>> * kThreads;
  for (int first = 0; first < end; first += kPrefillChunk) {
    // Nothing joined with the first chunk is the first chunk: its part of the sum is exact.
    join<true>(sums, slot, in.scale_log2);
    slot += static_cast<int64_t>(in.layer.kv_head_count) * kSlotVectors<Sums<kDim>> * kThreads;
  }
  finish<kType>(in, unit, sums);
}

int32_t chunk_count(int32_t length_max) {
  return std::max(1, (length_max + kPrefillChunk - 1) / kPrefillChunk);
}

int64_t slot_bytes(int32_t padded_dim) {
  return int64_t{padded_dim == 64 ? kSlotVectors<Sums<64>> : kSlotVectors<Sums<128>>} * kThreads *
         16;
}
// Chunks that a launch which splits may have in flight.
int64_t split_slots_max(int32_t padded_dim) { return kSplitBytesMax / slot_bytes(padded_dim); }

template <KvType kType, int kDim>
Result<void> run(const PrefillAttention& op, PrefillArguments in, Stream stream) {
  const int64_t rows = int64_t{op.row_count_max} * in.shared_heads;
  const int64_t tiles =
      (rows + kTileRows - 1) / kTileRows * in.layer.kv_head_count * op.slice_count;
  const int64_t chunks = chunk_count(op.length_max);
  in.split =
      chunks > 1 && tiles < op.multiprocessor_count && tiles * chunks <= split_slots_max(kDim);
  if constexpr (kType == KvType::kBf16) {
    if (op.warpgroup)
      return run_prefill_warpgroup(op, in, in.split ? tiles * chunks : tiles, stream);
  }
  LaunchShape shape;
  shape.grid.x = static_cast<uint32_t>(
      std::min<int64_t>(in.split ? tiles * chunks : tiles,
                        int64_t{op.multiprocessor_count} * kBlocksPerMultiprocessor));
  shape.block = {kThreads, 1, 1};
  shape.early_start = true;
  shape.shared_bytes = Shape<kType, kDim>::kSharedBytes;
  auto result = launch(prefill_attention_kernel<kType, kDim>, shape, stream, in);
  if (!result || !in.split) return result;
  shape.grid.x = static_cast<uint32_t>(tiles);
  shape.shared_bytes = 0;
  return launch(join_chunks_kernel<kType, kDim>, shape, stream, in);
}

template <int kDim>
Result<void> run_of(const PrefillAttention& op, const PrefillArguments& in, Stream stream) {
  switch (op.pages.type) {
    case KvType::kInt8:
      return run<KvType::kInt8, kDim>(op, in, stream);
    case KvType::kFp8:
      return run<KvType::kFp8, kDim>(op, in, stream);
    case KvType::kBf16:
      break;
  }
  return run<KvType::kBf16, kDim>(op, in, stream);
}

}  // namespace

size_t prefill_attention_workspace_bytes(const KvPages& pages, int32_t multiprocessor_count,
                                         int32_t length_max) {
  const int64_t chunks = chunk_count(length_max);
  if (chunks == 1) return 0;
  const int64_t split = std::min(split_slots_max(pages.padded_dim), multiprocessor_count * chunks);
  const int64_t slots = std::max(split, int64_t{multiprocessor_count} * kBlocksPerMultiprocessor);
  return static_cast<size_t>(slots * slot_bytes(pages.padded_dim));
}

Result<void> run_prefill_attention(const PrefillAttention& op, Stream stream) {
  const KvPages& pages = op.pages;
  if (op.slice_count < 1 || op.row_count_max < 1 || op.length_max < op.row_count_max ||
      op.head_count < 1 || op.head_count % pages.kv_head_count != 0 || op.layer < 0 ||
      op.layer >= pages.layer_count || op.q_stride % 8 != 0 || op.multiprocessor_count < 1) {
    return fail("prefill attention: " + std::to_string(op.slice_count) + " slices of " +
                std::to_string(op.row_count_max) + " rows within " + std::to_string(op.length_max) +
                " positions, " + std::to_string(op.head_count) + " heads over " +
                std::to_string(pages.kv_head_count) + ", layer " + std::to_string(op.layer) +
                ", stride " + std::to_string(op.q_stride) + ", " +
                std::to_string(op.multiprocessor_count) + " multiprocessors");
  }
  if (op.length_max > kPrefillChunk && op.workspace == nullptr) {
    return fail("prefill attention: " + std::to_string(op.length_max) +
                " positions without a workspace");
  }
  PrefillArguments in{};
  in.layer = layer_of(pages, op.layer);
  in.q = op.q;
  in.q_stride = op.q_stride;
  in.slices = op.slices;
  in.slice_count = op.slice_count;
  in.table = op.table;
  in.table_stride = op.table_stride;
  in.head_count = op.head_count;
  in.shared_heads = op.head_count / pages.kv_head_count;
  in.scale_log2 = op.scale * kLog2E;
  in.out = op.out;
  in.workspace = reinterpret_cast<Vec16*>(op.workspace);
  return pages.padded_dim == 64 ? run_of<64>(op, in, stream) : run_of<128>(op, in, stream);
}

}  // namespace updraft::cuda
