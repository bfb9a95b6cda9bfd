// Checks, and the way to the kernel of a format.
#include "kernels/cuda/packed_product.h"
#include "kernels/cuda/tile_gemm_kernel.h"

namespace updraft::cuda {
namespace {

constexpr int32_t kTokensMax = 65535 * kTileGemmTokens;

}  // namespace

Result<void> run_tile_gemm(const SkinnyGemm& op, Stream stream) {
  const ProductLimits limits{"tile gemm", kTokensMax, op.layout.type == DType::kI8 ? 16 : 8};
  if (Result<void> checked = check_product(op, limits); !checked) return checked;
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
