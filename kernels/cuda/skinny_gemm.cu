// A block takes kRowTiles bands of 16 rows; its 8 warps take an eighth of the columns each (of the
// block's share, when several blocks split them) and add up in shared memory in a fixed order. A
// warp streams its weights through registers, a few tiles ahead, turns each into mma fragments and
// multiplies it with the activations of 8 tokens per tile, which come from the first-level cache:
// no shared memory and no barrier before the end.
//
// Quants become bfloat16 exactly: 0x4300 | q is 128 + q. The scale of a group multiplies the fp32
// sum of the group.
#include <algorithm>
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/skinny_gemm.h"
#include "kernels/cuda/weight_tile.h"

namespace updraft::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileTokens = 8;
constexpr int64_t kCountersMax = kSkinnyCounterBytes / sizeof(uint32_t);

struct Arguments {
  PackedWeight weight;
  const Bf16* x;
  const float* bias;
  Bf16* y_bf16;
  float* y_f32;
  float* partial;      // [splits, tokens, rows_padded]
  uint32_t* counters;  // [blocks of rows]
  int64_t x_stride;
  int64_t y_stride;
  int32_t tokens;
  int32_t rows;
  int32_t bands;  // of 16 rows
  int32_t cols;
};

// b[2 * step], b[2 * step + 1] are the registers of a step: the lane's 8 columns of one token.
template <DType kType>
UPDRAFT_DEVICE Vec16 fetch_activations(const Arguments& in, int token, int chunk, int t) {
  if (token >= in.tokens || chunk * kChunk >= in.cols) return {{0, 0, 0, 0}};
  const Bf16* x = in.x + token * in.x_stride + chunk * kChunk;
  if constexpr (kType == DType::kQ6_K) {
    const Vec8 first = load(reinterpret_cast<const Vec8*>(x + 4 * t));
    const Vec8 second = load(reinterpret_cast<const Vec8*>(x + 16 + 4 * t));
    return {{first.word[0], first.word[1], second.word[0], second.word[1]}};
  } else {
    return load(reinterpret_cast<const Vec16*>(x + 8 * t));
  }
}

UPDRAFT_DEVICE void add_scaled(float (&sums)[4], const float (&group)[4], float low, float high) {
  sums[0] = fma(group[0], low, sums[0]);
  sums[1] = fma(group[1], low, sums[1]);
  sums[2] = fma(group[2], high, sums[2]);
  sums[3] = fma(group[3], high, sums[3]);
}

// Adds one chunk of 32 columns of one band to the sums of all token tiles.
template <DType kType, int kTokenTiles>
UPDRAFT_DEVICE void multiply_chunk(const TileRegisters<kType>& tile, int chunk,
                                   const Vec16 (&b)[kTokenTiles],
                                   const float (&column_sums)[kTokenTiles][4],
                                   float (&sums)[kTokenTiles][4]) {
  uint32_t a[2][4];
  make_fragment(tile, 2 * chunk, a[0]);
  make_fragment(tile, 2 * chunk + 1, a[1]);
  const ChunkScales by = chunk_scales(tile, chunk);
  UPDRAFT_UNROLL
  for (int n = 0; n < kTokenTiles; ++n) {
    if constexpr (kType == DType::kBF16) {
      mma_bf16(sums[n], a[0], b[n].word[0], b[n].word[1]);
      mma_bf16(sums[n], a[1], b[n].word[2], b[n].word[3]);
    } else if constexpr (kType == DType::kQ6_K) {
      UPDRAFT_UNROLL
      for (int s = 0; s < 2; ++s) {
        float group[4] = {0.0F, 0.0F, 0.0F, 0.0F};
        mma_bf16(group, a[s], b[n].word[2 * s], b[n].word[2 * s + 1]);
        add_scaled(sums[n], group, by.scale[s][0], by.scale[s][1]);
      }
    } else {
      float group[4] = {0.0F, 0.0F, 0.0F, 0.0F};
      mma_bf16(group, a[0], b[n].word[0], b[n].word[1]);
      mma_bf16(group, a[1], b[n].word[2], b[n].word[3]);
      add_scaled(sums[n], group, by.scale[0][0], by.scale[0][1]);
      if constexpr (kType == DType::kQ4_K)
        add_scaled(sums[n], column_sums[n], -by.min[0], -by.min[1]);
    }
  }
}

