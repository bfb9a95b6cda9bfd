// The warpgroup product's kernel, which each warpgroup_gemm_<formats>.cu makes for its formats.
//
// A block computes 128 rows by kTokens tokens with three warpgroups. The third brings in, 64
// columns at a time, the packed weights and the activations, some stages ahead: `full` barriers say
// that a stage has landed, `empty` ones that the other two have left it. Those multiply 64 rows
// each: weights are the operand in registers, whose fragments of 16 rows a warp are those of the
// packed layout (weight_layout.h); while the tensor cores work on one stage a warp unpacks the
// next. Activations, their columns arranged as the weights', are the operand in shared memory.
//
// Where several blocks share the columns (block_z), each puts its sums aside; the last to come adds
// them up in the order of the columns.
//
// Every wait has a bound: who gives up has NaN for sums, and goes on to the end.
#pragma once

#include "kernels/cuda/group_output.h"
#include "kernels/cuda/last_block.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_gemm_kernel.h"
#include "kernels/cuda/warpgroup.h"
#include "kernels/cuda/warpgroup_gemm.h"

namespace updraft::cuda {

inline constexpr int kGroupGemmThreads = 3 * kGroupThreads;
inline constexpr int kGroupGemmWarps = 8;  // that multiply, one band each
inline constexpr int kGroupGemmSteps = kStageCols / 16;

struct WarpgroupGemmArguments {
  PackedWeight weight;
  GemmOutput out;
  int32_t bands;
  int32_t splits = 1;
  // With more splits than one; a tile of outputs is block_y() * grid_x() + block_x().
  uint32_t* counters = nullptr;  // [tiles]
  Vec16* partial = nullptr;      // [tiles][splits][kTokens / 8][2 * kGroupThreads]
};

// Of one stage: the activations' box, then of each band quants, high bits, scales and
// superblocks' scales, each of all tiles of the stage.
template <DType kType, int kTokens>
struct GroupStage {
  using Tile = Stage<kType>;
  static constexpr int kBoxBytes = kTokens * kStageCols * 2;
  static constexpr int kBandBytes = Tile::kTiles * Tile::kTileBytes;
  static constexpr int kBytes = (kBoxBytes + kGroupGemmWarps * kBandBytes + kPatternBytes - 1) /
                                kPatternBytes * kPatternBytes;
  // Barriers, and what comes before the first pattern.
  static constexpr int kAheadBytes = 2 * kPatternBytes;
  static constexpr int kSharedBytesMax = 227 << 10;
  static constexpr int kFit = (kSharedBytesMax - kAheadBytes) / kBytes;
  static constexpr int kCount = kFit < 6 ? kFit : 6;
  static_assert(kCount >= 3);
  // The gated unit's ups pass through the stages' memory.
  static_assert(kCount * kBytes >= kGroupGemmWarps / 2 * kTokens / 2 * 32 * 4);
};

// The stages of a block: all, or its split's share.
struct StageRange {
  int first;
  int count;
};
template <DType kType>
UPDRAFT_DEVICE StageRange stages_of_block(const WarpgroupGemmArguments& in) {
  const int all = (in.weight.tiles + Stage<kType>::kTiles - 1) / Stage<kType>::kTiles;
  const int split = static_cast<int>(block_z());
  const int first = all * split / in.splits;
  return {first, all * (split + 1) / in.splits - first};
}

// The stages' memory as both sides see it.
template <DType kType, int kTokens>
struct GroupRing {
  using S = GroupStage<kType, kTokens>;
  uint64_t* full;
  uint64_t* empty;
  uint32_t* is_last;  // of the splits: beside the stages, which copies may still write
  std::byte* stages;

