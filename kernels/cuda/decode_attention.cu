// Flash decode over pages. The query heads that share a key head are the rows of one mma tile, so K
// and V are read once for all of them. A block takes one chunk of a row after another from the
// step's list of work, and reads it in tiles of 64 positions, several in flight in shared memory;
// each of its 4 warps takes 16 positions of a tile with a running softmax of its own, and they are
// joined at the chunk's end in order. The chunks of a long row are joined in order too: of a few,
// by the block that comes last; of many, by a second kernel.
//
// Where a row is its sequence's only one in the step, the block also does what prepare_qkv does for
// the heads that it reads: each block prepares its queries, and the one with the last chunk puts
// the row's key and value into their page before it reads them there.
#include <algorithm>
#include <string>

#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/head_rotation.h"
#include "kernels/cuda/kv_tile.h"
#include "kernels/cuda/last_block.h"
#include "kernels/cuda/prepare_head.h"

namespace updraft::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kGroup = 16;     // query heads of one tile
constexpr int kJoinWarps = 8;  // of a row and head whose chunks are joined
constexpr int kWorkThreads = 256;
constexpr int kSharedBytesOfSystem = 1 << 10;  // of each block
// Chunks of the longest row up to which the last block joins them: alone it reads what many blocks
// of a second kernel read together, for which that one has to start first.
constexpr int kChunksJoinedInside = 8;

struct Arguments {
  KvLayer layer;
  const Bf16* q;
  int64_t q_stride;
  const int32_t* lengths;
  const int32_t* item_count;
  const DecodeWorkItem* items;
  const int32_t* table;
  int32_t table_stride;
  int32_t head_count;
  float scale_log2;
  Bf16* out;
  float* partial;         // [rows, head_count, chunks, padded_dim] sums of weighted values
  Float2* partial_state;  // [rows, head_count, chunks] largest score, sum of weights
  int32_t chunks;
  uint32_t*
      counters;  // [rows, groups of heads]: chunks that are there; null: a second kernel joins
  PrepareQkv prepare;  // qkv null: it was done
};

template <KvType kType, int kDim>
struct Shape {
  using Tile = KvTile<kType, kDim>;
  static constexpr int kStageBytes = 2 * Tile::kTileBytes;  // keys, values
  // What hides the memory's latency: two or three blocks of a multiprocessor, each with some 32 KiB
  // under way.
  static constexpr int kStages = kStageBytes > (24 << 10) ? 2 : 3;
  static constexpr int kJoinStride = kDim + 4;  // floats, for the joining of the warps
  static constexpr int kJoinBytes = kWarps * kGroup * (kJoinStride * 4 + 8);
  static constexpr int kTileBytes = std::max(kStages * kStageBytes, kJoinBytes);
  // Prepared queries; 16 bytes between the heads, so that a fragment's meet all banks.
  static constexpr int kQueryStride = kDim + 8;
  static constexpr int kSharedBytes =
      kTileBytes + kGroup * kQueryStride * static_cast<int>(sizeof(Bf16));
  // Registers are for three blocks.
  static int64_t resident_blocks(int32_t shared_bytes) {
    return std::clamp(shared_bytes / (kSharedBytes + kSharedBytesOfSystem), 1, 3);
  }
};

// The lanes' values of one head, dimension lane + 32 j in v[j], become its output.
template <int kPer>
UPDRAFT_DEVICE void store_head(const Arguments& in, int64_t head, float (&v)[kPer], float weight,
                               int lane) {
  const int block = in.layer.rotation_block;
  if (block > 1) rotate_head<32, 1>(v, block, lane);
  const float factor = 1.0F / (weight * static_cast<float>(block));
  UPDRAFT_UNROLL
  for (int j = 0; j < kPer; ++j) {
    const int dim = lane + 32 * j;
    if (dim < in.layer.head_dim) in.out[head * in.layer.head_dim + dim] = to_bf16(v[j] * factor);
  }
}

