// Checks, the arranged activations, and the way to the kernel of a format.
#include <algorithm>
#include <string>

#include "kernels/cuda/gemm_passes.h"
#include "kernels/cuda/packed_product.h"
#include "kernels/cuda/warpgroup_gemm.h"
#include "kernels/cuda/warpgroup_gemm_kernel.h"

namespace updraft::cuda {
namespace {

constexpr int32_t kTokensMax = 65535 * 128;
constexpr int64_t kRowsOfBlock = kGroupGemmWarps * kTileRows;
constexpr int64_t kSplitStagesMin = 4;  // 256 columns, a superblock; a ring is hardly deeper

int64_t blocks_of(const PackedLayout& layout, int64_t tokens, int64_t block_tokens) {
  return (layout.rows_padded + kRowsOfBlock - 1) / kRowsOfBlock *
         ((tokens + block_tokens - 1) / block_tokens);
}
int64_t stages_of(const PackedLayout& layout) {
  return (layout.cols_padded + kStageCols - 1) / kStageCols;
}

Result<void> check(const WarpgroupGemm& op) {
  const SkinnyGemm& product = op.product;
  const PackedLayout& layout = product.layout;
  const std::string shape = "warpgroup gemm: " + std::to_string(layout.rows) + " x " +
                            std::to_string(layout.cols) + " " + dtype_info(layout.type).name +
                            " with " + std::to_string(product.tokens) + " tokens";
  if (!warpgroup_gemm_takes(layout.type)) return fail(shape + ": no such format");
  if (auto r = check_product(product, {"warpgroup gemm", kTokensMax, 8}); !r) return r;
  if (product.normed.factors != nullptr) return fail(shape + ": no norm's factors");
  if (op.arranged == nullptr) return fail(shape + ": no scratch");
  if (op.block_tokens != 0 && op.block_tokens != 128 && op.block_tokens != 256) {
    return fail(shape + ": blocks of " + std::to_string(op.block_tokens) + " tokens (128, 256)");
  }
  if (op.splits < 1 || op.splits > std::min<int64_t>(kWarpgroupSplitsMax, stages_of(layout))) {
    return fail(shape + ": " + std::to_string(op.splits) + " splits (1.." +
                std::to_string(kWarpgroupSplitsMax) + ", 64 columns each)");
  }
  if (op.splits > 1) {
    if (op.counters == nullptr || op.partial == nullptr)
      return fail(shape + ": splits without counters and a place for their sums");
    const int64_t tiles = blocks_of(layout, product.tokens, 128);
    if (tiles > static_cast<int64_t>(kSkinnyCounterBytes / sizeof(uint32_t)))
      return fail(shape + ": " + std::to_string(tiles) + " tiles with split columns");
  }
  return {};
}

// The time of a block of 256 tokens is taken for two, that of one of 128 for a little more than
// one: it unpacks the same weights.
int choose_block_tokens(const WarpgroupGemm& op) {
  if (op.block_tokens != 0) return op.block_tokens;
  const auto time_of = [&](int64_t tokens, double block) {
    const int64_t blocks = blocks_of(op.product.layout, op.product.tokens, tokens) * op.splits;
    return static_cast<double>((blocks + op.multiprocessor_count - 1) / op.multiprocessor_count) *
           block;
  };
  return time_of(256, 2.0) <= time_of(128, 1.1) ? 256 : 128;
}

Result<void> run_of_format(DType type, int block_tokens, const TensorMap& x,
                           const WarpgroupGemmArguments& in, Stream stream) {
  switch (type) {
    case DType::kQ4_0:
      return run_warpgroup_gemm_of<DType::kQ4_0>(block_tokens, x, in, stream);
    case DType::kQ4_K:
      return run_warpgroup_gemm_of<DType::kQ4_K>(block_tokens, x, in, stream);
    case DType::kQ5_0:
      return run_warpgroup_gemm_of<DType::kQ5_0>(block_tokens, x, in, stream);
    case DType::kQ5_1:
      return run_warpgroup_gemm_of<DType::kQ5_1>(block_tokens, x, in, stream);
    case DType::kQ5_K:
      return run_warpgroup_gemm_of<DType::kQ5_K>(block_tokens, x, in, stream);
    case DType::kQ6_K:
      return run_warpgroup_gemm_of<DType::kQ6_K>(block_tokens, x, in, stream);
    case DType::kQ8_0:
      return run_warpgroup_gemm_of<DType::kQ8_0>(block_tokens, x, in, stream);
    case DType::kBF16:
      return run_warpgroup_gemm_of<DType::kBF16>(block_tokens, x, in, stream);
    case DType::kF16:
      return run_warpgroup_gemm_of<DType::kF16>(block_tokens, x, in, stream);
    case DType::kF8_E4M3:
      return run_warpgroup_gemm_of<DType::kF8_E4M3>(block_tokens, x, in, stream);
    default:
      return fail(std::string("warpgroup gemm: no kernel for ") + dtype_info(type).name);
  }
}

}  // namespace

bool warpgroup_gemm_takes(DType type) {
  return type != DType::kI8 && packed_format(type).tile_cols != 0;
}

int32_t warpgroup_gemm_splits_max(const PackedLayout& layout, int32_t tokens,
                                  int32_t multiprocessor_count) {
  const int64_t blocks = blocks_of(layout, tokens, 128);
  int32_t splits = 1;
  while (splits < kWarpgroupSplitsMax && blocks * splits < multiprocessor_count &&
         stages_of(layout) >= 2 * splits * kSplitStagesMin) {
    splits *= 2;
  }
  return splits;
}

size_t warpgroup_gemm_partial_bytes(const PackedLayout& layout, int32_t tokens, int32_t splits) {
  if (splits <= 1) return 0;
  // As if a block had 256 tokens: not less than with 128.
  return static_cast<size_t>(blocks_of(layout, tokens, 256) * splits * kRowsOfBlock) * 256 *
         sizeof(float);
}

Result<void> run_warpgroup_gemm(const WarpgroupGemm& op, Stream stream) {
  if (Result<void> checked = check(op); !checked) return checked;
  const SkinnyGemm& product = op.product;
  const PackedLayout& layout = product.layout;
  const int block_tokens = choose_block_tokens(op);
  TensorMap map;
  const BoxedMatrix boxed{op.arranged, product.tokens, layout.cols, layout.cols, block_tokens};
  if (Result<void> made = make_tensor_map(boxed, &map); !made) return made;
  ArrangeColumns arrange;
  arrange.weights = layout.type;
  arrange.x = product.x;
  arrange.x_stride = product.x_stride;
  arrange.tokens = product.tokens;
  arrange.cols = static_cast<int32_t>(layout.cols);
  arrange.out = op.arranged;
  if (Result<void> arranged = run_arrange_columns(arrange, stream); !arranged) return arranged;

  WarpgroupGemmArguments in{};
  in.weight = PackedWeight::of(layout, product.weight);
  in.out = output_of(product, in.weight);
  in.bands = static_cast<int32_t>(layout.rows_padded / kTileRows);
  in.splits = op.splits;
  in.counters = op.counters;
  in.partial = reinterpret_cast<Vec16*>(op.partial);
  return run_of_format(layout.type, block_tokens, map, in, stream);
}

}  // namespace updraft::cuda
