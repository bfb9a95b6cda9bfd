// The skinny product's kernel, which each skinny_gemm_<formats>.cu makes for its formats: one file
// for all would compile for minutes.
//
// A block takes kRowTiles bands of 16 rows; its 8 warps take an eighth of the columns each (of the
// block's share, when several blocks split them) and add up in shared memory in a fixed order. A
// warp streams its weights through registers, a few tiles ahead, turns each into mma fragments and
// multiplies it with the activations of 8 tokens per tile, which come from the first-level cache:
// no shared memory and no barrier before the end. The first tiles are asked for before the kernel
// in front of this one has ended.
#pragma once

#include "kernels/cuda/chunk_product.h"
#include "kernels/cuda/gemm_output.h"
#include "kernels/cuda/last_block.h"
#include "kernels/cuda/skinny_gemm.h"

namespace updraft::cuda {

inline constexpr int kSkinnyWarps = kPartsPerSplit;
inline constexpr int kSkinnyThreads = 32 * kSkinnyWarps;

struct SkinnyArguments {
  PackedWeight weight;
  GemmOutput out;
  const Bf16* x;
  const int8_t* x_int8;  // I8
  void* partial;         // [splits, tokens, rows_padded] float or int32
  uint32_t* counters;    // [blocks of rows]
  int32_t x_stride;
  int32_t bands;  // of 16 rows
  int32_t cols;
  const float* band_sums;  // [tokens, cols / 16] or null: of a norm whose factor is still to come
  float eps;
};

template <DType kType>
UPDRAFT_DEVICE Vec16 fetch_activations(const SkinnyArguments& in, int token, int chunk, int t) {
  if (token >= in.out.tokens || chunk * kChunk >= in.cols) return {{0, 0, 0, 0}};
  const int at = token * in.x_stride + chunk * kChunk;
  if constexpr (kType == DType::kI8) {
    const Vec8 both = load_written(reinterpret_cast<const Vec8*>(in.x_int8 + at + 8 * t));
    return {{both.word[0], both.word[1], 0, 0}};
  } else if constexpr (kType == DType::kQ6_K) {
    const Vec8 first = load_written(reinterpret_cast<const Vec8*>(in.x + at + 4 * t));
    const Vec8 second = load_written(reinterpret_cast<const Vec8*>(in.x + at + 16 + 4 * t));
    return {{first.word[0], first.word[1], second.word[0], second.word[1]}};
  } else {
    return load_written(reinterpret_cast<const Vec16*>(in.x + at + 8 * t));
  }
}

// The blocks that split the columns have each left their sums; the last to come adds them up in the
// order of the columns.
template <typename SumType, int kRowsOfBlock>
UPDRAFT_DEVICE void join_splits(const SkinnyArguments& in, const GemmOutput& out, int row_first) {
  if (!comes_last(in.counters + block_x(), grid_y(), shared_array<uint32_t, 1, 0>(),
                  [] { sync_block(); })) {
    return;
  }
  const int rows_padded = in.bands * kTileRows;
  const int rows_here =
      rows_padded - row_first < kRowsOfBlock ? rows_padded - row_first : kRowsOfBlock;
  const auto total_of = [&](int token, int row) {
    SumType total = 0;
    for (uint32_t split = 0; split < grid_y(); ++split) {
      const volatile SumType* sums = static_cast<SumType*>(in.partial);  // written by other blocks
      total += sums[(static_cast<int64_t>(split) * out.tokens + token) * rows_padded + row];
    }
    return static_cast<float>(total);
  };
  const int outputs = out.gated ? rows_here / 2 : rows_here;
  const int all = out.tokens * outputs;
  for (int i = static_cast<int>(thread_x()); i / 32 * 32 < all; i += kSkinnyThreads) {
    const int token = i / outputs;
    const int output = i % outputs;
    const bool inside = i < all;
    if (out.residual.hidden != nullptr) {  // whole warps
      const int row = row_first + output;
      write_residual(out, token, row, inside ? total_of(token, row) : 0.0F);
    } else if (!inside) {
      break;
    } else if (out.gated) {
      const int row = row_first + output / kTileRows * 2 * kTileRows + output % kTileRows;
      write_gated(out, token, row, total_of(token, row), total_of(token, row + kTileRows));
    } else {
      write_output(out, token, row_first + output, total_of(token, row_first + output));
    }
  }
}

template <DType kType, int kTokenTiles, int kRowTiles>
UPDRAFT_KERNEL(kSkinnyThreads)
skinny_gemm_kernel(SkinnyArguments in) {
  using Registers = TileRegisters<kType>;
  using SumType = typename Sum<kType>::Type;
  // Tiles in flight. 26 KiB in flight for each multiprocessor are what 4.3 TB/s times 800 ns ask
  // for; four tiles of two bands are 32 KiB a block, of 16-bit weights 64.
  constexpr int kDepth = kTokenTiles <= 2 || (kTokenTiles == 4 && Registers::kSuper) ? 4 : 2;
  constexpr int kTokens = kTokenTiles * kTileTokens;
  // Unrolled, the next chunk's weights are made early: more than there are registers for.
  constexpr bool kRolled =
      Registers::kTwoScaledChunks && (kTokenTiles == 8 ? Registers::kSuper || Registers::kHasMin
                                                       : kTokenTiles == 4 && !Registers::kSuper);
  const int warp = static_cast<int>(thread_x()) / 32;
  const int lane = static_cast<int>(thread_x()) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int band_first = static_cast<int>(block_x()) * kRowTiles;

  const int per_part = tiles_per_part<kType>(in.weight.tiles, static_cast<int>(grid_y()));
  const int tile_first = (static_cast<int>(block_y()) * kSkinnyWarps + warp) * per_part;
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
  let_next_start();
  wait_for_previous();

  GemmOutput out = in.out;
  if (in.band_sums != nullptr) {  // there before the first output: barriers are between
    auto* factors = shared_array<float, kTokens, 1>();
    for (int token = warp; token < in.out.tokens; token += kSkinnyWarps) {
      const float* sums_of = in.band_sums + static_cast<int64_t>(token) * (in.cols / kNormBand);
      const float factor = norm_factor(in.cols, in.eps, lane,
                                       [&](int band) { return load_written(sums_of + band); });
      if (lane == 0) factors[token] = factor;
    }
    out.token_scales = factors;
  }

  SumType sums[kRowTiles][kTokenTiles][4] = {};
  // Chunk `c` of the tiles, which is `chunk` of the columns.
  const auto multiply = [&](const Registers(&tiles)[kRowTiles], int c, int chunk) {
    if constexpr (kTokenTiles == 8) {
      // The fragments of both bands stay in registers; the activations pass by.
      ChunkOperand<kType> w[kRowTiles];
      UPDRAFT_UNROLL
      for (int r = 0; r < kRowTiles; ++r) w[r] = make_operand(tiles[r], c);
      UPDRAFT_UNROLL
      for (int n = 0; n < kTokenTiles; ++n) {
        const Vec16 b = fetch_activations<kType>(in, n * kTileTokens + g, chunk, t);
        float column_sums[2] = {0.0F, 0.0F};
        if constexpr (Registers::kHasMin) add_columns(b, column_sums);
        UPDRAFT_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          multiply_chunk<kType>(w[r], b, column_sums, sums[r][n]);
        }
      }
    } else {
      Vec16 b[kTokenTiles];
      float column_sums[kTokenTiles][2] = {};
      UPDRAFT_UNROLL
      for (int n = 0; n < kTokenTiles; ++n) {
        b[n] = fetch_activations<kType>(in, n * kTileTokens + g, chunk, t);
      }
      if constexpr (Registers::kHasMin) {
        UPDRAFT_UNROLL
        for (int n = 0; n < kTokenTiles; ++n) add_columns(b[n], column_sums[n]);
      }
      UPDRAFT_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        const ChunkOperand<kType> w = make_operand(tiles[r], c);
        UPDRAFT_UNROLL
        for (int n = 0; n < kTokenTiles; ++n) {
          multiply_chunk<kType>(w, b[n], column_sums[n], sums[r][n]);
        }
      }
    }
  };
  for (int tile = tile_first; tile < tile_end; tile += kDepth) {
    UPDRAFT_UNROLL
    for (int d = 0; d < kDepth; ++d) {
      if (tile + d < tile_end) {
        const int chunk = (tile + d) * Registers::kChunks;
        if constexpr (kRolled) {
          UPDRAFT_NO_UNROLL
          for (int c = 0; c < Registers::kChunks; ++c) {
            multiply(ring[d], 0, chunk + c);
            UPDRAFT_UNROLL
            for (int r = 0; r < kRowTiles; ++r) drop_chunk(ring[d][r]);
          }
        } else {
          UPDRAFT_UNROLL
          for (int c = 0; c < Registers::kChunks; ++c) multiply(ring[d], c, chunk + c);
        }
        fetch(tile + d + kDepth, ring[d]);
      }
    }
  }

  auto* joined = dynamic_shared<SumType>();  // [warp][token][row of the band]
  constexpr int kPerThread = (kTokens * kTileRows + kSkinnyThreads - 1) / kSkinnyThreads;
  float gates[kPerThread];
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
    UPDRAFT_UNROLL
    for (int j = 0; j < kPerThread; ++j) {
      const int i = static_cast<int>(thread_x()) + j * kSkinnyThreads;
      if (i >= kTokens * kTileRows) continue;
      SumType total = 0;
      UPDRAFT_UNROLL
      for (int w = 0; w < kSkinnyWarps; ++w) total += joined[w * kTokens * kTileRows + i];
      const int token = i / kTileRows;
      const int row = (band_first + r) * kTileRows + i % kTileRows;
      if (grid_y() > 1) {
        if (token < out.tokens && band_first + r < in.bands) {
          static_cast<SumType*>(in.partial)[(static_cast<int64_t>(block_y()) * out.tokens + token) *
                                                in.bands * kTileRows +
                                            row] = total;
        }
      } else if (out.residual.hidden != nullptr) {
        write_residual(out, token, row, static_cast<float>(total));
      } else if (!out.gated) {
        write_output(out, token, row, static_cast<float>(total));
      } else if (r % 2 == 0) {
        gates[j] = static_cast<float>(total);
      } else {
        write_gated(out, token, row - kTileRows, gates[j], static_cast<float>(total));
      }
    }
  }
  if (grid_y() > 1) join_splits<SumType, kRowTiles * kTileRows>(in, out, band_first * kTileRows);
}

