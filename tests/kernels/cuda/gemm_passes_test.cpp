// The passes around products, against plain loops.
#include "kernels/cuda/gemm_passes.h"

#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/unpack_weights.h"
#include "tests/kernels/cuda/gemm_support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

void check_quantised_rows(int32_t cols) {
  constexpr int32_t kRows = 3;
  Buffer<Bf16> in("in", static_cast<size_t>(kRows) * 2 * cols);
  fill_normal(in.span(), 5);
  for (int c = 0; c < 2 * cols; ++c) in[static_cast<size_t>(2 * cols + c)] = {0};  // row 1 is zero
  for (const bool gated : {false, true}) {
    for (const bool float8 : {false, true}) {
      for (const Schedule& schedule : schedules()) {
        const ScheduleScope scope(schedule);
        CAPTURE(gated);
        CAPTURE(float8);
        Buffer<int8_t> bytes("bytes", static_cast<size_t>(kRows) * cols);
        Buffer<float> scale("scale", kRows);
        QuantizeRows op;
        op.in = in.data();
        op.in_stride = 2 * cols;
        op.gated = gated;
        op.rows = kRows;
        op.cols = cols;
        if (float8) {
          op.out_float8 = reinterpret_cast<Float8*>(bytes.data());
        } else {
          op.out_int8 = bytes.data();
        }
        op.scale = scale.data();
        require_ok(run_quantize_rows(op, nullptr));
        for (int32_t r = 0; r < kRows; ++r) {
          std::vector<double> exact;
          double largest = 0;
          for (int32_t c = 0; c < cols; ++c) {
            const auto at = static_cast<size_t>(r * 2 * cols + c);
            const double gate = static_cast<double>(value(in[at]));
            const double up = static_cast<double>(value(in[at + cols]));
            exact.push_back(gated ? gate / (1 + std::exp(-gate)) * up : gate);
            largest = std::max(largest, std::abs(exact.back()));
          }
          const auto row_scale = static_cast<double>(scale[static_cast<size_t>(r)]);
          CHECK(row_scale == doctest::Approx(largest / (float8 ? 448 : 127)).epsilon(1e-6));
          double worst = 0;
          for (int32_t c = 0; c < cols; ++c) {
            const int8_t byte = bytes[static_cast<size_t>(r * cols + c)];
            const double got = float8 ? static_cast<double>(f8_to_float(static_cast<uint8_t>(byte)))
                                      : static_cast<double>(byte);
            const double wanted = exact[static_cast<size_t>(c)];
            // Half a step: of int8 0.5; of e4m3 1/16, 2^-10 among the subnormals.
            const double step = float8 ? std::max(std::abs(wanted) / row_scale / 16, 0x1p-10) : 0.5;
            const double off =
                row_scale == 0 ? std::abs(got) : std::abs(got - wanted / row_scale) / step;
            worst = std::max(worst, std::isnan(off) ? INFINITY : off);
          }
          CHECK(worst <= 1.001);
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("rows are quantised by their largest element, of a gated unit too") {
  check_quantised_rows(2056);  // a second turn of one thread
  // Its rows are 48 KiB, all that a launch has without asking for more.
  check_quantised_rows(12288);
}

namespace {

struct FinishCase {
  int32_t rows;
  int64_t product_stride;
  int64_t y_stride;
  bool gated;
  bool accumulate;
};

// Against the contract, in f32 step by step; T: of the product.
template <typename T>
void check_finish(const FinishCase& c, bool scaled, bool wide_output) {
  CAPTURE(c.rows);
  CAPTURE(c.gated);
  CAPTURE(scaled);
  constexpr int32_t kTokens = 5;
  const int32_t outputs = c.gated ? c.rows / 2 : c.rows;
  Buffer<T> product("product", static_cast<size_t>(kTokens * c.product_stride));
  for (size_t i = 0; i < product.size(); ++i) {
    const auto v = static_cast<float>(static_cast<int>(i * 7919 % 401) - 200);
    if constexpr (std::is_same_v<T, Bf16>) {
      product[i] = {float_to_bf16(v / 64)};
    } else {
      product[i] = static_cast<T>(v);
    }
  }
  Buffer<float> row_scales("row scales", static_cast<size_t>(c.rows));
  Buffer<float> token_scales("token scales", kTokens);
  Buffer<float> bias("bias", static_cast<size_t>(c.rows));
  fill_normal(row_scales.span(), 1, 0.1F);
  fill_normal(token_scales.span(), 2);
  fill_normal(bias.span(), 3);
  Buffer<float> y("y", static_cast<size_t>(kTokens * c.y_stride));
  Buffer<Bf16> y_bf16("y bf16", static_cast<size_t>(kTokens * c.y_stride));
  fill_normal(y.span(), 4);
  const std::vector<float> before(y.span().begin(), y.span().end());

  FinishProduct op;
  if constexpr (std::is_same_v<T, Bf16>) op.product_bf16 = product.data();
  if constexpr (std::is_same_v<T, float>) op.product_f32 = product.data();
  if constexpr (std::is_same_v<T, int32_t>) op.product_int32 = product.data();
  op.product_stride = c.product_stride;
  op.row_scales = scaled ? row_scales.data() : nullptr;
  op.token_scales = scaled ? token_scales.data() : nullptr;
  op.bias = scaled ? bias.data() : nullptr;
  op.up_bias = scaled ? bias.data() + outputs : nullptr;
  op.tokens = kTokens;
  op.rows = c.rows;
  op.gated = c.gated;
  op.accumulate = c.accumulate;
  (wide_output ? static_cast<void>(op.y_f32 = y.data())
               : static_cast<void>(op.y_bf16 = y_bf16.data()));
  op.y_stride = c.y_stride;
  require_ok(run_finish_product(op, nullptr));

  const auto sum = [&](int32_t token, int32_t row, int32_t of_bias) {
    const T p = product[static_cast<size_t>(token * c.product_stride + row)];
    float v = 0;
    if constexpr (std::is_same_v<T, Bf16>) {
      v = bf16_to_float(p.bits);
    } else {
      v = static_cast<float>(p);
    }
    if (!scaled) return v;
    v *= row_scales[static_cast<size_t>(row)];
    v *= token_scales[static_cast<size_t>(token)];
    return v + bias[static_cast<size_t>(of_bias)];
  };
  const auto rounded = [](float v) { return bf16_to_float(float_to_bf16(v)); };
  int wrong = 0;
  for (int32_t token = 0; token < kTokens; ++token) {
    for (int32_t o = 0; o < c.y_stride; ++o) {
      const auto at = static_cast<size_t>(token * c.y_stride + o);
      if (o >= outputs) {  // nobody's
        wrong += wide_output ? y[at] != before[at] : y_bf16[at].bits != 0xFFFF;
      } else if (c.gated) {
        const int32_t row = o / 16 * 32 + o % 16;
        const double gate = static_cast<double>(rounded(sum(token, row, o)));
        const double up = static_cast<double>(rounded(sum(token, row + 16, outputs + o)));
        const double wanted = gate / (1 + std::exp(-gate)) * up;
        wrong += std::abs(static_cast<double>(value(y_bf16[at])) - wanted) >
                 std::abs(wanted) * kBf16Step + 1e-30;
      } else if (wide_output) {
        wrong += y[at] != (c.accumulate ? before[at] + sum(token, o, o) : sum(token, o, o));
      } else {
        wrong += y_bf16[at].bits != float_to_bf16(sum(token, o, o));
      }
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("a product is finished in vectors where it lies so, else one by one") {
  for (const FinishCase& c : {
           FinishCase{544, 544, 560, false, false},  // vectors; a block and a bit
           FinishCase{48, 64, 52, false, false},     // y lies otherwise
           FinishCase{37, 48, 40, false, false},     // a row that is no whole vectors
           FinishCase{48, 48, 48, false, true},
           FinishCase{37, 37, 37, false, true},
           FinishCase{96, 96, 56, true, false},
           FinishCase{96, 97, 48, true, false},
       }) {
    for (const bool scaled : {false, true}) {
      for (const bool wide_output : {false, true}) {
        if ((c.gated && wide_output) || (c.accumulate && !wide_output)) continue;
        check_finish<Bf16>(c, scaled, wide_output);
        check_finish<float>(c, scaled, wide_output);
        check_finish<int32_t>(c, scaled, wide_output);
      }
    }
  }
}

TEST_CASE("widening e4m3 gives each code's value") {
  Buffer<Float8> x("x", 2 * 272);
  for (size_t i = 0; i < x.size(); ++i) x[i].bits = static_cast<uint8_t>(i % 272);
  Buffer<Bf16> out("out", 2 * 256);
  require_ok(run_widen_float8({x.data(), 272, 2, 256, out.data()}, nullptr));
  int wrong = 0;
  for (size_t i = 0; i < 512; ++i) {
    const float expected = f8_to_float(x[i / 256 * 272 + i % 256].bits);
    const float got = value(out[i]);
    wrong += got == expected || (std::isnan(got) && std::isnan(expected)) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("unpacked rows are the decoder's, rounded once, and nothing beyond them is written") {
  for (const DType type : kTypes) {
    CAPTURE(dtype_info(type).name);
    const int64_t cols = dtype_info(type).block_elems == 256 ? 512 : 160;  // 2.5 tiles of 64
    const Problem problem(type, 60, cols, 1);
    Buffer<Bf16> out("out", static_cast<size_t>(33 * cols));
    UnpackWeights op;
    op.layout = problem.layout;
    op.weight = problem.packed->data();
    op.row_first = 32;
    op.row_count = 32;
    op.out = reinterpret_cast<std::byte*>(out.data());
    require_ok(run_unpack_bf16(op, nullptr));
    int wrong = 0;
    for (int64_t r = 0; r < 33; ++r) {
      float row_scale = 1.0F;
      if (type == DType::kF8_E4M3) {
        row_scale = reinterpret_cast<const float*>(problem.packed->data() +
                                                   problem.layout.scales_offset)[32 + r % 32];
      }
      for (int64_t c = 0; c < cols; ++c) {
        const uint16_t got = out[static_cast<size_t>(r * cols + c)].bits;
        if (r == 32) {
          wrong += got == 0xFFFF ? 0 : 1;
        } else if (r >= 28) {
          wrong += (got & 0x7FFF) == 0 ? 0 : 1;  // padding
        } else {
          const float exact =
              problem.weights[static_cast<size_t>(32 + r)][static_cast<size_t>(c)] / row_scale;
          const float off = std::abs(bf16_to_float(got) - exact);
          wrong += off <= std::abs(exact) / 256 + 1e-6F ? 0 : 1;
        }
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("unpacked bytes are the packed ones in the matrix's order") {
  for (const DType type : {DType::kI8, DType::kF8_E4M3}) {
    const Problem problem(type, 32, 96, 1);
    Buffer<std::byte> out("out", 16 * 96);
    UnpackWeights op{problem.layout, problem.packed->data(), 16, 16, out.data()};
    require_ok(run_unpack_bytes(op, nullptr));
    int wrong = 0;
    for (size_t r = 0; r < 16; ++r) {
      const float row_scale = reinterpret_cast<const float*>(problem.packed->data() +
                                                             problem.layout.scales_offset)[16 + r];
      for (size_t c = 0; c < 96; ++c) {
        const auto byte = static_cast<uint8_t>(out[r * 96 + c]);
        const float got =
            type == DType::kI8 ? static_cast<float>(static_cast<int8_t>(byte)) : f8_to_float(byte);
        wrong += got * row_scale == problem.weights[16 + r][c] ? 0 : 1;
      }
    }
    CHECK(wrong == 0);
  }
  const Problem other(DType::kQ4_0, 16, 64, 1);
  CHECK(run_unpack_bytes({other.layout, other.packed->data(), 0, 16, nullptr}, nullptr)
            .message()
            .find("Q4_0") != std::string::npos);
  CHECK(run_unpack_bf16({other.layout, other.packed->data(), 8, 16, nullptr}, nullptr)
            .message()
            .find("8 + 16") != std::string::npos);
}

TEST_CASE("e4m3 rows come as bytes or widened, and one that is not finite says so in its scale") {
  constexpr int32_t kRows = 3;
  constexpr int32_t kCols = 2056;
  for (const bool gated : {false, true}) {
    CAPTURE(gated);
    const int32_t in_cols = gated ? 2 * kCols : kCols;
    Buffer<Bf16> in("in", static_cast<size_t>(kRows * in_cols));
    fill_normal(in.span(), 31, 3.0F);
    in[static_cast<size_t>(in_cols + 5)] = {float_to_bf16(NAN)};
    in[static_cast<size_t>(2 * in_cols + 2049)] = {float_to_bf16(-INFINITY)};
    if (gated) {  // silu(-infinity) is 0 * ...: let it be up's
      std::swap(in[static_cast<size_t>(2 * in_cols + 2049)],
                in[static_cast<size_t>(2 * in_cols + kCols + 2049)]);
    }
    Buffer<Float8> bytes("bytes", kRows * kCols);
    Buffer<Bf16> widened("widened", kRows * kCols);
    Buffer<float> scales("scales", kRows);
    Buffer<float> again("scales again", kRows);
    QuantizeRows op;
    op.in = in.data();
    op.in_stride = in_cols;
    op.gated = gated;
    op.rows = kRows;
    op.cols = kCols;
    op.out_float8 = bytes.data();
    op.scale = scales.data();
    require_ok(run_quantize_rows(op, nullptr));
    op.out_float8 = nullptr;
    op.out_widened = widened.data();
    op.scale = again.data();
    require_ok(run_quantize_rows(op, nullptr));
    CHECK(std::isfinite(scales[0]));
    CHECK_FALSE(std::isfinite(scales[1]));
    CHECK_FALSE(std::isfinite(scales[2]));
    CHECK(scales[0] == again[0]);
    int wrong = 0;
    for (size_t c = 0; c < kCols; ++c) {
      wrong += value(widened[c]) == f8_to_float(bytes[c].bits) ? 0 : 1;
    }
    CHECK(wrong == 0);
    op.out_int8 = reinterpret_cast<int8_t*>(bytes.data());
    CHECK(run_quantize_rows(op, nullptr).message().find("one of them") != std::string::npos);
  }
}
