// Flash decode over pages. The query heads that share a key head are the rows of one mma tile, so K
// and V are read once for all of them. A block reads one chunk of a sequence in tiles of 64
// positions, two in flight in shared memory; each of its 4 warps takes 16 positions of a tile with
// a running softmax of its own, and they are joined at the end in order. A sequence of several
// chunks is joined by a second kernel, in order too.
//
// int8: a lane reads 4 neighbouring dimensions of a key with one load and takes the query in the
// same order; the scales of keys multiply scores, those of values the weights. ldmatrix hands out
// pairs of values (two dimensions of a position) transposed: even and odd dimensions become two mma
// tiles.
#include <algorithm>
#include <string>

#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/device.h"

namespace updraft::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTile = 16 * kWarps;  // positions
constexpr int kGroup = 16;          // query heads of one tile
constexpr int kStages = 2;
constexpr float kLog2E = 1.4426950408889634F;
constexpr float kNever = -3.0e38F;  // below every score; finite, so that differences are no NaN

struct Arguments {
  const std::byte* base;  // of the layer in page 0
  int64_t page_bytes;
  int64_t head_bytes;
  int64_t v_offset;
  int64_t k_scale_offset;
  int64_t v_scale_offset;
  int32_t page_shift;
  const Bf16* q;
  int64_t q_stride;
  const int32_t* lengths;
  const int32_t* sequences;
  const int32_t* table;
  int32_t table_stride;
  int32_t head_count;
  int32_t kv_head_count;
  float scale_log2;
  Bf16* out;
  float* partial;         // [rows, head_count, chunks, head_dim] sums of weighted values
  Float2* partial_state;  // [rows, head_count, chunks] largest score, sum of weights
  int32_t chunks;
};

template <KvType kType, int kDim>
struct Shape {
  static constexpr bool kInt8 = kType == KvType::kInt8;
  static constexpr int kRowBytes = kDim * (kInt8 ? 1 : 2);
  static constexpr int kRowChunks = kRowBytes / 16;
  static constexpr int kTileBytes = kTile * kRowBytes;
  static constexpr int kScaleBytes = kInt8 ? kTile * 4 : 0;
  static constexpr int kStageBytes = 2 * kTileBytes + 2 * kScaleBytes;
  static constexpr int kJoinStride = kDim + 4;  // floats, for the joining of the warps
  static constexpr int kJoinBytes = kWarps * kGroup * (kJoinStride * 4 + 8);
  static constexpr int kSharedBytes =
      kStages * kStageBytes > kJoinBytes ? kStages* kStageBytes : kJoinBytes;

  // Byte offset of 16-byte piece `piece` of a row in a tile: pieces are spread so that 8 rows meet
  // all banks.
  static UPDRAFT_DEVICE int at(int row, int piece) {
    constexpr int kPieces = kRowChunks < 8 ? kRowChunks : 8;
    return row * kRowBytes + (piece ^ (row / (8 / kPieces) % kPieces)) * 16;
  }
};

// int8 pairs at bytes 0 and 2 of a word -> bfloat16, exactly: seven bits less 128, or less 256 when
// the sign bit is set.
UPDRAFT_DEVICE uint32_t int8_pair(uint32_t bytes) {
  return add_bf16_pairs((bytes & 0x007F007FU) | 0x43004300U, (bytes & 0x00800080U) | 0xC300C300U);
}

UPDRAFT_DEVICE uint32_t shared_word(const std::byte* at) {
  return *reinterpret_cast<const uint32_t*>(at);
}

// Starts the copies of one tile: positions [first, first + 64) of which those before `end` are
// filled, others zero.
template <KvType kType, int kDim>
UPDRAFT_DEVICE void fetch_tile(const Arguments& in, const int32_t* table, int kv_head, int first,
                               int end, std::byte* stage) {
  using S = Shape<kType, kDim>;
  const int tid = static_cast<int>(thread_x());
  for (int i = tid; i < kTile * S::kRowChunks; i += kThreads) {
    const int row = i / S::kRowChunks;
    const int piece = i % S::kRowChunks;
    const bool valid = first + row < end;
    const int position = valid ? first + row : first;
    const int in_page = position & ((1 << in.page_shift) - 1);
    const std::byte* from = in.base + table[position >> in.page_shift] * in.page_bytes +
                            kv_head * in.head_bytes + in_page * S::kRowBytes + piece * 16;
    copy_async16(stage + S::at(row, piece), from, valid);
    copy_async16(stage + S::kTileBytes + S::at(row, piece), from + in.v_offset, valid);
  }
  if constexpr (S::kInt8) {
    // Four scales a copy; pages hold whole fours.
    if (tid < kTile / 2) {
      const bool of_values = tid >= kTile / 4;
      const int row = tid % (kTile / 4) * 4;
      const bool valid = first + row < end;
      const int position = valid ? first + row : first;
      const int in_page = position & ((1 << in.page_shift) - 1);
      const std::byte* from = in.base + table[position >> in.page_shift] * in.page_bytes +
                              (of_values ? in.v_scale_offset : in.k_scale_offset) +
                              ((kv_head << in.page_shift) + in_page) * 4;
      copy_async16(stage + 2 * S::kTileBytes + (of_values ? S::kScaleBytes : 0) + row * 4, from,
                   valid);
    }
  }
}

