// Checks, the number of blocks, and the way to the kernel of a format.
#include <algorithm>
#include <string>

#include "kernels/cuda/packed_product.h"
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
  if (auto r = check_product(op, {"skinny gemm", kSkinnyTokensMax, 8, true}); !r) return r;
  if (op.splits > 1 && op.workspace == nullptr) {
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
  in.out = output_of(op, in.weight);
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