UPDRAFT_DEVICE void write_output(const Arguments& in, int token, int row, float value) {
  if (token >= in.tokens || row >= in.rows) return;
  if (in.bias != nullptr) value += in.bias[row];
  if (in.y_f32 != nullptr) {
    in.y_f32[token * in.y_stride + row] = value;
  } else {
    in.y_bf16[token * in.y_stride + row] = to_bf16(value);
  }
}

// The blocks that split the columns have each left their sums; the last to come adds them up in the
// order of the columns.
template <int kRowsOfBlock>
UPDRAFT_DEVICE void join_splits(const Arguments& in, int row_first) {
  auto* last = shared_array<uint32_t, 1, 0>();
  fence();
  sync_block();
  if (thread_x() == 0) {
    *last = atomic_add(in.counters + block_x(), 1U) == grid_y() - 1 ? 1U : 0U;
    if (*last != 0) in.counters[block_x()] = 0;  // ready for the next launch
  }
  sync_block();
  if (*last == 0) return;
  fence();
  const int rows_padded = in.bands * kTileRows;
  const auto rows_here = static_cast<int>(
      rows_padded - row_first < kRowsOfBlock ? rows_padded - row_first : kRowsOfBlock);
  for (int i = static_cast<int>(thread_x()); i < in.tokens * rows_here; i += kThreads) {
    const int token = i / rows_here;
    const int row = row_first + i % rows_here;
    float total = 0.0F;
    for (uint32_t split = 0; split < grid_y(); ++split) {
      const volatile float* sums = in.partial;  // written by other blocks
      total += sums[(static_cast<int64_t>(split) * in.tokens + token) * rows_padded + row];
    }
    write_output(in, token, row, total);
  }
}

