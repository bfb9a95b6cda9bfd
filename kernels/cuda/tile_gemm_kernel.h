// The tile product's kernel, which each tile_gemm_<formats>.cu makes for its formats.
//
// A block computes 128 rows by 128 tokens with 8 warps, each 32 rows (two bands) by 64 tokens. Of
// 64 columns at a time, packed weights and activations come into shared memory through cp.async, a
// few stages ahead; a lane turns its weights into fragments in registers, each used for 8 mma of 8
// tokens.
//
// Activations lie as [token][64 columns] in rows whose 32-byte units are swapped by the token, so
// that the 8 lanes of a phase of a 16-byte load (two tokens) and the 16 of an 8-byte load (four)
// hit all banks. The packed weights' order of columns makes such a load the registers of a chunk:
// it is as wide as ldmatrix, and ldmatrix would want them in another order.
#pragma once

#include "kernels/cuda/chunk_product.h"
#include "kernels/cuda/gemm_output.h"
#include "kernels/cuda/tile_gemm.h"

namespace updraft::cuda {

inline constexpr int kTileGemmThreads = 256;
inline constexpr int kTileGemmBands = 8;     // of a block
inline constexpr int kTileGemmTokens = 128;  // of a block
inline constexpr int kStageCols = 64;

struct TileGemmArguments {
  PackedWeight weight;
  GemmOutput out;
  const std::byte* x;
  int64_t x_row_bytes;
  int32_t bands;
  int32_t cols;
  int32_t splits;
};

// What a stage holds, in bytes; parts of a tile lie one behind the other for all bands of the
// block.
template <DType kType>
struct Stage {
  static constexpr PackedFormat kFormat = packed_format(kType);
  static constexpr int kTiles = kStageCols / kFormat.tile_cols;  // of a band
  static constexpr int kXElementBytes = kType == DType::kI8 ? 1 : 2;
  static constexpr int kXRowBytes = kStageCols * kXElementBytes;
  static constexpr int kTileQuants = kFormat.piece_count * kPieceBytes;
  static constexpr int kTileHigh = kTileRows * kFormat.tile_cols * kFormat.high_bits / 8;
  static constexpr int kTileScales =
      kFormat.group_cols == 0
          ? 0
          : kFormat.tile_cols / kFormat.group_cols * kTileRows * kFormat.scale_bytes;
  static constexpr int kTileSupers = kTileRows * kFormat.super_bytes;
  static constexpr int kTileBytes = kTileQuants + kTileHigh + kTileScales + kTileSupers;
  static constexpr int kWeightBytes = kTileGemmBands * kTiles * kTileBytes;
  static constexpr int kBytes = kWeightBytes + kTileGemmTokens * kXRowBytes;
  static constexpr int kCount = kFormat.piece_count == 2 ? 3 : 4;  // what 163 KiB hold
};

// Byte offset of a 32-byte unit of a token's row.
template <int kRowBytes>
UPDRAFT_DEVICE int x_unit_offset(int token, int unit) {
  if constexpr (kRowBytes == 128) {
    return token * 128 + ((unit ^ ((token & 1) << 1 | (token >> 1 & 1))) * 32);
  } else {
    return token * 64 + ((unit ^ (token >> 1 & 1)) * 32);
  }
}

// Asks for the weights and the activations of one stage, 16 bytes a time.
template <DType kType>
UPDRAFT_DEVICE void fetch_stage(const TileGemmArguments& in, std::byte* stage, int band_first,
                                int token_first, int stage_index) {
  using S = Stage<kType>;
  constexpr int kVectors = S::kTileBytes / 16;  // of a tile
  constexpr int kAll = kTileGemmBands * S::kTiles * kVectors;
  UPDRAFT_NO_UNROLL
  for (int i = static_cast<int>(thread_x()); i < kAll; i += kTileGemmThreads) {
    const int tile_here = i / kVectors;  // [band][tile]
    int at = i % kVectors * 16;
    const int band = band_first + tile_here / S::kTiles;
    const int tile = stage_index * S::kTiles + tile_here % S::kTiles;
    // What is beyond the matrix is zero: a weight of zero with a scale of zero.
    const bool valid = band < in.bands && tile < in.weight.tiles;
    const TilePlace place = place_of<kType>(in.weight, valid ? band : 0, valid ? tile : 0);
    std::byte* to = stage + tile_here * S::kTileBytes + at;
    const std::byte* from = place.quants + at;
    if constexpr (S::kTileBytes > S::kTileQuants) {
      if (at >= S::kTileQuants) from = place.high + (at - S::kTileQuants);
      if (at >= S::kTileQuants + S::kTileHigh) {
        from = place.scales + (at - S::kTileQuants - S::kTileHigh);
      }
      if (at >= S::kTileQuants + S::kTileHigh + S::kTileScales) {
        from = place.supers + (at - S::kTileQuants - S::kTileHigh - S::kTileScales);
      }
    }
    copy_async16(to, from, valid);
  }
  constexpr int kRowVectors = S::kXRowBytes / 16;
  std::byte* x = stage + S::kWeightBytes;
  UPDRAFT_NO_UNROLL
  for (int i = static_cast<int>(thread_x()); i < kTileGemmTokens * kRowVectors;
       i += kTileGemmThreads) {
    const int token = i / kRowVectors;
    const int vector = i % kRowVectors;
    const int column = stage_index * kStageCols + vector * 16 / S::kXElementBytes;
    const bool valid = token_first + token < in.out.tokens && column < in.cols;
    const std::byte* from = in.x + (token_first + token) * in.x_row_bytes +
                            static_cast<int64_t>(column) * S::kXElementBytes;
    copy_async16(x + x_unit_offset<S::kXRowBytes>(token, vector / 2) + vector % 2 * 16,
                 valid ? from : in.x, valid);
  }
}

template <DType kType>
UPDRAFT_DEVICE TileRegisters<kType> stage_tile(const std::byte* stage, int tile_here, int lane) {
  using S = Stage<kType>;
  const std::byte* tile = stage + tile_here * S::kTileBytes;
  const std::byte* high = tile + S::kTileQuants;
  const std::byte* scales = high + S::kTileHigh;
  return read_tile<kType, ReadShared>({tile, high, scales, scales + S::kTileScales}, lane);
}

template <DType kType>
UPDRAFT_DEVICE Vec16 stage_activations(const std::byte* x, int token, int chunk, int t) {
  constexpr int kRowBytes = Stage<kType>::kXRowBytes;
  if constexpr (kType == DType::kI8) {
    const auto* at =
        reinterpret_cast<const Vec8*>(x + x_unit_offset<kRowBytes>(token, chunk) + 8 * t);
    return {{at->word[0], at->word[1], 0, 0}};
  } else if constexpr (kType == DType::kQ6_K) {
    const auto* first =
        reinterpret_cast<const Vec8*>(x + x_unit_offset<kRowBytes>(token, 2 * chunk) + 8 * t);
    const auto* second =
        reinterpret_cast<const Vec8*>(x + x_unit_offset<kRowBytes>(token, 2 * chunk + 1) + 8 * t);
    return {{first->word[0], first->word[1], second->word[0], second->word[1]}};
  } else {
    return *reinterpret_cast<const Vec16*>(x + x_unit_offset<kRowBytes>(token, 2 * chunk + t / 2) +
                                           t % 2 * 16);
  }
}

// kSplit: the columns are in more than one split, whose sums a third set of totals adds up, in
// shared memory, where each thread has its own.
template <DType kType, bool kSplit>
UPDRAFT_KERNEL(kTileGemmThreads)
tile_gemm_kernel(TileGemmArguments in) {
  using S = Stage<kType>;
  using Registers = TileRegisters<kType>;
  using SumType = typename Sum<kType>::Type;
  constexpr int kTokenTiles = kTileGemmTokens / 2 / kTileTokens;  // of a warp
  constexpr int kStageChunks = kStageCols / kChunk;
  auto* stages = dynamic_shared<std::byte>();
  auto* totals = reinterpret_cast<SumType*>(stages + S::kCount * S::kBytes) + thread_x();
  const int warp = static_cast<int>(thread_x()) / 32;
  const int lane = static_cast<int>(thread_x()) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int band_of_warp = warp / 2 * 2;
  const int token_of_warp = warp % 2 * (kTileGemmTokens / 2);
  const int band_first = static_cast<int>(block_x()) * kTileGemmBands;
  const int token_first = static_cast<int>(block_y()) * kTileGemmTokens;

  const int stage_count = (in.weight.tiles + S::kTiles - 1) / S::kTiles;
  const int chunk_count = in.weight.tiles * Registers::kChunks;
  const int part_chunks = tiles_per_part<kType>(in.weight.tiles, in.splits) * Registers::kChunks;
  const int split_chunks = part_chunks * kPartsPerSplit;
  int part_end = part_chunks;
  int split_end = split_chunks;

  SumType sums[2][kTokenTiles][4] = {};
  SumType of_split[2][kTokenTiles][4] = {};
  const auto end_part = [&] {
    UPDRAFT_UNROLL
    for (int r = 0; r < 2; ++r) {
      UPDRAFT_UNROLL
      for (int n = 0; n < kTokenTiles; ++n) {
        UPDRAFT_UNROLL
        for (int i = 0; i < 4; ++i) {
          of_split[r][n][i] += sums[r][n][i];
          sums[r][n][i] = 0;
        }
      }
    }
  };
  const auto end_split = [&](bool first) {
    UPDRAFT_UNROLL
    for (int r = 0; r < 2; ++r) {
      UPDRAFT_UNROLL
      for (int n = 0; n < kTokenTiles; ++n) {
        UPDRAFT_UNROLL
        for (int i = 0; i < 4; ++i) {
          SumType& total = totals[((r * kTokenTiles + n) * 4 + i) * kTileGemmThreads];
          total = (first ? SumType{0} : total) + of_split[r][n][i];
          of_split[r][n][i] = 0;
        }
      }
    }
  };

  let_next_start();
  wait_for_previous();
  UPDRAFT_UNROLL
  for (int s = 0; s < S::kCount - 1; ++s) {
    if (s < stage_count) {
      fetch_stage<kType>(in, stages + s * S::kBytes, band_first, token_first, s);
    }
    copy_commit();
  }
  for (int s = 0; s < stage_count; ++s) {
    copy_wait<S::kCount - 2>();
    sync_block();  // the stage is there for all, and all have left the one before
    const int next = s + S::kCount - 1;
    if (next < stage_count) {
      fetch_stage<kType>(in, stages + next % S::kCount * S::kBytes, band_first, token_first, next);
    }
    copy_commit();
    const std::byte* stage = stages + s % S::kCount * S::kBytes;
    UPDRAFT_UNROLL
    for (int c = 0; c < kStageChunks; ++c) {
      const int chunk = s * kStageChunks + c;
      if (chunk >= chunk_count) break;
      if (chunk == part_end) {
        end_part();
        part_end += part_chunks;
        if constexpr (kSplit) {
          if (chunk == split_end) {
            end_split(split_end == split_chunks);
            split_end += split_chunks;
          }
        }
      }
      ChunkOperand<kType> w[2];
      UPDRAFT_UNROLL
      for (int r = 0; r < 2; ++r) {
        const int tile_here = (band_of_warp + r) * S::kTiles + (Registers::kChunks == 1 ? c : 0);
        w[r] = make_operand(stage_tile<kType>(stage, tile_here, lane),
                            Registers::kChunks == 1 ? 0 : c);
      }
      UPDRAFT_UNROLL
      for (int n = 0; n < kTokenTiles; ++n) {
        const Vec16 b = stage_activations<kType>(stage + S::kWeightBytes,
                                                 token_of_warp + n * kTileTokens + g, c, t);
        float column_sums[2] = {0.0F, 0.0F};
        if constexpr (Registers::kHasMin) add_columns(b, column_sums);
        UPDRAFT_UNROLL
        for (int r = 0; r < 2; ++r) multiply_chunk<kType>(w[r], b, column_sums, sums[r][n]);
      }
    }
  }
  copy_wait<0>();
  end_part();
  if constexpr (kSplit) {
    end_split(chunk_count <= split_chunks);
    UPDRAFT_UNROLL
    for (int r = 0; r < 2; ++r) {
      UPDRAFT_UNROLL
      for (int n = 0; n < kTokenTiles; ++n) {
        UPDRAFT_UNROLL
        for (int i = 0; i < 4; ++i) {
          of_split[r][n][i] = totals[((r * kTokenTiles + n) * 4 + i) * kTileGemmThreads];
        }
      }
    }
  }

  const int row_first = (band_first + band_of_warp) * kTileRows;
  UPDRAFT_UNROLL
  for (int n = 0; n < kTokenTiles; ++n) {
    UPDRAFT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int token = token_first + token_of_warp + n * kTileTokens + 2 * t + i % 2;
      const int row = row_first + g + i / 2 * 8;
      const auto first = static_cast<float>(of_split[0][n][i]);
      const auto second = static_cast<float>(of_split[1][n][i]);
      if (in.out.gated) {
        write_gated(in.out, token, row, first, second);
      } else {
        write_output(in.out, token, row, first);
        write_output(in.out, token, row + kTileRows, second);
      }
    }
  }
}

