// What the tests of products share: a random matrix in a format, packed, with its sums in double
// precision.
#pragma once

#include <optional>

#include "kernels/cuda/skinny_gemm.h"
#include "tests/kernels/cuda/support.h"

namespace updraft::cuda::testing {

struct Problem {
  DType type;
  int64_t rows;
  int64_t cols;
  std::vector<std::vector<float>> weights;  // decoded
  PackedLayout layout;
  std::optional<Buffer<std::byte>> packed;
  std::optional<Buffer<Bf16>> x;
  std::optional<Buffer<float>> bias;

  Problem(DType type, int64_t rows, int64_t cols, int32_t tokens_max)
      : type(type), rows(rows), cols(cols), layout(*PackedLayout::of(type, rows, cols)) {
    std::mt19937 random(static_cast<uint32_t>(rows + cols));
    std::normal_distribution<float> normal;
    std::vector<std::byte> bytes(static_cast<size_t>(rows * row_bytes(type, cols)));
    weights.resize(static_cast<size_t>(rows), std::vector<float>(static_cast<size_t>(cols)));
    for (int64_t r = 0; r < rows; ++r) {
      auto& row = weights[static_cast<size_t>(r)];
      for (float& v : row) v = normal(random) + 0.3F;  // not centred: minima matter
      std::byte* at = bytes.data() + r * row_bytes(type, cols);
      quantize_row(type, row, at);
      dequantize_row(type, at, row);
    }
    packed.emplace("weights", static_cast<size_t>(layout.bytes));
    WeightView view{bytes.data(), type, rows, cols};
    std::vector<float> flat;
    if (packed_format(type).row_scale) {  // made from floats
      std::mt19937 again(static_cast<uint32_t>(rows + cols));
      for (int64_t i = 0; i < rows * cols; ++i) flat.push_back(normal(again) + 0.3F);
      view = {reinterpret_cast<const std::byte*>(flat.data()), DType::kF32, rows, cols};
    }
    pack_tiles(view, layout, 0, layout.rows_padded / kTileRows, packed->span());
    for (int64_t r = 0; r < rows && packed_format(type).row_scale; ++r) {
      unpack_row(layout, packed->span(), r, weights[static_cast<size_t>(r)]);
    }
    x.emplace("x", static_cast<size_t>(tokens_max * cols));
    fill_normal(x->span(), 77);
    bias.emplace("bias", static_cast<size_t>(rows));
    fill_normal(bias->span(), 78);
  }

  std::vector<double> expected(int32_t tokens, bool with_bias) const {
    std::vector<double> out;
    for (int32_t token = 0; token < tokens; ++token) {
      for (int64_t r = 0; r < rows; ++r) {
        double sum = with_bias ? static_cast<double>((*bias)[static_cast<size_t>(r)]) : 0.0;
        for (int64_t c = 0; c < cols; ++c) {
          sum += static_cast<double>(value((*x)[static_cast<size_t>(token * cols + c)])) *
                 static_cast<double>(weights[static_cast<size_t>(r)][static_cast<size_t>(c)]);
        }
        out.push_back(sum);
      }
    }
    return out;
  }

  // Tokens [first, first + tokens), without an output.
  SkinnyGemm operation(int32_t first, int32_t tokens, bool with_bias) const {
    SkinnyGemm op;
    op.layout = layout;
    op.weight = packed->data();
    op.x = x->data() + first * cols;
    op.x_stride = cols;
    op.tokens = tokens;
    op.bias = with_bias ? bias->data() : nullptr;
    op.y_stride = rows;
    return op;
  }

  // Tokens [first, first + tokens) in one launch.
  std::vector<float> run(int32_t first, int32_t tokens, int32_t splits, bool with_bias,
                         const Schedule& schedule = {}) const {
    const ScheduleScope scope(schedule);
    Buffer<float> y("y", static_cast<size_t>(tokens * rows));
    Buffer<std::byte> workspace("workspace", skinny_gemm_workspace_bytes(layout, splits));
    std::fill_n(workspace.data(), std::min(workspace.size(), kSkinnyCounterBytes), std::byte{0});
    SkinnyGemm op = operation(first, tokens, with_bias);
    op.y_f32 = y.data();
    op.splits = splits;
    op.workspace = splits > 1 ? workspace.data() : nullptr;
    require_ok(run_skinny_gemm(op, nullptr));
    if (splits > 1) {
      // Counters are as they were: a second launch needs no clearing.
      const std::vector<float> once(y.span().begin(), y.span().end());
      std::fill_n(y.data(), y.size(), NAN);
      require_ok(run_skinny_gemm(op, nullptr));
      CHECK(std::equal(once.begin(), once.end(), y.span().begin()));
    }
    return {y.span().begin(), y.span().end()};
  }
};

// What a sum of so many columns in one accumulator may be off, relative. Tensor cores cut off
// instead of rounding, once for 8 columns (capability 8.0) or 16 (9.0): half a unit in the last
// place each time, of a sum that is still growing; twice that is allowed.
inline double cut_off(int64_t columns) { return 1e-6 + static_cast<double>(columns) / 8 * 0x1p-24; }

inline constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ8_0,   DType::kBF16, DType::kQ4_K,
                                   DType::kQ6_K, DType::kQ5_0,   DType::kQ5_1, DType::kQ5_K,
                                   DType::kF16,  DType::kF8_E4M3};

}  // namespace updraft::cuda::testing