template <DType kType, int kTokenTiles, int kRowTiles>
UPDRAFT_KERNEL(kThreads)
skinny_gemm_kernel(Arguments in) {
  using Registers = TileRegisters<kType>;
  constexpr int kDepth = kTokenTiles <= 2 ? 4 : 2;  // tiles in flight
  constexpr int kTokens = kTokenTiles * kTileTokens;
  const int warp = static_cast<int>(thread_x()) / 32;
  const int lane = static_cast<int>(thread_x()) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int band_first = static_cast<int>(block_x()) * kRowTiles;

  // The columns are cut into 8 parts per split, whole superblocks each.
  const int parts = kWarps * static_cast<int>(grid_y());
  const int unit = Registers::kSuper ? 4 : 1;
  const int per_part = ((in.weight.tiles + parts - 1) / parts + unit - 1) / unit * unit;
  const int tile_first = (static_cast<int>(block_y()) * kWarps + warp) * per_part;
  const int tile_end =
      tile_first + per_part < in.weight.tiles ? tile_first + per_part : in.weight.tiles;

  Registers ring[kDepth][kRowTiles];
  const auto fetch = [&](int tile, Registers(&to)[kRowTiles]) {
    UPDRAFT_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      // A band beyond the last repeats it; its sums are not written.
      const int band = band_first + r < in.bands ? band_first + r : in.bands - 1;
      if (tile < tile_end) to[r] = fetch_tile<kType>(in.weight, band, tile, lane);
    }
  };
  UPDRAFT_UNROLL
  for (int d = 0; d < kDepth; ++d) fetch(tile_first + d, ring[d]);

  float sums[kRowTiles][kTokenTiles][4] = {};
  for (int tile = tile_first; tile < tile_end; tile += kDepth) {
    UPDRAFT_UNROLL
    for (int d = 0; d < kDepth; ++d) {
      if (tile + d < tile_end) {
        UPDRAFT_UNROLL
        for (int c = 0; c < Registers::kChunks; ++c) {
          Vec16 b[kTokenTiles];
          UPDRAFT_UNROLL
          for (int n = 0; n < kTokenTiles; ++n) {
            b[n] = fetch_activations<kType>(in, n * kTileTokens + g,
                                            (tile + d) * Registers::kChunks + c, t);
          }
          float column_sums[kTokenTiles][4] =
              {};  // of the activations, for Q4_K's minima: ones times b
          if constexpr (kType == DType::kQ4_K) {
            const uint32_t ones[4] = {0x3F803F80U, 0x3F803F80U, 0x3F803F80U, 0x3F803F80U};
            UPDRAFT_UNROLL
            for (int n = 0; n < kTokenTiles; ++n) {
              mma_bf16(column_sums[n], ones, b[n].word[0], b[n].word[1]);
              mma_bf16(column_sums[n], ones, b[n].word[2], b[n].word[3]);
            }
          }
          UPDRAFT_UNROLL
          for (int r = 0; r < kRowTiles; ++r) {
            multiply_chunk<kType>(ring[d][r], c, b, column_sums, sums[r]);
          }
        }
        fetch(tile + d + kDepth, ring[d]);
      }
    }
  }

  auto* joined = dynamic_shared<float>();  // [warp][token][row of the band]
  UPDRAFT_UNROLL
  for (int r = 0; r < kRowTiles; ++r) {
    if (r != 0) sync_block();
    UPDRAFT_UNROLL
    for (int n = 0; n < kTokenTiles; ++n) {
      UPDRAFT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int token = n * kTileTokens + 2 * t + i % 2;
        joined[(warp * kTokens + token) * kTileRows + g + i / 2 * 8] = sums[r][n][i];
      }
    }
    sync_block();
    for (int i = static_cast<int>(thread_x()); i < kTokens * kTileRows; i += kThreads) {
      float total = 0.0F;
      UPDRAFT_UNROLL
      for (int w = 0; w < kWarps; ++w) total += joined[w * kTokens * kTileRows + i];
      const int token = i / kTileRows;
      const int row = (band_first + r) * kTileRows + i % kTileRows;
      if (grid_y() == 1) {
        write_output(in, token, row, total);
      } else if (token < in.tokens && band_first + r < in.bands) {
        in.partial[(static_cast<int64_t>(block_y()) * in.tokens + token) * in.bands * kTileRows +
                   row] = total;
      }
    }
  }
  if (grid_y() > 1) join_splits<kRowTiles * kTileRows>(in, band_first * kTileRows);
}

// Fewer bands a block spread a matrix over more of the device; more of them share one read of the
// activations.
template <DType kType, int kTokenTiles>
Result<void> run(const SkinnyGemm& op, const Arguments& in, Stream stream) {
  constexpr bool kSuper = TileRegisters<kType>::kSuper;
  constexpr int kRowTiles = kTokenTiles == 8 && kType == DType::kQ4_K ? 1
                            : kTokenTiles == 4 && !kSuper             ? 4
                                                          : 2;  // what the registers hold
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>((in.bands + kRowTiles - 1) / kRowTiles),
                static_cast<uint32_t>(op.splits), 1};
  shape.block = {kThreads, 1, 1};
  shape.shared_bytes = sizeof(float) * kWarps * kTokenTiles * kTileTokens * kTileRows;
  return launch(skinny_gemm_kernel<kType, kTokenTiles, kRowTiles>, shape, stream, in);
}

template <DType kType>
Result<void> run_for_tokens(const SkinnyGemm& op, const Arguments& in, Stream stream) {
  if (op.tokens <= 8) return run<kType, 1>(op, in, stream);
  if (op.tokens <= 16) return run<kType, 2>(op, in, stream);
  if (op.tokens <= 32) return run<kType, 4>(op, in, stream);
  return run<kType, 8>(op, in, stream);
}

}  // namespace