template <KvType kType, int kDim>
UPDRAFT_KERNEL(kThreads)
decode_attention_kernel(Arguments in) {
  using S = Shape<kType, kDim>;
  auto* shared = dynamic_shared<std::byte>();
  const int tid = static_cast<int>(thread_x());
  const int warp = tid / 32;
  const int lane = tid % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const auto row = static_cast<int64_t>(block_x());
  const int shared_heads = in.head_count / in.kv_head_count;  // query heads of one key head
  const int groups = (shared_heads + kGroup - 1) / kGroup;
  const int kv_head = static_cast<int>(block_y()) / groups;
  const int head_first = kv_head * shared_heads + static_cast<int>(block_y()) % groups * kGroup;
  const int heads_left = (kv_head + 1) * shared_heads - head_first;
  const int heads = heads_left < kGroup ? heads_left : kGroup;
  const int chunk = static_cast<int>(block_z());

  const int length = in.lengths[row];
  const int first = chunk * kAttentionChunk;
  if (first >= length) {
    if (chunk == 0) {
      for (int i = tid; i < heads * kDim; i += kThreads) {
        in.out[(row * in.head_count + head_first) * kDim + i] = to_bf16(0.0F);
      }
    }
    return;
  }
  const int end = length < first + kAttentionChunk ? length : first + kAttentionChunk;
  const int32_t* table = in.table + static_cast<int64_t>(in.sequences[row]) * in.table_stride;

  fetch_tile<kType, kDim>(in, table, kv_head, first, end, shared);
  copy_commit();

  // The queries as A fragments; rows beyond the heads are zero.
  uint32_t q[kDim / 16][4];
  UPDRAFT_UNROLL
  for (int k = 0; k < kDim / 16; ++k) {
    UPDRAFT_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int head = g + j % 2 * 8;
      const int dim = 16 * k + (S::kInt8 ? 4 * t + j / 2 * 2 : 2 * t + j / 2 * 8);
      q[k][j] = head < heads ? load(reinterpret_cast<const uint32_t*>(
                                   in.q + row * in.q_stride + (head_first + head) * kDim + dim))
                             : 0U;
    }
  }

  float sums[kDim / 8][4] = {};
  float largest[2] = {kNever, kNever};  // of the rows g and g + 8
  float weight[2] = {0.0F, 0.0F};
  const int tiles = (end - first + kTile - 1) / kTile;
  for (int tile = 0; tile < tiles; ++tile) {
    copy_wait<0>();
    sync_block();  // the tile is there, and nobody reads the other stage any more
    if (tile + 1 < tiles) {
      fetch_tile<kType, kDim>(in, table, kv_head, first + (tile + 1) * kTile, end,
                              shared + (tile + 1) % kStages * S::kStageBytes);
    }
    copy_commit();
    const std::byte* keys = shared + tile % kStages * S::kStageBytes;
    const std::byte* values = keys + S::kTileBytes;

    float scores[2][4] = {};
    UPDRAFT_UNROLL
    for (int k = 0; k < kDim / 16; ++k) {
      if constexpr (S::kInt8) {
        UPDRAFT_UNROLL
        for (int j = 0; j < 2; ++j) {
          const uint32_t bytes = shared_word(keys + S::at(warp * 16 + j * 8 + g, k) + 4 * t);
          mma_bf16(scores[j], q[k], int8_pair((bytes & 0xFFU) | (bytes & 0xFF00U) << 8),
                   int8_pair((bytes >> 16 & 0xFFU) | (bytes >> 8 & 0xFF0000U)));
        }
      } else {
        uint32_t b[4];
        load_matrix(b, keys + S::at(warp * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        mma_bf16(scores[0], q[k], b[0], b[1]);
        mma_bf16(scores[1], q[k], b[2], b[3]);
      }
    }

    float highest[2] = {largest[0], largest[1]};
    UPDRAFT_UNROLL
    for (int j = 0; j < 2; ++j) {
      UPDRAFT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int in_tile = warp * 16 + j * 8 + 2 * t + i % 2;
        float score = scores[j][i] * in.scale_log2;
        if constexpr (S::kInt8) {
          score *= bits_float(shared_word(keys + 2 * S::kTileBytes + in_tile * 4));
        }
        scores[j][i] = first + tile * kTile + in_tile < end ? score : kNever;
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
        const bool counts = first + tile * kTile + in_tile < end;
        float w = counts ? exp2_fast(scores[j][i] - largest[i / 2]) : 0.0F;
        weight[i / 2] += w;
        if constexpr (S::kInt8) {
          const float scale =
              bits_float(shared_word(keys + 2 * S::kTileBytes + S::kScaleBytes + in_tile * 4));
          w = counts ? w * scale : 0.0F;  // beyond the end a scale may be anything
        }
        scores[j][i] = w;
      }
      p[2 * j] = pack_bf16(scores[j][0], scores[j][1]);
      p[2 * j + 1] = pack_bf16(scores[j][2], scores[j][3]);
    }
    UPDRAFT_UNROLL
    for (int n = 0; n < S::kRowChunks / 2; ++n) {
      uint32_t b[4];
      load_matrix_transposed(b, values + S::at(warp * 16 + lane % 16, 2 * n + lane / 16));
      if constexpr (S::kInt8) {
        UPDRAFT_UNROLL
        for (int j = 0; j < 2; ++j) {  // 16 dimensions each, even ones and odd ones
          mma_bf16(sums[4 * n + 2 * j], p, int8_pair(b[2 * j]), int8_pair(b[2 * j + 1]));
          mma_bf16(sums[4 * n + 2 * j + 1], p, int8_pair(b[2 * j] >> 8),
                   int8_pair(b[2 * j + 1] >> 8));
        }
      } else {
        mma_bf16(sums[2 * n], p, b[0], b[1]);
        mma_bf16(sums[2 * n + 1], p, b[2], b[3]);
      }
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
      const int column = 2 * t + i % 2;
      const int dim = S::kInt8 ? n / 2 * 16 + 2 * column + n % 2 : n * 8 + column;
      joined[(warp * kGroup + g + i / 2 * 8) * S::kJoinStride + dim] = sums[n][i];
    }
  }
  if (t == 0) {
    states[warp * kGroup + g] = {largest[0], weight[0]};
    states[warp * kGroup + g + 8] = {largest[1], weight[1]};
  }
  sync_block();
  for (int i = tid; i < heads * kDim; i += kThreads) {
    const int head = i / kDim;
    const int dim = i % kDim;
    float top = kNever;
    UPDRAFT_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      const float x = states[w * kGroup + head].x;
      top = top > x ? top : x;
    }
    float total = 0.0F;
    float total_weight = 0.0F;
    UPDRAFT_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      const Float2 state = states[w * kGroup + head];
      const float fade = exp2_fast(state.x - top);
      total_weight = fma(state.y, fade, total_weight);
      total = fma(joined[(w * kGroup + head) * S::kJoinStride + dim], fade, total);
    }
    const int64_t out_head = row * in.head_count + head_first + head;
    if (length <= kAttentionChunk) {
      in.out[out_head * kDim + dim] = to_bf16(total / total_weight);
    } else {
      in.partial[(out_head * in.chunks + chunk) * kDim + dim] = total;
      if (dim == 0) in.partial_state[out_head * in.chunks + chunk] = {top, total_weight};
    }
  }
}