  static UPDRAFT_DEVICE GroupRing of_block() {
    auto* memory = dynamic_shared<std::byte>();
    auto* barriers = reinterpret_cast<uint64_t*>(memory);
    constexpr int kBarrierBytes = 2 * S::kCount * static_cast<int>(sizeof(uint64_t));
    return {barriers, barriers + S::kCount, reinterpret_cast<uint32_t*>(memory + kBarrierBytes),
            next_pattern(memory + kBarrierBytes + sizeof(uint32_t))};
  }
  UPDRAFT_DEVICE std::byte* stage(int slot) const { return stages + slot * S::kBytes; }
  UPDRAFT_DEVICE std::byte* band(int slot, int band_here) const {
    return stage(slot) + S::kBoxBytes + band_here * S::kBandBytes;
  }
};

// One warp: its first lane asks for the activations, its first eight each for a band. (A phase may
// hear of bytes before it is told to expect them: the one arrival that it lacks comes with the
// telling.)
template <DType kType, int kTokens>
UPDRAFT_DEVICE void bring_stages(const WarpgroupGemmArguments& in, const TensorMap* x,
                                 const GroupRing<kType, kTokens>& ring, const StageRange& stages,
                                 int lane) {
  using S = GroupStage<kType, kTokens>;
  using T = Stage<kType>;
  const int band_first = static_cast<int>(block_x()) * kGroupGemmWarps;
  const int token_first = static_cast<int>(block_y()) * kTokens;
  const int bands_left = in.bands - band_first;
  const int bands_here = bands_left < kGroupGemmWarps ? bands_left : kGroupGemmWarps;
  int slot = 0;
  uint32_t parity = 1;  // of the phase that frees the slot; the first round finds it free
  UPDRAFT_NO_UNROLL
  for (int s = 0; s < stages.count; ++s) {
    if (s >= S::kCount && !all(wait_phase(ring.empty + slot, parity))) return;
    const int tile = (stages.first + s) * T::kTiles;
    const int tiles_left = in.weight.tiles - tile;
    const int tiles_here = tiles_left < T::kTiles ? tiles_left : T::kTiles;
    if (lane == 0) {
      arrive_expecting(
          ring.full + slot,
          static_cast<uint32_t>(S::kBoxBytes + bands_here * tiles_here * T::kTileBytes));
      copy_box(ring.stage(slot), x, (stages.first + s) * kStageCols, token_first, ring.full + slot);
    }
    if (lane < bands_here) {
      const TilePlace from = place_of<kType>(in.weight, band_first + lane, tile);
      std::byte* to = ring.band(slot, lane);
      const auto part = [&](const std::byte* at, int tile_bytes) {
        if (tile_bytes == 0) return;
        copy_bulk(to, at, static_cast<uint32_t>(tiles_here * tile_bytes), ring.full + slot);
        to += T::kTiles * tile_bytes;
      };
      part(from.quants, T::kTileQuants);
      part(from.high, T::kTileHigh);
      part(from.scales, T::kTileScales);
      part(from.supers, T::kTileSupers);
    }
    if (++slot == S::kCount) {
      slot = 0;
      parity ^= 1U;
    }
  }
}

// The fragments of a stage: four steps of this warp's 16 rows. Beyond the last chunk they are zero.
template <DType kType>
UPDRAFT_DEVICE void unpack_stage(const std::byte* band, int chunks_here, int lane,
                                 uint32_t (&a)[kGroupGemmSteps][4]) {
  using T = Stage<kType>;
  using Registers = TileRegisters<kType>;
  UPDRAFT_UNROLL
  for (int i = 0; i < T::kTiles; ++i) {
    const std::byte* high = band + T::kTiles * T::kTileQuants;
    const std::byte* scales = high + T::kTiles * T::kTileHigh;
    const std::byte* supers = scales + T::kTiles * T::kTileScales;
    const TilePlace place{band + i * T::kTileQuants, high + i * T::kTileHigh,
                          scales + i * T::kTileScales, supers + i * T::kTileSupers};
    const Registers tile = read_tile<kType, ReadShared>(place, lane);
    UPDRAFT_UNROLL
    for (int c = 0; c < Registers::kChunks; ++c) {
      const int chunk = i * Registers::kChunks + c;
      const ChunkScales by = chunk_scales(tile, c);
      UPDRAFT_UNROLL
      for (int step = 0; step < 2; ++step) {
        uint32_t(&out)[4] = a[2 * chunk + step];
        make_scaled_fragment(tile, c, step, by, out);
        UPDRAFT_UNROLL
        for (int j = 0; j < 4; ++j) out[j] = chunk < chunks_here ? out[j] : 0U;
      }
    }
  }
}

// A warp of the two groups that multiply: the sums of its 16 rows, NaN when a wait gave up.
template <DType kType, int kTokens>
UPDRAFT_DEVICE void multiply_stages(const WarpgroupGemmArguments& in,
                                    const GroupRing<kType, kTokens>& ring, const StageRange& stages,
                                    int warp, int lane, float (&sums)[kTokens / 2]) {
  using S = GroupStage<kType, kTokens>;
  const int chunk_count = in.weight.tiles * TileRegisters<kType>::kChunks - 2 * stages.first;
  bool whole = true;
  int slot = 0;
  uint32_t parity = 0;
  int slot_before = 0;
  // The fragments of two stages: those that are multiplied and those that are made.
  uint32_t even[kGroupGemmSteps][4];
  uint32_t odd[kGroupGemmSteps][4];
  const auto multiply_stage = [&](int s, uint32_t(&a)[kGroupGemmSteps][4]) {
    if (whole) whole = all(wait_phase(ring.full + slot, parity));
    unpack_stage<kType>(ring.band(slot, warp), chunk_count - 2 * s, lane, a);
    const uint64_t b = k_major_matrix(shared_address(ring.stage(slot)));
    group_fence();
    UPDRAFT_UNROLL
    for (int step = 0; step < kGroupGemmSteps; ++step) {
      group_mma_bf16(sums, a[step], b + static_cast<uint64_t>(2 * step));  // 32 bytes on
    }
    group_commit();
    group_wait<1>();
    if (s > 0) {
      sync_warp();
      if (lane == 0) arrive_at(ring.empty + slot_before);
    }
    slot_before = slot;
    if (++slot == S::kCount) {
      slot = 0;
      parity ^= 1U;
    }
  };
  UPDRAFT_NO_UNROLL
  for (int s = 0; s + 1 < stages.count; s += 2) {
    multiply_stage(s, even);
    multiply_stage(s + 1, odd);
  }
  if (stages.count % 2 != 0) multiply_stage(stages.count - 1, even);
  group_wait<0>();
  pin(sums);
  if (!whole) {
    UPDRAFT_UNROLL
    for (int i = 0; i < kTokens / 2; ++i) sums[i] = bits_float(0x7FC00000U);
  }
}

// Of the threads that multiply. True: all splits' sums of the tile are in `sums`; else another
// block will have them.
template <int kTokens>
UPDRAFT_DEVICE bool join_group_splits(const WarpgroupGemmArguments& in, uint32_t* is_last,
                                      float (&sums)[kTokens / 2]) {
  constexpr int kThreads = 2 * kGroupThreads;
  constexpr int kVectors = kTokens / 8;
  constexpr uint32_t kBarrier = 1;
  const int64_t tile = static_cast<int64_t>(block_y()) * grid_x() + block_x();
  const int own = static_cast<int>(block_z());
  Vec16* of_tile = in.partial + tile * in.splits * (kVectors * kThreads) + thread_x();
  UPDRAFT_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    store(of_tile + (own * kVectors + v) * kThreads,
          Vec16{{float_bits(sums[4 * v]), float_bits(sums[4 * v + 1]), float_bits(sums[4 * v + 2]),
                 float_bits(sums[4 * v + 3])}});
  }
  if (!comes_last(in.counters + tile, static_cast<uint32_t>(in.splits), is_last,
                  [] { sync_named(kBarrier, kThreads); })) {
    return false;
  }
  UPDRAFT_UNROLL
  for (int i = 0; i < kTokens / 2; ++i) sums[i] = 0.0F;
  UPDRAFT_NO_UNROLL
  for (int split = 0; split < in.splits; ++split) {
    UPDRAFT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const Vec16 part = load_written(of_tile + (split * kVectors + v) * kThreads);
      UPDRAFT_UNROLL
      for (int j = 0; j < 4; ++j) sums[4 * v + j] += bits_float(part.word[j]);
    }
  }
  return true;
}