int32_t skinny_gemm_splits(const PackedLayout& layout, int32_t multiprocessor_count) {
  const int64_t blocks = (layout.rows_padded / kTileRows + 1) / 2;
  const int64_t wanted =
      multiprocessor_count / blocks;  // whole multiples: two unequal waves gain nothing
  const int64_t tiles = layout.cols_padded / tile_cols(layout.type);
  const int64_t possible = tiles / (kWarps * 4);  // at least four tiles a warp
  return static_cast<int32_t>(std::max<int64_t>(1, std::min<int64_t>({wanted, possible, 8})));
}

size_t skinny_gemm_workspace_bytes(const PackedLayout& layout, int32_t splits) {
  if (splits <= 1) return 0;
  return kSkinnyCounterBytes + static_cast<size_t>(splits) * kSkinnyTokensMax *
                                   static_cast<size_t>(layout.rows_padded) * sizeof(float);
}

Result<void> run_skinny_gemm(const SkinnyGemm& op, Stream stream) {
  const PackedLayout& layout = op.layout;
  if (op.tokens < 1 || op.tokens > kSkinnyTokensMax) {
    return fail("skinny gemm: " + std::to_string(op.tokens) + " tokens (1.." +
                std::to_string(kSkinnyTokensMax) + ")");
  }
  if (layout.cols % kChunk != 0 || op.x_stride % 8 != 0 || op.x_stride < layout.cols) {
    return fail("skinny gemm: " + std::to_string(layout.cols) + " columns with a stride of " +
                std::to_string(op.x_stride) + " (multiples of 32 and of 8)");
  }
  if ((op.y_bf16 == nullptr) == (op.y_f32 == nullptr) || op.y_stride < layout.rows) {
    return fail("skinny gemm: one output with a stride of at least " + std::to_string(layout.rows));
  }
  if (op.splits < 1 || (op.splits > 1 && op.workspace == nullptr)) {
    return fail("skinny gemm: " + std::to_string(op.splits) + " splits without a workspace");
  }
  if (op.splits > 1 && layout.rows_padded / kTileRows > kCountersMax) {
    return fail("skinny gemm: " + std::to_string(layout.rows) + " rows with split columns (up to " +
                std::to_string(kCountersMax * kTileRows) + ")");
  }
  Arguments in{};
  in.weight = PackedWeight::of(layout, op.weight);
  in.x = op.x;
  in.bias = op.bias;
  in.y_bf16 = op.y_bf16;
  in.y_f32 = op.y_f32;
  in.counters = reinterpret_cast<uint32_t*>(op.workspace);
  in.partial = op.workspace == nullptr
                   ? nullptr
                   : reinterpret_cast<float*>(op.workspace + kSkinnyCounterBytes);
  in.x_stride = op.x_stride;
  in.y_stride = op.y_stride;
  in.tokens = op.tokens;
  in.rows = static_cast<int32_t>(layout.rows);
  in.bands = static_cast<int32_t>(layout.rows_padded / kTileRows);
  in.cols = static_cast<int32_t>(layout.cols);
  switch (layout.type) {
    case DType::kQ4_0:
      return run_for_tokens<DType::kQ4_0>(op, in, stream);
    case DType::kQ8_0:
      return run_for_tokens<DType::kQ8_0>(op, in, stream);
    case DType::kQ4_K:
      return run_for_tokens<DType::kQ4_K>(op, in, stream);
    case DType::kQ6_K:
      return run_for_tokens<DType::kQ6_K>(op, in, stream);
    case DType::kBF16:
      return run_for_tokens<DType::kBF16>(op, in, stream);
    default:
      return fail(std::string("skinny gemm: no layout for ") + dtype_info(layout.type).name);
  }
}

}  // namespace updraft::cuda