// One block per row and head, one thread per dimension: the chunks of a long sequence in their
// order.
template <int kDim>
UPDRAFT_KERNEL(kDim)
join_chunks_kernel(Arguments in) {
  const auto row = static_cast<int64_t>(block_x());
  const int length = in.lengths[row];
  if (length <= kAttentionChunk) return;
  const int chunks = (length + kAttentionChunk - 1) / kAttentionChunk;
  const int64_t head = row * in.head_count + block_y();
  const auto dim = static_cast<int64_t>(thread_x());
  float top = kNever;
  for (int c = 0; c < chunks; ++c) {
    const float x = in.partial_state[head * in.chunks + c].x;
    top = top > x ? top : x;
  }
  float total = 0.0F;
  float total_weight = 0.0F;
  for (int c = 0; c < chunks; ++c) {
    const Float2 state = in.partial_state[head * in.chunks + c];
    const float fade = exp2_fast(state.x - top);
    total_weight = fma(state.y, fade, total_weight);
    total = fma(in.partial[(head * in.chunks + c) * kDim + dim], fade, total);
  }
  in.out[head * kDim + dim] = to_bf16(total / total_weight);
}

template <KvType kType, int kDim>
Result<void> run(const DecodeAttention& op, const Arguments& in, Stream stream) {
  const int shared_heads = in.head_count / in.kv_head_count;
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>(op.rows),
                static_cast<uint32_t>(in.kv_head_count * ((shared_heads + kGroup - 1) / kGroup)),
                static_cast<uint32_t>(in.chunks)};
  shape.block = {kThreads, 1, 1};
  shape.shared_bytes = Shape<kType, kDim>::kSharedBytes;
  if (auto result = launch(decode_attention_kernel<kType, kDim>, shape, stream, in); !result) {
    return result;
  }
  if (in.chunks == 1) return {};
  shape.grid = {static_cast<uint32_t>(op.rows), static_cast<uint32_t>(in.head_count), 1};
  shape.block = {kDim, 1, 1};
  shape.shared_bytes = 0;
  return launch(join_chunks_kernel<kDim>, shape, stream, in);
}

