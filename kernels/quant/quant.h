// The weight formats' reference: exact decoding of every format and the quantisers. Layouts and
// value formulas: GGUF block formats as in ggml (Q4_0: d * (q - 8), Q4_K: d*S*q - dmin*M, ...).
// Everything faster is tested against this.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/quant/dtype.h"

namespace updraft {

// Decodes `out.size()` weights (a multiple of the block) from `src` (any alignment).
void dequantize_row(DType type, const std::byte* src, std::span<float> out);

// Row `row` of a matrix, its scale included: out [view.cols].
void dequantize_row(const WeightView& view, int64_t row, std::span<float> out);

// Encodes weights (a multiple of the block) into `dst`, row_bytes(type, values.size()) bytes. Q8_0,
// Q4_0, Q4_1, Q5_0 and Q5_1 give ggml's bytes exactly; F32, F16, BF16, F8_E4M3 and I8 round to
// nearest even; the K formats minimise squared error.
void quantize_row(DType type, std::span<const float> values, std::byte* dst);

// IEEE half and bfloat16 <-> float, round to nearest even, NaN kept.
float half_to_float(uint16_t half);
uint16_t float_to_half(float value);
float bf16_to_float(uint16_t value);
uint16_t float_to_bf16(float value);
// e4m3 (OCP 8-bit floating point, revision 1.0) <-> float, round to nearest even; beyond 448 (and
// for infinities) the largest finite value, NaN kept.
float f8_to_float(uint8_t value);
uint8_t float_to_f8(float value);

}  // namespace updraft