template <DType kType, int kTokens>
UPDRAFT_KERNEL_ALONE(kGroupGemmThreads)
warpgroup_gemm_kernel(const UPDRAFT_GRID_CONSTANT TensorMap x, WarpgroupGemmArguments in) {
  if constexpr (kHasWarpgroups) {
    using S = GroupStage<kType, kTokens>;
    const auto ring = GroupRing<kType, kTokens>::of_block();
    const int warp = static_cast<int>(thread_x()) / 32;
    const int lane = static_cast<int>(thread_x()) % 32;
    const StageRange stages = stages_of_block<kType>(in);
    if (thread_x() == 0) {
      UPDRAFT_UNROLL
      for (int i = 0; i < S::kCount; ++i) {
        init_barrier(ring.full + i, 1);
        init_barrier(ring.empty + i, kGroupGemmWarps);
      }
      publish_barriers();
    }
    sync_block();
    let_next_start();
    wait_for_previous();
    if (warp >= kGroupGemmWarps) {
      fewer_registers<kBringRegisters>();
      if (warp == kGroupGemmWarps) bring_stages<kType>(in, &x, ring, stages, lane);
    } else {
      more_registers<kMultiplyRegisters>();
      float sums[kTokens / 2] = {};
      multiply_stages(in, ring, stages, warp, lane, sums);
      if (in.splits > 1 && !join_group_splits<kTokens>(in, ring.is_last, sums)) return;
      const int row_first = (static_cast<int>(block_x()) * kGroupGemmWarps + warp) * kTileRows;
      const int token_first = static_cast<int>(block_y()) * kTokens;
      if (in.out.gated) {
        write_gated_sums<kTokens>(in.out, reinterpret_cast<float*>(ring.stages), 2 * kGroupThreads,
                                  warp, row_first, token_first, lane, sums);
      } else {
        write_sums<kTokens>(in.out, row_first, token_first, lane, sums);
      }
    }
  } else {
    stop_device();  // the host never starts it here
  }
}