// Chunks are joined as by 8 workers, who add up the chunks w, w + 8, .. each, in order; then the
// workers' sums are added in order. This is one worker's part, by a warp.
template <int kPer>
UPDRAFT_DEVICE void add_chunks(const Float2* states, const float* partial, int worker, int chunks,
                               float top, int lane, float (&total)[kPer], float& total_weight) {
  for (int c = worker; c < chunks; c += kJoinWarps) {
    const Float2 state = load_written(states + c);
    const float fade = exp2_fast(state.x - top);
    total_weight = fma(state.y, fade, total_weight);
    UPDRAFT_UNROLL
    for (int j = 0; j < kPer; ++j) {
      const float* at = partial + static_cast<int64_t>(c) * (32 * kPer) + lane + 32 * j;
      total[j] = fma(load_written(at), fade, total[j]);
    }
  }
}
// The largest score of any chunk.
UPDRAFT_DEVICE float top_of(const Float2* states, int chunks, int lane) {
  float top = kNever;
  for (int c = lane; c < chunks; c += 32) {
    const float x = load_written(states + c).x;
    top = top > x ? top : x;
  }
  UPDRAFT_UNROLL
  for (uint32_t step = 16; step > 0; step /= 2) {
    const float other = shuffle_xor(top, step);
    top = top > other ? top : other;
  }
  return top;
}

// This block's sums of a chunk are stored. The block whose chunk is the row's last to come joins
// them all, a warp for each head.
template <int kDim>
UPDRAFT_DEVICE void join_inside(const Arguments& in, const DecodeWorkItem& item, uint32_t* counter,
                                int head_first, int heads) {
  constexpr int kPer = kDim / 32;
  const int chunks = (item.length + kAttentionChunk - 1) / kAttentionChunk;
  if (!comes_last(counter, static_cast<uint32_t>(chunks), shared_array<uint32_t, 1, 1>(),
                  [] { sync_block(); })) {
    return;
  }
  const int lane = static_cast<int>(thread_x()) % 32;
  for (int h = static_cast<int>(thread_x()) / 32; h < heads; h += kWarps) {
    const int64_t head = static_cast<int64_t>(item.row) * in.head_count + head_first + h;
    const Float2* states = in.partial_state + head * in.chunks;
    const float* partial = in.partial + head * in.chunks * kDim;
    const float top = top_of(states, chunks, lane);
    float total[kPer] = {};
    float total_weight = 0.0F;
    UPDRAFT_NO_UNROLL
    for (int worker = 0; worker < kJoinWarps; ++worker) {
      float sum[kPer] = {};
      float weight = 0.0F;
      add_chunks(states, partial, worker, chunks, top, lane, sum, weight);
      total_weight += weight;
      UPDRAFT_UNROLL
      for (int j = 0; j < kPer; ++j) total[j] += sum[j];
    }
    store_head(in, head, total, total_weight, lane);
  }
}

// The row's queries of these heads, prepared, to shared memory; behind a barrier they are there, as
// are its key and value in their page when the chunk is the row's last.
template <KvType kType, int kDim>
UPDRAFT_DEVICE void prepare(const Arguments& in, const DecodeWorkItem& item, int kv_head,
                            int head_first, int heads, Bf16* queries) {
  constexpr int kPer = kDim / 32;
  const int warp = static_cast<int>(thread_x()) / 32;
  const int lane = static_cast<int>(thread_x()) % 32;
  float* whole = shared_array<float, kWarps * kDim, 2>() + warp * kDim;
  const bool is_last = item.first + kAttentionChunk >= item.length;
  // The key first, then the value, then the queries.
  UPDRAFT_NO_UNROLL
  for (int i = is_last ? warp : warp + 2; i < heads + 2; i += kWarps) {
    const HeadOf of = i == 0 ? HeadOf::kK : i == 1 ? HeadOf::kV : HeadOf::kQ;
    const int head = of == HeadOf::kQ   ? head_first + i - 2
                     : of == HeadOf::kK ? in.head_count + kv_head
                                        : in.head_count + in.layer.kv_head_count + kv_head;
    float v[kPer];
    prepare_head<kDim>(in.prepare, item.row, head, of, whole, lane, v);
    if (of == HeadOf::kQ) {
      store_bf16(queries + (i - 2) * Shape<kType, kDim>::kQueryStride + lane * kPer, v);
    } else {
      append_head<kDim>(in.prepare, item.row, kv_head, of, lane, v);
    }
  }
  if (is_last) fence();  // copies do not read through the cache that key and value went to
  sync_block();
}