template <DType kType>
Result<void> run_tile_gemm_split(const TileGemmArguments& in, Stream stream) {
  using S = Stage<kType>;
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>((in.bands + kTileGemmBands - 1) / kTileGemmBands),
                static_cast<uint32_t>((in.out.tokens + kTileGemmTokens - 1) / kTileGemmTokens), 1};
  shape.block = {kTileGemmThreads, 1, 1};
  shape.shared_bytes = size_t{S::kCount} * S::kBytes;
  shape.early_start = true;
  if (in.splits == 1) return launch(tile_gemm_kernel<kType, false>, shape, stream, in);
  shape.shared_bytes += size_t{kTileGemmBands} * kTileRows * kTileGemmTokens * sizeof(float);
  return launch(tile_gemm_kernel<kType, true>, shape, stream, in);
}

// Declared here, made in the file of its format.
template <DType kType>
Result<void> run_tile_gemm_of(const TileGemmArguments& in, Stream stream);
template <>
Result<void> run_tile_gemm_of<DType::kQ4_0>(const TileGemmArguments&, Stream);
template <>
Result<void> run_tile_gemm_of<DType::kQ4_K>(const TileGemmArguments&, Stream);
template <>
Result<void> run_tile_gemm_of<DType::kQ5_0>(const TileGemmArguments&, Stream);
template <>
Result<void> run_tile_gemm_of<DType::kQ5_1>(const TileGemmArguments&, Stream);
template <>
Result<void> run_tile_gemm_of<DType::kQ5_K>(const TileGemmArguments&, Stream);
template <>
Result<void> run_tile_gemm_of<DType::kQ6_K>(const TileGemmArguments&, Stream);
template <>
Result<void> run_tile_gemm_of<DType::kQ8_0>(const TileGemmArguments&, Stream);
template <>
Result<void> run_tile_gemm_of<DType::kI8>(const TileGemmArguments&, Stream);
template <>
Result<void> run_tile_gemm_of<DType::kBF16>(const TileGemmArguments&, Stream);
template <>
Result<void> run_tile_gemm_of<DType::kF16>(const TileGemmArguments&, Stream);
template <>
Result<void> run_tile_gemm_of<DType::kF8_E4M3>(const TileGemmArguments&, Stream);

#define UPDRAFT_TILE_GEMM_OF(type)                                                  \
  template <>                                                                       \
  Result<void> run_tile_gemm_of<type>(const TileGemmArguments& in, Stream stream) { \
    return run_tile_gemm_split<type>(in, stream);                                   \
  }

}  // namespace updraft::cuda
