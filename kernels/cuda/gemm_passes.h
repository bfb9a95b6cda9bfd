// Passes over activations and products around a library's product. Each reads and writes memory
// once.
#pragma once

#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/types.h"
#include "kernels/quant/dtype.h"

namespace updraft::cuda {

// What a library's product still wants: y[token, r] (=, or with `accumulate` +=)
//   product[token, r] * row_scales[r] * token_scales[token] + bias[r]
// or of a gated matrix, whose rows 32 * i + r and 32 * i + 16 + r are gate and up of output
// 16 * i + r, silu(gate) * up of the two rounded to bfloat16.
struct FinishProduct {
  // Exactly one, [tokens, product_stride]: rows as they are packed. A product may be y itself.
  const Bf16* product_bf16 = nullptr;
  const float* product_f32 = nullptr;
  const int32_t* product_int32 = nullptr;
  int64_t product_stride = 0;
  const float* row_scales = nullptr;    // [rows] or null
  const float* token_scales = nullptr;  // [tokens] or null
  const float* bias = nullptr;          // [rows] or null; gated: gate's at 0, up's at up_bias
  const float* up_bias = nullptr;
  int32_t tokens = 0;
  int32_t rows = 0;  // of the product; gated: a multiple of 32
  bool gated = false;
  bool accumulate = false;
  Bf16* y_bf16 = nullptr;  // exactly one, [tokens, y_stride]
  float* y_f32 = nullptr;
  int64_t y_stride = 0;
};
Result<void> run_finish_product(const FinishProduct& op, Stream stream);

// out[token, c] = x[token, c]: e4m3 as bfloat16, exactly.
struct WidenFloat8 {
  const Float8* x = nullptr;
  int64_t x_stride = 0;  // a multiple of 8
  int32_t tokens = 0;
  int32_t cols = 0;     // a multiple of 8
  Bf16* out = nullptr;  // [tokens, cols]
};
Result<void> run_widen_float8(const WidenFloat8& op, Stream stream);

// The columns of each 32 in the order in which packed weights of `weights` hold them
// (weight_layout.h): so that 16 in a row are what one step multiplies. Of step s the columns
// 8 * t + 4 * s + 2 * h + e (in Q6_K 16 * s + 4 * t + 2 * h + e) lie at 16 * s + 8 * h + 2 * t + e.
struct ArrangeColumns {
  DType weights = DType::kBF16;
  const Bf16* x = nullptr;  // [tokens, x_stride]
  int64_t x_stride = 0;     // a multiple of 8
  int32_t tokens = 0;
  int32_t cols = 0;     // a multiple of 32
  Bf16* out = nullptr;  // [tokens, cols], not x
};
Result<void> run_arrange_columns(const ArrangeColumns& op, Stream stream);

// Rows as bytes with one scale each: value = byte * scale[row], the largest of a row = 127 (int8)
// or 448 (e4m3). Of a gated unit's input (gated: in [rows, 2 * cols], gate before up) or of plain
// rows.
struct QuantizeRows {
  const Bf16* in = nullptr;  // [rows, in_stride]
  int64_t in_stride = 0;     // a multiple of 8
  bool gated = false;
  int32_t rows = 0;
  int32_t cols = 0;            // of the output: a multiple of 8, at most 32,768
  int8_t* out_int8 = nullptr;  // exactly one, [rows, cols]
  Float8* out_float8 = nullptr;
  Bf16* out_widened = nullptr;  // the e4m3 values as bfloat16
  float* scale = nullptr;       // [rows]; of a row that is not finite it is not finite either
};
Result<void> run_quantize_rows(const QuantizeRows& op, Stream stream);

}  // namespace updraft::cuda