template <DType kType, int kTokens>
Result<void> launch_warpgroup_gemm(const TensorMap& x, const WarpgroupGemmArguments& in,
                                   Stream stream) {
  using S = GroupStage<kType, kTokens>;
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>((in.bands + kGroupGemmWarps - 1) / kGroupGemmWarps),
                static_cast<uint32_t>((in.out.tokens + kTokens - 1) / kTokens),
                static_cast<uint32_t>(in.splits)};
  shape.block = {kGroupGemmThreads, 1, 1};
  shape.shared_bytes = size_t{S::kAheadBytes} + size_t{S::kCount} * S::kBytes;
  shape.early_start = true;
  return launch(warpgroup_gemm_kernel<kType, kTokens>, shape, stream, x, in);
}

// Declared here, made in the file of its format.
template <DType kType>
Result<void> run_warpgroup_gemm_of(int block_tokens, const TensorMap& x,
                                   const WarpgroupGemmArguments& in, Stream stream);
#define UPDRAFT_WARPGROUP_GEMM_DECLARED(type)                                                    \
  template <>                                                                                    \
  Result<void> run_warpgroup_gemm_of<type>(int, const TensorMap&, const WarpgroupGemmArguments&, \
                                           Stream);
UPDRAFT_WARPGROUP_GEMM_DECLARED(DType::kQ4_0)
UPDRAFT_WARPGROUP_GEMM_DECLARED(DType::kQ4_K)
UPDRAFT_WARPGROUP_GEMM_DECLARED(DType::kQ5_0)
UPDRAFT_WARPGROUP_GEMM_DECLARED(DType::kQ5_1)
UPDRAFT_WARPGROUP_GEMM_DECLARED(DType::kQ5_K)
UPDRAFT_WARPGROUP_GEMM_DECLARED(DType::kQ6_K)
UPDRAFT_WARPGROUP_GEMM_DECLARED(DType::kQ8_0)
UPDRAFT_WARPGROUP_GEMM_DECLARED(DType::kBF16)
UPDRAFT_WARPGROUP_GEMM_DECLARED(DType::kF16)
UPDRAFT_WARPGROUP_GEMM_DECLARED(DType::kF8_E4M3)
#undef UPDRAFT_WARPGROUP_GEMM_DECLARED

#define UPDRAFT_WARPGROUP_GEMM_OF(type)                                                       \
  template <>                                                                                 \
  Result<void> run_warpgroup_gemm_of<type>(int block_tokens, const TensorMap& x,              \
                                           const WarpgroupGemmArguments& in, Stream stream) { \
    return block_tokens == 128 ? launch_warpgroup_gemm<type, 128>(x, in, stream)              \
                               : launch_warpgroup_gemm<type, 256>(x, in, stream);             \
  }

}  // namespace updraft::cuda
