// Checks, the number of blocks, and the way to the kernel of a format.
#include <algorithm>
#include <string>

#include "kernels/cuda/skinny_gemm_kernel.h"
#include "kernels/quant/block_layout.h"

namespace updraft::cuda {

namespace {

constexpr int64_t kCountersMax = kSkinnyCounterBytes / sizeof(uint32_t);
constexpr int kRowsOfBlock = 2 * kTileRows;
constexpr int64_t kSplitsMax = 8;
constexpr int64_t kSplitsOfFewRowsMax = 16;
constexpr int64_t kWarpTilesMin = 2;  // of 64 columns

Result<void> check(const SkinnyGemm& op) {
  const PackedLayout& layout = op.layout;
  if (op.tokens < 1 || op.tokens > kSkinnyTokensMax) {
    return fail("skinny gemm: " + std::to_string(op.tokens) + " tokens (1.." +
                std::to_string(kSkinnyTokensMax) + ")");
  }
  const bool bytes = layout.type == DType::kI8;
  if ((bytes ? op.x != nullptr || op.x_int8 == nullptr || op.token_scales == nullptr
             : op.x == nullptr || op.x_int8 != nullptr)) {
    return fail(std::string("skinny gemm: activations of another kind than ") +
                dtype_info(layout.type).name + " takes");
  }
  if (layout.cols % kChunk != 0 || op.x_stride % 8 != 0 || op.x_stride < layout.cols) {
    return fail("skinny gemm: " + std::to_string(layout.cols) + " columns with a stride of " +
                std::to_string(op.x_stride) + " (multiples of 32 and of 8)");
  }
  const int64_t y_cols = layout.gated ? layout.rows / 2 : layout.rows;
  const ResidualOutput& residual = op.residual;
  if (residual.hidden != nullptr) {
    if (op.y_bf16 != nullptr || op.y_f32 != nullptr || layout.gated || residual.norm == nullptr ||
        residual.x == nullptr || residual.band_sums == nullptr || layout.rows % kTileRows != 0) {
      return fail("skinny gemm: " + std::to_string(layout.rows) +
                  " rows into the residual stream (a multiple of 16, not gated, no other output)");
    }
  } else if ((op.y_bf16 == nullptr) == (op.y_f32 == nullptr) || op.y_stride < y_cols) {
    return fail("skinny gemm: one output with a stride of at least " + std::to_string(y_cols));
  }
  if ((layout.gated && op.y_bf16 == nullptr) || (op.accumulate && op.y_f32 == nullptr)) {
    return fail("skinny gemm: a gated output is bfloat16, one that is added to is f32");
  }
  const int factors = (op.normed.band_sums != nullptr) + (op.normed.factors != nullptr) +
                      (op.token_scales != nullptr);
  if (factors > 1) return fail("skinny gemm: two kinds of factors for the tokens");
  if (op.splits < 1 || (op.splits > 1 && op.workspace == nullptr)) {
    return fail("skinny gemm: " + std::to_string(op.splits) + " splits without a workspace");
  }
  if (op.splits > 1 && layout.rows_padded / kTileRows > kCountersMax) {
    return fail("skinny gemm: " + std::to_string(layout.rows) + " rows with split columns (up to " +
                std::to_string(kCountersMax * kTileRows) + ")");
  }
  return {};
}

}  // namespace

// The fewest splits that fill the device with two blocks on each multiprocessor, as long as each
// warp keeps a few tiles in flight. A matrix of so few rows that this leaves multiprocessors idle
// is cut on until each has a block or each warp the least that there is.
int32_t skinny_gemm_splits(const PackedLayout& layout, int32_t multiprocessor_count) {
  const int64_t blocks = (layout.rows_padded + kRowsOfBlock - 1) / kRowsOfBlock;
  const auto fewest = [&](int64_t blocks_wanted) { return (blocks_wanted + blocks - 1) / blocks; };
  const bool super = packed_format(layout.type).super_bytes != 0;  // whole ones
  const int64_t least_cols = super ? kSuperBlock : 64;             // of a warp
  const int64_t most = layout.cols_padded / (least_cols * kSkinnyWarps);
  const int64_t busy = super ? most : most / kWarpTilesMin;
  const int64_t full = std::min({fewest(2 * int64_t{multiprocessor_count}), busy, kSplitsMax});
  const int64_t reached = std::min({fewest(multiprocessor_count), most, kSplitsOfFewRowsMax});
  return static_cast<int32_t>(std::max({int64_t{1}, full, reached}));
}

size_t skinny_gemm_workspace_bytes(const PackedLayout& layout, int32_t splits) {
  if (splits <= 1) return 0;
  return kSkinnyCounterBytes + static_cast<size_t>(splits) * kSkinnyTokensMax *
                                   static_cast<size_t>(layout.rows_padded) * sizeof(float);
}

Result<void> run_skinny_gemm(const SkinnyGemm& op, Stream stream) {
  if (Result<void> checked = check(op); !checked) return checked;
  const PackedLayout& layout = op.layout;
  SkinnyArguments in{};
  in.weight = PackedWeight::of(layout, op.weight);
  in.out.row_scales = packed_format(layout.type).row_scale ? in.weight.row_scales() : nullptr;
  in.out.token_scales = op.normed.factors != nullptr ? op.normed.factors : op.token_scales;
  in.out.bias = op.bias;
  in.out.y_bf16 = op.y_bf16;
  in.out.y_f32 = op.y_f32;
  in.out.y_stride = op.y_stride;
  in.out.tokens = op.tokens;
  in.out.rows = static_cast<int32_t>(layout.rows);
  in.out.gated = layout.gated;
  in.out.accumulate = op.accumulate;
  in.out.residual = op.residual;
  in.band_sums = op.normed.band_sums;
  in.eps = op.normed.eps;
  in.x = op.x;
  in.x_int8 = op.x_int8;
  in.counters = reinterpret_cast<uint32_t*>(op.workspace);
  in.partial = op.workspace == nullptr ? nullptr : op.workspace + kSkinnyCounterBytes;
  in.x_stride = static_cast<int32_t>(op.x_stride);
  in.bands = static_cast<int32_t>(layout.rows_padded / kTileRows);
  in.cols = static_cast<int32_t>(layout.cols);
  switch (layout.type) {
    case DType::kQ4_0:
      return run_skinny_of<DType::kQ4_0>(op, in, stream);
    case DType::kQ4_K:
      return run_skinny_of<DType::kQ4_K>(op, in, stream);
    case DType::kQ5_0:
      return run_skinny_of<DType::kQ5_0>(op, in, stream);
    case DType::kQ5_1:
      return run_skinny_of<DType::kQ5_1>(op, in, stream);
    case DType::kQ5_K:
      return run_skinny_of<DType::kQ5_K>(op, in, stream);
    case DType::kQ6_K:
      return run_skinny_of<DType::kQ6_K>(op, in, stream);
    case DType::kQ8_0:
      return run_skinny_of<DType::kQ8_0>(op, in, stream);
    case DType::kI8:
      return run_skinny_of<DType::kI8>(op, in, stream);
    case DType::kBF16:
      return run_skinny_of<DType::kBF16>(op, in, stream);
    case DType::kF16:
      return run_skinny_of<DType::kF16>(op, in, stream);
    case DType::kF8_E4M3:
      return run_skinny_of<DType::kF8_E4M3>(op, in, stream);
    default:
      return fail(std::string("skinny gemm: no layout for ") + dtype_info(layout.type).name);
  }
}

}  // namespace updraft::cuda
