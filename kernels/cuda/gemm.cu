// The choice between the kernels, and the passes around them.
#include <algorithm>
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/skinny_gemm.h"

namespace updraft::cuda {
namespace {

std::string shape_text(const Gemm& op) {
  return std::to_string(op.layout.rows) + " x " + std::to_string(op.layout.cols) + " " +
         dtype_info(op.layout.type).name + " with " + std::to_string(op.tokens) + " tokens";
}

Result<void> check(const Gemm& op) {
  const int inputs = (op.x != nullptr) + (op.x_int8.x != nullptr) + (op.x_float8.x != nullptr);
  if (op.device == nullptr || op.weight == nullptr || inputs != 1 || op.tokens < 1) {
    return fail("gemm: " + shape_text(op) + ": a device, weights, one input and tokens are wanted");
  }
  const bool int8 = op.x_int8.x != nullptr;
  const bool float8 = op.x_float8.x != nullptr;
  if (int8 != (op.layout.type == DType::kI8) || (float8 && op.layout.type != DType::kF8_E4M3)) {
    return fail("gemm: " + shape_text(op) + ": activations of another kind");
  }
  const int64_t unit = op.x != nullptr ? 8 : 16;
  if (op.layout.cols % 32 != 0 || op.x_stride < op.layout.cols || op.x_stride % unit != 0) {
    return fail("gemm: " + shape_text(op) + ": a stride of " + std::to_string(op.x_stride) +
                " (columns in 32s, strides in " + std::to_string(unit) + "s)");
  }
  const int64_t y_cols = op.layout.gated ? op.layout.rows / 2 : op.layout.rows;
  if ((op.y_bf16 == nullptr) == (op.y_f32 == nullptr) || op.y_stride < y_cols ||
      (op.layout.gated && op.y_bf16 == nullptr) || (op.accumulate && op.y_f32 == nullptr)) {
    return fail("gemm: " + shape_text(op) + ": one output with a stride of at least " +
                std::to_string(y_cols));
  }
  const size_t wanted = gemm_scratch_bytes(*op.device, op.layout, op.tokens);
  if (op.scratch.bytes < wanted) {
    return fail("gemm: " + shape_text(op) + ": a scratch of " + std::to_string(op.scratch.bytes) +
                " bytes (" + std::to_string(wanted) + ")");
  }
  return {};
}

}  // namespace

size_t gemm_scratch_bytes(const GemmDevice& device, const PackedLayout& layout, int32_t) {
  const int32_t splits = skinny_gemm_splits(layout, device.facts().multiprocessor_count);
  return std::max(kSkinnyCounterBytes, skinny_gemm_workspace_bytes(layout, splits));
}

Result<void> run_gemm(const Gemm& op, Stream stream) {
  if (Result<void> checked = check(op); !checked) return checked;
  if (op.x == nullptr || op.layout.gated || op.accumulate) {
    return fail("gemm: " + shape_text(op) + ": this form is not built");
  }
  SkinnyGemm skinny;
  skinny.layout = op.layout;
  skinny.weight = op.weight;
  skinny.x_stride = op.x_stride;
  skinny.bias = op.bias;
  skinny.y_stride = op.y_stride;
  skinny.splits = skinny_gemm_splits(op.layout, op.device->facts().multiprocessor_count);
  skinny.workspace = op.scratch.data;
  for (int32_t first = 0; first < op.tokens; first += kSkinnyTokensMax) {
    skinny.x = op.x + first * op.x_stride;
    skinny.tokens = std::min(kSkinnyTokensMax, op.tokens - first);
    skinny.y_bf16 = op.y_bf16 == nullptr ? nullptr : op.y_bf16 + first * op.y_stride;
    skinny.y_f32 = op.y_f32 == nullptr ? nullptr : op.y_f32 + first * op.y_stride;
    if (Result<void> ran = run_skinny_gemm(skinny, stream); !ran) return ran;
  }
  return {};
}

}  // namespace updraft::cuda