int32_t chunk_count(int32_t length_max) {
  return std::max(1, (length_max + kAttentionChunk - 1) / kAttentionChunk);
}

}  // namespace

size_t decode_attention_workspace_bytes(int32_t rows, int32_t head_count, int32_t head_dim,
                                        int32_t length_max) {
  const int32_t chunks = chunk_count(length_max);
  if (chunks == 1) return 0;
  return static_cast<size_t>(rows) * static_cast<size_t>(head_count) * static_cast<size_t>(chunks) *
         (static_cast<size_t>(head_dim) * sizeof(float) + sizeof(Float2));
}

Result<void> run_decode_attention(const DecodeAttention& op, Stream stream) {
  const KvPages& pages = op.pages;
  if (op.rows < 1 || op.head_count < 1 || op.head_count % pages.kv_head_count != 0 ||
      op.layer < 0 || op.layer >= pages.layer_count || op.q_stride % 8 != 0) {
    return fail("decode attention: " + std::to_string(op.rows) + " rows, " +
                std::to_string(op.head_count) + " heads over " +
                std::to_string(pages.kv_head_count) + ", layer " + std::to_string(op.layer) +
                ", stride " + std::to_string(op.q_stride));
  }
  const int32_t chunks = chunk_count(op.length_max);
  if (chunks > 1 && op.workspace == nullptr) {
    return fail("decode attention: " + std::to_string(op.length_max) +
                " positions without a workspace");
  }
  Arguments in{};
  in.base = pages.base + op.layer * pages.layer_bytes;
  in.page_bytes = pages.page_bytes;
  in.head_bytes = pages.head_bytes;
  in.v_offset = pages.v_offset;
  in.k_scale_offset = pages.k_scale_offset;
  in.v_scale_offset = pages.v_scale_offset;
  in.page_shift = pages.page_shift;
  in.q = op.q;
  in.q_stride = op.q_stride;
  in.lengths = op.lengths;
  in.sequences = op.sequences;
  in.table = op.table;
  in.table_stride = op.table_stride;
  in.head_count = op.head_count;
  in.kv_head_count = pages.kv_head_count;
  in.scale_log2 = op.scale * kLog2E;
  in.out = op.out;
  in.chunks = chunks;
  in.partial = reinterpret_cast<float*>(op.workspace);
  if (chunks > 1) {
    in.partial_state = reinterpret_cast<Float2*>(in.partial + int64_t{op.rows} * op.head_count *
                                                                  chunks * pages.head_dim);
  }
  const bool int8 = pages.type == KvType::kInt8;
  if (pages.head_dim == 64) {
    return int8 ? run<KvType::kInt8, 64>(op, in, stream) : run<KvType::kBf16, 64>(op, in, stream);
  }
  return int8 ? run<KvType::kInt8, 128>(op, in, stream) : run<KvType::kBf16, 128>(op, in, stream);
}

}  // namespace updraft::cuda
