// A warp takes a tile; a lane writes its 8 columns of either row with one store.
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/unpack_weights.h"
#include "kernels/cuda/weight_tile.h"

namespace updraft::cuda {
namespace {

constexpr int kThreads = 256;

struct UnpackArguments {
  PackedWeight weight;
  std::byte* out;
  int64_t band_first;
  int64_t tile_count;  // of all bands
  int32_t cols;
};

struct LaneTile {
  int64_t row;  // of `out`: row g of the band
  int band;
  int tile;
  int lane;
  bool valid;
};
UPDRAFT_DEVICE LaneTile lane_tile(const UnpackArguments& in) {
  const int64_t index = static_cast<int64_t>(block_x()) * (kThreads / 32) + thread_x() / 32;
  const int lane = static_cast<int>(thread_x() % 32);
  const int64_t band = index / in.weight.tiles;
  return {band * kTileRows + lane / 4, static_cast<int>(in.band_first + band),
          static_cast<int>(index % in.weight.tiles), lane, index < in.tile_count};
}

template <DType kType>
UPDRAFT_KERNEL(kThreads)
unpack_bf16_kernel(UnpackArguments in) {
  let_next_start();
  wait_for_previous();
  using Registers = TileRegisters<kType>;
  const LaneTile at = lane_tile(in);
  if (!at.valid) return;
  const int t = at.lane % 4;
  const Registers tile = fetch_tile<kType>(in.weight, at.band, at.tile, at.lane);
  auto* out = reinterpret_cast<Bf16*>(in.out) + at.row * in.cols;
  UPDRAFT_UNROLL
  for (int c = 0; c < Registers::kChunks; ++c) {
    const int column = (at.tile * Registers::kChunks + c) * kChunk;
    if (column >= in.cols) continue;  // padding
    const ChunkScales by = chunk_scales(tile, c);
    Vec16 rows[2];
    UPDRAFT_UNROLL
    for (int s = 0; s < 2; ++s) {
      uint32_t a[4];
      make_scaled_fragment(tile, c, s, by, a);
      UPDRAFT_UNROLL
      for (int j = 0; j < 4; ++j) rows[j % 2].word[2 * s + j / 2] = a[j];
    }
    UPDRAFT_UNROLL
    for (int half = 0; half < 2; ++half) {
      Bf16* row = out + int64_t{half} * 8 * in.cols + column;
      if constexpr (kType == DType::kQ6_K) {
        store(reinterpret_cast<Vec8*>(row + 4 * t), Vec8{{rows[half].word[0], rows[half].word[1]}});
        store(reinterpret_cast<Vec8*>(row + 16 + 4 * t),
              Vec8{{rows[half].word[2], rows[half].word[3]}});
      } else {
        store(reinterpret_cast<Vec16*>(row + 8 * t), rows[half]);
      }
    }
  }
}

// Bytes 0 and 2 of a word, then 0 and 2 of the next, as one word; `shift` 8 takes 1 and 3.
UPDRAFT_DEVICE uint32_t even_bytes(uint32_t first, uint32_t second, int shift) {
  first = first >> shift & 0x00FF00FFU;
  second = second >> shift & 0x00FF00FFU;
  return ((first | first >> 8) & 0xFFFFU) | (second | second >> 8) << 16;
}

template <DType kType>
UPDRAFT_KERNEL(kThreads)
unpack_bytes_kernel(UnpackArguments in) {
  let_next_start();
  wait_for_previous();
  const LaneTile at = lane_tile(in);
  if (!at.valid) return;
  const auto tile = fetch_tile<kType>(in.weight, at.band, at.tile, at.lane);
  const uint32_t(&word)[4] = tile.quants[0].word;
  std::byte* out = in.out + at.row * in.cols + at.tile * kChunk + 8 * (at.lane % 4);
  UPDRAFT_UNROLL
  for (int half = 0; half < 2; ++half) {
    Vec8 bytes;
    if constexpr (kType == DType::kI8) {
      bytes = {{word[half], word[2 + half]}};
    } else {
      bytes = {{even_bytes(word[0], word[1], 8 * half), even_bytes(word[2], word[3], 8 * half)}};
    }
    store(reinterpret_cast<Vec8*>(out + int64_t{half} * 8 * in.cols), bytes);
  }
}

Result<UnpackArguments> arguments_of(const UnpackWeights& op) {
  const PackedLayout& layout = op.layout;
  if (op.row_first < 0 || op.row_count < 1 || op.row_first % kTileRows != 0 ||
      op.row_count % kTileRows != 0 || op.row_first + op.row_count > layout.rows_padded ||
      layout.cols % kChunk != 0) {
    return fail("unpacking rows " + std::to_string(op.row_first) + " + " +
                std::to_string(op.row_count) + " of " + std::to_string(layout.rows) + " x " +
                std::to_string(layout.cols) + " (multiples of 16, columns of 32)");
  }
  UnpackArguments in{};
  in.weight = PackedWeight::of(layout, op.weight);
  in.out = op.out;
  in.band_first = op.row_first / kTileRows;
  in.tile_count = op.row_count / kTileRows * in.weight.tiles;
  in.cols = static_cast<int32_t>(layout.cols);
  return in;
}

LaunchShape shape_of(const UnpackArguments& in) {
  constexpr int64_t kWarps = kThreads / 32;
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>((in.tile_count + kWarps - 1) / kWarps), 1, 1};
  shape.block = {kThreads, 1, 1};
  shape.early_start = true;
  return shape;
}

}  // namespace

