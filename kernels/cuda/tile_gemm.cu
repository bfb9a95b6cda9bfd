// Checks, and the way to the kernel of a format.
#include <algorithm>

#include "kernels/cuda/packed_product.h"
#include "kernels/cuda/tile_gemm_kernel.h"

namespace updraft::cuda {
namespace {

constexpr int32_t kTokensMax = 65535 * kTileGemmTokens;

// What several splits' totals beside the stages may take: what a block of an A100 has.
constexpr size_t kSharedBytesOfSplits = 163 << 10;

// The same bits, by the kernel for a few tokens.
Result<void> run_by_skinny(const SkinnyGemm& op, Stream stream) {
  for (int32_t first = 0; first < op.tokens; first += kSkinnyTokensMax) {
    SkinnyGemm slice = op;
    slice.tokens = std::min(kSkinnyTokensMax, op.tokens - first);
    if (op.x != nullptr) slice.x += first * op.x_stride;
    if (op.x_int8 != nullptr) slice.x_int8 += first * op.x_stride;
    if (op.token_scales != nullptr) slice.token_scales += first;
    if (op.normed.factors != nullptr) slice.normed.factors += first;
    if (op.y_bf16 != nullptr) slice.y_bf16 += first * op.y_stride;
    if (op.y_f32 != nullptr) slice.y_f32 += first * op.y_stride;
    if (Result<void> done = run_skinny_gemm(slice, stream); !done) return done;
  }
  return {};
}

}  // namespace

Result<void> run_tile_gemm(const SkinnyGemm& op, Stream stream) {
  const ProductLimits limits{"tile gemm", kTokensMax, op.layout.type == DType::kI8 ? 16 : 8};
  if (Result<void> checked = check_product(op, limits); !checked) return checked;
  if (op.splits > 1 && shared_bytes_max() < kSharedBytesOfSplits) return run_by_skinny(op, stream);
  const PackedLayout& layout = op.layout;
  TileGemmArguments in{};
  in.weight = PackedWeight::of(layout, op.weight);
  in.out = output_of(op, in.weight);
  in.x = layout.type == DType::kI8 ? reinterpret_cast<const std::byte*>(op.x_int8)
                                   : reinterpret_cast<const std::byte*>(op.x);
  in.x_row_bytes = op.x_stride * (layout.type == DType::kI8 ? 1 : 2);
  in.bands = static_cast<int32_t>(layout.rows_padded / kTileRows);
  in.cols = static_cast<int32_t>(layout.cols);
  in.splits = op.splits;
  switch (layout.type) {
    case DType::kQ4_0:
      return run_tile_gemm_of<DType::kQ4_0>(in, stream);
    case DType::kQ4_K:
      return run_tile_gemm_of<DType::kQ4_K>(in, stream);
    case DType::kQ5_0:
      return run_tile_gemm_of<DType::kQ5_0>(in, stream);
    case DType::kQ5_1:
      return run_tile_gemm_of<DType::kQ5_1>(in, stream);
    case DType::kQ5_K:
      return run_tile_gemm_of<DType::kQ5_K>(in, stream);
    case DType::kQ6_K:
      return run_tile_gemm_of<DType::kQ6_K>(in, stream);
    case DType::kQ8_0:
      return run_tile_gemm_of<DType::kQ8_0>(in, stream);
    case DType::kI8:
      return run_tile_gemm_of<DType::kI8>(in, stream);
    case DType::kBF16:
      return run_tile_gemm_of<DType::kBF16>(in, stream);
    case DType::kF16:
      return run_tile_gemm_of<DType::kF16>(in, stream);
    case DType::kF8_E4M3:
      return run_tile_gemm_of<DType::kF8_E4M3>(in, stream);
    default:
      return fail(std::string("tile gemm: no layout for ") + dtype_info(layout.type).name);
  }
}

}  // namespace updraft::cuda