// One chunk of one row, for the query heads `head_first` .. `+ heads` of one key head.
template <KvType kType, int kDim>
UPDRAFT_DEVICE void attend_chunk(const Arguments& in, const DecodeWorkItem& item, int kv_head,
                                 int head_first, int heads, std::byte* shared) {
  using S = Shape<kType, kDim>;
  using Tile = typename S::Tile;
  const int tid = static_cast<int>(thread_x());
  const int warp = tid / 32;
  const int lane = tid % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int64_t row = item.row;
  const int first = item.first;
  const int end = item.length < first + kAttentionChunk ? item.length : first + kAttentionChunk;
  const int tiles = (end - first + kTilePositions - 1) / kTilePositions;
  const int32_t* table = in.table + static_cast<int64_t>(item.line) * in.table_stride;
  auto* queries = reinterpret_cast<Bf16*>(shared + S::kTileBytes);
  const bool prepares = in.prepare.qkv != nullptr;
  if (prepares) prepare<kType, kDim>(in, item, kv_head, head_first, heads, queries);

  const auto fetch = [&](int tile) {
    if (tile < tiles) {
      std::byte* stage = shared + tile % S::kStages * S::kStageBytes;
      const int from = first + tile * kTilePositions;
      Tile::template fetch<kThreads, false>(in.layer, table, kv_head, from, end, stage);
      Tile::template fetch<kThreads, true>(in.layer, table, kv_head, from, end,
                                           stage + Tile::kTileBytes);
    }
    copy_commit();
  };
  UPDRAFT_UNROLL
  for (int tile = 0; tile < S::kStages - 1; ++tile) fetch(tile);

  // The queries as A fragments; rows beyond the heads and dimensions beyond the head are zero.
  uint32_t q[kDim / 16][4];
  UPDRAFT_UNROLL
  for (int k = 0; k < kDim / 16; ++k) {
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int head = g + j % 2 * 8;
      const int dim = 16 * k + Tile::query_dim(t, j / 2);
      q[k][j] = 0U;
      if (head >= heads || dim >= in.layer.head_dim) continue;
      if (prepares) {
        q[k][j] = *reinterpret_cast<const uint32_t*>(queries + head * S::kQueryStride + dim);
      } else {
        q[k][j] = load_written(reinterpret_cast<const uint32_t*>(
            in.q + row * in.q_stride + static_cast<int64_t>(head_first + head) * in.layer.head_dim +
            dim));
      }
    }
  }

  const int keys_at = Tile::keys_at(lane);
  const int values_at = Tile::values_at(lane);
  float sums[kDim / 8][4] = {};
  float largest[2] = {kNever, kNever};  // of the rows g and g + 8
  float weight[2] = {0.0F, 0.0F};
  for (int tile = 0; tile < tiles; ++tile) {
    copy_wait<S::kStages - 2>();
    sync_block();  // the tile is there, and nobody reads the stage before it any more
    fetch(tile + S::kStages - 1);
    const std::byte* keys = shared + tile % S::kStages * S::kStageBytes;
    const std::byte* values = keys + Tile::kTileBytes;

    float scores[2][4] = {};
    UPDRAFT_UNROLL
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t b[4];
      Tile::keys(b, keys, keys_at, warp * 16, k);
      mma_bf16(scores[0], q[k], b[0], b[1]);
      mma_bf16(scores[1], q[k], b[2], b[3]);
    }

    float highest[2] = {largest[0], largest[1]};
    UPDRAFT_UNROLL
    for (int j = 0; j < 2; ++j) {
      UPDRAFT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int in_tile = warp * 16 + j * 8 + 2 * t + i % 2;
        float score = scores[j][i] * in.scale_log2;
        if constexpr (Tile::kBytes) score *= Tile::scale(keys, in_tile);
        scores[j][i] = first + tile * kTilePositions + in_tile < end ? score : kNever;
        highest[i / 2] = highest[i / 2] > scores[j][i] ? highest[i / 2] : scores[j][i];
      }
    }
    UPDRAFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      UPDRAFT_UNROLL
      for (uint32_t step = 1; step <= 2; step *= 2) {
        const float other = shuffle_xor(highest[i], step);
        highest[i] = highest[i] > other ? highest[i] : other;
      }
      const float fade = exp2_fast(largest[i] - highest[i]);
      largest[i] = highest[i];
      weight[i] *= fade;
      UPDRAFT_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        sums[n][2 * i] *= fade;
        sums[n][2 * i + 1] *= fade;
      }
    }
    // The weights of this tile, as the A fragment of the product with the values.
    uint32_t p[4];
    UPDRAFT_UNROLL
    for (int j = 0; j < 2; ++j) {
      UPDRAFT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int in_tile = warp * 16 + j * 8 + 2 * t + i % 2;
        const bool counts = first + tile * kTilePositions + in_tile < end;
        float w = counts ? exp2_fast(scores[j][i] - largest[i / 2]) : 0.0F;
        weight[i / 2] += w;
        if constexpr (Tile::kBytes) {
          w = counts ? w * Tile::scale(values, in_tile) : 0.0F;
        }
        scores[j][i] = w;
      }
      p[2 * j] = pack_bf16(scores[j][0], scores[j][1]);
      p[2 * j + 1] = pack_bf16(scores[j][2], scores[j][3]);
    }
    constexpr int kTiles = Tile::kValueTiles;
    UPDRAFT_UNROLL
    for (int n = 0; n < kDim / 8 / kTiles; ++n) {
      uint32_t b[kTiles][2];
      Tile::values(b, values, values_at, warp * 16, n);
      UPDRAFT_UNROLL
      for (int j = 0; j < kTiles; ++j) mma_bf16(sums[n * kTiles + j], p, b[j][0], b[j][1]);
    }
  }
  copy_wait<0>();
  sync_block();

  // The warps' sums, joined in their order.
  UPDRAFT_UNROLL
  for (int i = 0; i < 2; ++i) {
    weight[i] += shuffle_xor(weight[i], 1);
    weight[i] += shuffle_xor(weight[i], 2);
  }
  auto* joined = reinterpret_cast<float*>(shared);
  auto* states = reinterpret_cast<Float2*>(joined + kWarps * kGroup * S::kJoinStride);
  UPDRAFT_UNROLL
  for (int n = 0; n < kDim / 8; ++n) {
    UPDRAFT_UNROLL
    for (int i = 0; i < 4; ++i) {
      joined[(warp * kGroup + g + i / 2 * 8) * S::kJoinStride + Tile::value_dim(n, 2 * t + i % 2)] =
          sums[n][i];
    }
  }
  if (t == 0) {
    states[warp * kGroup + g] = {largest[0], weight[0]};
    states[warp * kGroup + g + 8] = {largest[1], weight[1]};
  }
  sync_block();
  for (int head = warp; head < heads; head += kWarps) {
    float top = kNever;
    UPDRAFT_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      const float x = states[w * kGroup + head].x;
      top = top > x ? top : x;
    }
    float total[kDim / 32] = {};
    float total_weight = 0.0F;
    UPDRAFT_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      const Float2 state = states[w * kGroup + head];
      const float fade = exp2_fast(state.x - top);
      total_weight = fma(state.y, fade, total_weight);
      UPDRAFT_UNROLL
      for (int j = 0; j < kDim / 32; ++j) {
        total[j] =
            fma(joined[(w * kGroup + head) * S::kJoinStride + lane + 32 * j], fade, total[j]);
      }
    }
    const int64_t out_head = row * in.head_count + head_first + head;
    if (item.length <= kAttentionChunk) {
      store_head(in, out_head, total, total_weight, lane);
      continue;
    }
    const int64_t part = out_head * in.chunks + first / kAttentionChunk;
    UPDRAFT_UNROLL
    for (int j = 0; j < kDim / 32; ++j) in.partial[part * kDim + lane + 32 * j] = total[j];
    if (lane == 0) in.partial_state[part] = {top, total_weight};
  }
  sync_block();  // before the next chunk's copies land where the sums were
}