Result<void> run_unpack_bf16(const UnpackWeights& op, Stream stream) {
  Result<UnpackArguments> in = arguments_of(op);
  if (!in) return in.error();
  const LaunchShape shape = shape_of(*in);
  switch (op.layout.type) {
    case DType::kQ4_0:
      return launch(unpack_bf16_kernel<DType::kQ4_0>, shape, stream, *in);
    case DType::kQ5_0:
      return launch(unpack_bf16_kernel<DType::kQ5_0>, shape, stream, *in);
    case DType::kQ5_1:
      return launch(unpack_bf16_kernel<DType::kQ5_1>, shape, stream, *in);
    case DType::kQ8_0:
      return launch(unpack_bf16_kernel<DType::kQ8_0>, shape, stream, *in);
    case DType::kQ4_K:
      return launch(unpack_bf16_kernel<DType::kQ4_K>, shape, stream, *in);
    case DType::kQ5_K:
      return launch(unpack_bf16_kernel<DType::kQ5_K>, shape, stream, *in);
    case DType::kQ6_K:
      return launch(unpack_bf16_kernel<DType::kQ6_K>, shape, stream, *in);
    case DType::kBF16:
      return launch(unpack_bf16_kernel<DType::kBF16>, shape, stream, *in);
    case DType::kF16:
      return launch(unpack_bf16_kernel<DType::kF16>, shape, stream, *in);
    case DType::kF8_E4M3:
      return launch(unpack_bf16_kernel<DType::kF8_E4M3>, shape, stream, *in);
    default:
      return fail(std::string("unpacking to bfloat16: not from ") +
                  dtype_info(op.layout.type).name);
  }
}

Result<void> run_unpack_bytes(const UnpackWeights& op, Stream stream) {
  Result<UnpackArguments> in = arguments_of(op);
  if (!in) return in.error();
  const LaunchShape shape = shape_of(*in);
  switch (op.layout.type) {
    case DType::kF8_E4M3:
      return launch(unpack_bytes_kernel<DType::kF8_E4M3>, shape, stream, *in);
    case DType::kI8:
      return launch(unpack_bytes_kernel<DType::kI8>, shape, stream, *in);
    default:
      return fail(std::string("unpacking bytes: not from ") + dtype_info(op.layout.type).name);
  }
}

}  // namespace updraft::cuda
