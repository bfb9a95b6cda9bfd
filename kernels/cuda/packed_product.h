// What the products of packed weights (skinny_gemm, tile_gemm, warpgroup_gemm) check and hand to
// their kernels alike. Host code of the .cu files.
#pragma once

#include <string>

#include "kernels/cuda/gemm_output.h"
#include "kernels/cuda/skinny_gemm.h"
#include "kernels/cuda/weight_tile.h"

namespace updraft::cuda {

struct ProductLimits {
  const char* name;  // begins messages: "tile gemm"
  int32_t tokens_max;
  int64_t stride_unit;       // elements that x_stride is a multiple of
  bool joins_steps = false;  // takes `residual` and `normed.band_sums`, which others refuse
};

inline Result<void> check_product(const SkinnyGemm& op, const ProductLimits& limits) {
  const PackedLayout& layout = op.layout;
  const auto refuse = [&](const std::string& what) {
    return fail(std::string(limits.name) + ": " + what);
  };
  if (op.tokens < 1 || op.tokens > limits.tokens_max) {
    return refuse(std::to_string(op.tokens) + " tokens (1.." + std::to_string(limits.tokens_max) +
                  ")");
  }
  const bool bytes = layout.type == DType::kI8;
  if ((bytes ? op.x != nullptr || op.x_int8 == nullptr || op.token_scales == nullptr
             : op.x == nullptr || op.x_int8 != nullptr)) {
    return refuse(std::string("activations of another kind than ") + dtype_info(layout.type).name +
                  " takes");
  }
  if (layout.cols % kChunk != 0 || op.x_stride % limits.stride_unit != 0 ||
      op.x_stride < layout.cols) {
    return refuse(std::to_string(layout.cols) + " columns with a stride of " +
                  std::to_string(op.x_stride) + " (multiples of 32 and of " +
                  std::to_string(limits.stride_unit) + ")");
  }
  const ResidualOutput& residual = op.residual;
  if (!limits.joins_steps && (residual.hidden != nullptr || op.normed.band_sums != nullptr))
    return refuse("the residual stream is the skinny product's");
  const int64_t y_cols = layout.gated ? layout.rows / 2 : layout.rows;
  if (residual.hidden != nullptr) {
    if (op.y_bf16 != nullptr || op.y_f32 != nullptr || layout.gated || residual.norm == nullptr ||
        residual.x == nullptr || residual.band_sums == nullptr || layout.rows % kTileRows != 0) {
      return refuse(
          std::to_string(layout.rows) +
          " rows into the residual stream (a multiple of 16, not gated, no other output)");
    }
  } else if ((op.y_bf16 == nullptr) == (op.y_f32 == nullptr) || op.y_stride < y_cols) {
    return refuse("one output with a stride of at least " + std::to_string(y_cols));
  }
  if ((layout.gated && op.y_bf16 == nullptr) || (op.accumulate && op.y_f32 == nullptr))
    return refuse("a gated output is bfloat16, one that is added to is f32");
  const int factors = (op.normed.band_sums != nullptr) + (op.normed.factors != nullptr) +
                      (op.token_scales != nullptr);
  if (factors > 1) return refuse("two kinds of factors for the tokens");
  if (op.splits < 1) return refuse(std::to_string(op.splits) + " splits");
  return {};
}

inline GemmOutput output_of(const SkinnyGemm& op, const PackedWeight& weight) {
  GemmOutput out{};
  out.row_scales = packed_format(op.layout.type).row_scale ? weight.row_scales() : nullptr;
  out.token_scales = op.normed.factors != nullptr ? op.normed.factors : op.token_scales;
  out.bias = op.bias;
  out.y_bf16 = op.y_bf16;
  out.y_f32 = op.y_f32;
  out.y_stride = op.y_stride;
  out.tokens = op.tokens;
  out.rows = static_cast<int32_t>(op.layout.rows);
  out.gated = op.layout.gated;
  out.accumulate = op.accumulate;
  out.residual = op.residual;
  return out;
}

}  // namespace updraft::cuda