template <KvType kType, int kDim>
UPDRAFT_KERNEL(kThreads)
decode_attention_kernel(Arguments in) {
  let_next_start();
  wait_for_previous();
  auto* shared = dynamic_shared<std::byte>();
  const int shared_heads = in.head_count / in.layer.kv_head_count;  // query heads of one key head
  const int groups = (shared_heads + kGroup - 1) / kGroup;
  const int parts = in.layer.kv_head_count * groups;
  const int64_t units = static_cast<int64_t>(load_written(in.item_count)) * parts;
  for (int64_t unit = block_x(); unit < units; unit += grid_x()) {
    const DecodeWorkItem item = load_written(in.items + unit / parts);
    const int part = static_cast<int>(unit % parts);
    const int kv_head = part / groups;
    const int head_first = kv_head * shared_heads + part % groups * kGroup;
    const int heads_left = (kv_head + 1) * shared_heads - head_first;
    const int heads = heads_left < kGroup ? heads_left : kGroup;
    if (item.length == 0) {
      Bf16* out = in.out +
                  (static_cast<int64_t>(item.row) * in.head_count + head_first) * in.layer.head_dim;
      for (int i = static_cast<int>(thread_x()); i < heads * in.layer.head_dim; i += kThreads) {
        out[i] = to_bf16(0.0F);
      }
      continue;
    }
    attend_chunk<kType, kDim>(in, item, kv_head, head_first, heads, shared);
    if (in.counters != nullptr && item.length > kAttentionChunk) {
      join_inside<kDim>(in, item, in.counters + static_cast<int64_t>(item.row) * parts + part,
                        head_first, heads);
    }
  }
}