// Fewer bands a block spread a matrix over more of the device; more of them share one read of the
// activations. An even number holds gate and up of the same outputs.
template <DType kType, int kTokenTiles>
Result<void> run_skinny_tiles(const SkinnyGemm& op, const SkinnyArguments& in, Stream stream) {
  constexpr bool kSuper = TileRegisters<kType>::kSuper;
  constexpr int kRowTiles = kTokenTiles == 4 && !kSuper ? 4 : 2;  // what the registers hold
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>((in.bands + kRowTiles - 1) / kRowTiles),
                static_cast<uint32_t>(op.splits), 1};
  shape.block = {kSkinnyThreads, 1, 1};
  shape.shared_bytes = sizeof(float) * kSkinnyWarps * kTokenTiles * kTileTokens * kTileRows;
  shape.early_start = true;
  return launch(skinny_gemm_kernel<kType, kTokenTiles, kRowTiles>, shape, stream, in);
}

// Declared here, made in the file of its format.
template <DType kType>
Result<void> run_skinny_of(const SkinnyGemm& op, const SkinnyArguments& in, Stream stream);
template <>
Result<void> run_skinny_of<DType::kQ4_0>(const SkinnyGemm&, const SkinnyArguments&, Stream);
template <>
Result<void> run_skinny_of<DType::kQ4_K>(const SkinnyGemm&, const SkinnyArguments&, Stream);
template <>
Result<void> run_skinny_of<DType::kQ5_0>(const SkinnyGemm&, const SkinnyArguments&, Stream);
template <>
Result<void> run_skinny_of<DType::kQ5_1>(const SkinnyGemm&, const SkinnyArguments&, Stream);
template <>
Result<void> run_skinny_of<DType::kQ5_K>(const SkinnyGemm&, const SkinnyArguments&, Stream);
template <>
Result<void> run_skinny_of<DType::kQ6_K>(const SkinnyGemm&, const SkinnyArguments&, Stream);
template <>
Result<void> run_skinny_of<DType::kQ8_0>(const SkinnyGemm&, const SkinnyArguments&, Stream);
template <>
Result<void> run_skinny_of<DType::kI8>(const SkinnyGemm&, const SkinnyArguments&, Stream);
template <>
Result<void> run_skinny_of<DType::kBF16>(const SkinnyGemm&, const SkinnyArguments&, Stream);
template <>
Result<void> run_skinny_of<DType::kF16>(const SkinnyGemm&, const SkinnyArguments&, Stream);
template <>
Result<void> run_skinny_of<DType::kF8_E4M3>(const SkinnyGemm&, const SkinnyArguments&, Stream);

#define UPDRAFT_SKINNY_OF(type)                                                     \
  template <>                                                                       \
  Result<void> run_skinny_of<type>(const SkinnyGemm& op, const SkinnyArguments& in, \
                                   Stream stream) {                                 \
    if (op.tokens <= 8) return run_skinny_tiles<type, 1>(op, in, stream);           \
    if (op.tokens <= 16) return run_skinny_tiles<type, 2>(op, in, stream);          \
    if (op.tokens <= 32) return run_skinny_tiles<type, 4>(op, in, stream);          \
    return run_skinny_tiles<type, 8>(op, in, stream);                               \
  }

}  // namespace updraft::cuda
