// Checks, and the way to the kernel of a format.
#include <string>

#include "kernels/cuda/tile_gemm_kernel.h"

namespace updraft::cuda {
namespace {

constexpr int32_t kTokensMax = 65535 * kTileGemmTokens;

Result<void> check(const SkinnyGemm& op) {
  const PackedLayout& layout = op.layout;
  if (op.tokens < 1 || op.tokens > kTokensMax) {
    return fail("tile gemm: " + std::to_string(op.tokens) + " tokens (1.." +
                std::to_string(kTokensMax) + ")");
  }
  const bool bytes = layout.type == DType::kI8;
  if ((bytes ? op.x != nullptr || op.x_int8 == nullptr || op.token_scales == nullptr
             : op.x == nullptr || op.x_int8 != nullptr)) {
    return fail(std::string("tile gemm: activations of another kind than ") +
                dtype_info(layout.type).name + " takes");
  }
  const int64_t unit = bytes ? 16 : 8;
  if (layout.cols % kChunk != 0 || op.x_stride % unit != 0 || op.x_stride < layout.cols) {
    return fail("tile gemm: " + std::to_string(layout.cols) + " columns with a stride of " +
                std::to_string(op.x_stride) + " (multiples of 32 and of " + std::to_string(unit) +
                ")");
  }
  const int64_t y_cols = layout.gated ? layout.rows / 2 : layout.rows;
  if ((op.y_bf16 == nullptr) == (op.y_f32 == nullptr) || op.y_stride < y_cols) {
    return fail("tile gemm: one output with a stride of at least " + std::to_string(y_cols));
  }
  if ((layout.gated && op.y_bf16 == nullptr) || (op.accumulate && op.y_f32 == nullptr)) {
    return fail("tile gemm: a gated output is bfloat16, one that is added to is f32");
  }
  if (op.residual.hidden != nullptr || op.normed.band_sums != nullptr) {
    return fail("tile gemm: the residual stream is the skinny product's");
  }
  if (op.splits < 1) return fail("tile gemm: " + std::to_string(op.splits) + " splits");
  return {};
}

}  // namespace

Result<void> run_tile_gemm(const SkinnyGemm& op, Stream stream) {
  if (Result<void> checked = check(op); !checked) return checked;
  const PackedLayout& layout = op.layout;
  TileGemmArguments in{};
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