// One block per row and head: the chunks of a long row, a warp for each worker.
template <int kDim>
UPDRAFT_KERNEL(32 * kJoinWarps)
join_chunks_kernel(Arguments in) {
  let_next_start();
  wait_for_previous();
  constexpr int kPer = kDim / 32;
  const auto row = static_cast<int64_t>(block_x());
  const int length = load(in.lengths + row);
  if (length <= kAttentionChunk) return;
  const int chunks = (length + kAttentionChunk - 1) / kAttentionChunk;
  const int64_t head = row * in.head_count + block_y();
  const int warp = static_cast<int>(thread_x()) / 32;
  const int lane = static_cast<int>(thread_x()) % 32;
  const Float2* states = in.partial_state + head * in.chunks;
  float total[kPer] = {};
  float total_weight = 0.0F;
  add_chunks(states, in.partial + head * in.chunks * kDim, warp, chunks,
             top_of(states, chunks, lane), lane, total, total_weight);
  auto* sums = shared_array<float, kJoinWarps * kDim>();
  auto* weights = shared_array<float, kJoinWarps, 1>();
  UPDRAFT_UNROLL
  for (int j = 0; j < kPer; ++j) sums[warp * kDim + lane + 32 * j] = total[j];
  if (lane == 0) weights[warp] = total_weight;
  sync_block();
  if (warp != 0) return;
  UPDRAFT_UNROLL
  for (int w = 1; w < kJoinWarps; ++w) {
    total_weight += weights[w];
    UPDRAFT_UNROLL
    for (int j = 0; j < kPer; ++j) total[j] += sums[w * kDim + lane + 32 * j];
  }
  store_head(in, head, total, total_weight, lane);
}

// The chunks of each row, row after row. One block.
UPDRAFT_KERNEL(kWorkThreads)
decode_work_kernel(DecodeWork in) {
  let_next_start();
  wait_for_previous();
  constexpr int kWorkWarps = kWorkThreads / 32;
  auto* totals = shared_array<int32_t, kWorkWarps>();
  const int tid = static_cast<int>(thread_x());
  const int warp = tid / 32;
  const int lane = tid % 32;
  int base = 0;
  for (int first = 0; first < in.rows; first += kWorkThreads) {
    const int row = first + tid;
    const int length = row < in.rows ? load(in.lengths + row) : -1;
    const int own = length < 0    ? 0
                    : length == 0 ? 1
                                  : (length + kAttentionChunk - 1) / kAttentionChunk;
    int sum = own;  // of this lane and those below
    UPDRAFT_UNROLL
    for (uint32_t step = 1; step < 32; step *= 2) {
      const int below = shuffle_up(sum, step);
      if (lane >= static_cast<int>(step)) sum += below;
    }
    if (lane == 31) totals[warp] = sum;
    sync_block();
    int before = base;
    UPDRAFT_UNROLL
    for (int w = 0; w < kWorkWarps; ++w) {
      if (w < warp) before += totals[w];
      base += totals[w];
    }
    const int line = own > 0 ? load(in.lines + row) : 0;
    for (int c = 0; c < own; ++c) {
      store(in.items + before + sum - own + c,
            DecodeWorkItem{row, c * kAttentionChunk, length, line});
    }
    sync_block();  // the totals are read
  }
  if (tid == 0) *in.item_count = base;
}

int32_t chunk_count(int32_t length_max) {
  return std::max(1, (length_max + kAttentionChunk - 1) / kAttentionChunk);
}

template <KvType kType, int kDim>
Result<void> run(const DecodeAttention& op, const Arguments& in, Stream stream) {
  using S = Shape<kType, kDim>;
  const int shared_heads = in.head_count / in.layer.kv_head_count;
  const int64_t units = decode_work_items_max(op.rows, op.length_max) * in.layer.kv_head_count *
                        ((shared_heads + kGroup - 1) / kGroup);
  LaunchShape shape;
  shape.grid.x = static_cast<uint32_t>(std::min(
      units, op.multiprocessor_count * S::resident_blocks(op.multiprocessor_shared_bytes)));
  shape.block = {kThreads, 1, 1};
  shape.shared_bytes = S::kSharedBytes;
  shape.early_start = true;
  if (auto result = launch(decode_attention_kernel<kType, kDim>, shape, stream, in); !result) {
    return result;
  }
  if (in.chunks == 1 || in.counters != nullptr) return {};
  shape.grid = {static_cast<uint32_t>(op.rows), static_cast<uint32_t>(in.head_count), 1};
  shape.block = {32 * kJoinWarps, 1, 1};
  shape.shared_bytes = 0;
  return launch(join_chunks_kernel<kDim>, shape, stream, in);
}

template <int kDim>
Result<void> run_of(const DecodeAttention& op, const Arguments& in, Stream stream) {
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

int64_t decode_work_items_max(int32_t rows, int32_t length_max) {
  return int64_t{rows} * chunk_count(length_max);
}

Result<void> run_decode_work(const DecodeWork& op, Stream stream) {
  if (op.rows < 1) return fail("decode work: " + std::to_string(op.rows) + " rows");
  LaunchShape shape;
  shape.block = {kWorkThreads, 1, 1};
  shape.early_start = true;
  return launch(decode_work_kernel, shape, stream, op);
}

size_t decode_attention_counter_bytes(int32_t rows, int32_t head_count) {
  return static_cast<size_t>(rows) * static_cast<size_t>(head_count) * sizeof(uint32_t);
}

size_t decode_attention_workspace_bytes(const KvPages& pages, int32_t rows, int32_t head_count,
                                        int32_t length_max) {
  const int32_t chunks = chunk_count(length_max);
  if (chunks == 1) return 0;
  return static_cast<size_t>(rows) * static_cast<size_t>(head_count) * static_cast<size_t>(chunks) *
         (static_cast<size_t>(pages.padded_dim) * sizeof(float) + sizeof(Float2));
}

Result<void> run_decode_attention(const DecodeAttention& op, Stream stream) {
  const KvPages& pages = op.pages;
  if (op.rows < 1 || op.head_count < 1 || op.head_count % pages.kv_head_count != 0 ||
      op.layer < 0 || op.layer >= pages.layer_count || op.q_stride % 8 != 0 ||
      op.multiprocessor_count < 1) {
    return fail("decode attention: " + std::to_string(op.rows) + " rows, " +
                std::to_string(op.head_count) + " heads over " +
                std::to_string(pages.kv_head_count) + ", layer " + std::to_string(op.layer) +
                ", stride " + std::to_string(op.q_stride) + ", " +
                std::to_string(op.multiprocessor_count) + " multiprocessors");
  }
  const int32_t chunks = chunk_count(op.length_max);
  if (chunks > 1 && op.workspace == nullptr) {
    return fail("decode attention: " + std::to_string(op.length_max) +
                " positions without a workspace");
  }
  if (op.prepare != nullptr) {
    const PrepareQkv& prepare = *op.prepare;
    if (prepare.qkv != op.q || prepare.layer != op.layer || prepare.head_count != op.head_count ||
        prepare.pages.base != pages.base) {
      return fail("decode attention: q, k and v of another layer to prepare");
    }
    if (auto checked = check_prepare_qkv(prepare); !checked) return checked;
  }
  Arguments in{};
  in.layer = layer_of(pages, op.layer);
  in.q = op.q;
  in.q_stride = op.q_stride;
  in.lengths = op.lengths;
  in.item_count = op.item_count;
  in.items = op.items;
  in.table = op.table;
  in.table_stride = op.table_stride;
  in.head_count = op.head_count;
  in.scale_log2 = op.scale * kLog2E;
  in.out = op.out;
  in.chunks = chunks;
  if (chunks > 1 && chunks <= kChunksJoinedInside) in.counters = op.counters;
  if (op.prepare != nullptr) in.prepare = *op.prepare;
  in.partial = reinterpret_cast<float*>(op.workspace);
  if (chunks > 1) {
    in.partial_state = reinterpret_cast<Float2*>(in.partial + int64_t{op.rows} * op.head_count *
                                                                  chunks * pages.padded_dim);
  }
  return pages.padded_dim == 64 ? run_of<64>(op, in, stream) : run_of<128>(op, in, stream);
}

}  // namespace updraft::cuda
