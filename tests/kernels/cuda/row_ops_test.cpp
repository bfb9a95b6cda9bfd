// Operations on rows against the same in double precision.
#include "kernels/cuda/row_ops.h"

#include <cstring>
#include <optional>

#include "tests/kernels/cuda/support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

double mean_square(const std::vector<double>& row) {
  double sum = 0;
  for (const double v : row) sum += v * v;
  return sum / static_cast<double>(row.size());
}

struct NormCase {
  int32_t dim;
  bool delta;
  bool delta_norm;
  bool int8;
};

}  // namespace

TEST_CASE("embedding gives the reference decoder's rows in every format, zeros for padded rows") {
  for (const DType type :
       {DType::kQ4_0, DType::kQ8_0, DType::kBF16, DType::kQ4_K, DType::kQ6_K, DType::kQ5_0,
        DType::kQ5_1, DType::kQ5_K, DType::kF16, DType::kF8_E4M3}) {
    CAPTURE(dtype_info(type).name);
    const int64_t cols = dtype_info(type).block_elems == 256 ? 512 : 96;
    constexpr int64_t kRows = 45;
    std::vector<float> values(static_cast<size_t>(cols));
    std::vector<std::byte> bytes(static_cast<size_t>(kRows * row_bytes(type, cols)));
    for (int64_t r = 0; r < kRows; ++r) {
      fill_normal(std::span(values), static_cast<uint32_t>(r));
      quantize_row(type, values, bytes.data() + r * row_bytes(type, cols));
    }
    const PackedLayout layout = *PackedLayout::of(type, kRows, cols);
    Buffer<std::byte> table("table", static_cast<size_t>(layout.bytes));
    pack_tiles({bytes.data(), type, kRows, cols}, layout, 0, layout.rows_padded / kTileRows,
               table.span());
    const std::vector<int32_t> ids = {44, 0, -1, 9, 23, 23, 15};
    Buffer<int32_t> token_ids("token ids", std::span(ids));
    for (const Schedule& schedule : schedules()) {
      const ScheduleScope scope(schedule);
      Buffer<float> hidden("hidden", ids.size() * static_cast<size_t>(cols));
      require_ok(run_embed(
          {layout, table.data(), token_ids.data(), static_cast<int32_t>(ids.size()), hidden.data()},
          nullptr));
      for (size_t i = 0; i < ids.size(); ++i) {
        std::fill(values.begin(), values.end(), 0.0F);
        if (ids[i] >= 0)
          dequantize_row(type, bytes.data() + ids[i] * row_bytes(type, cols), values);
        const auto* row = hidden.data() + i * static_cast<size_t>(cols);
        CHECK(std::equal(values.begin(), values.end(), row));
      }
    }
  }
}

TEST_CASE("residual norm adds, norms and quantises like the formula") {
  for (const NormCase& c : {NormCase{2048, true, false, false}, NormCase{4104, true, true, true},
                            NormCase{64, false, false, true}, NormCase{13696, true, true, false},
                            // Its rows are 48 KiB, all that a launch has without asking for more.
                            NormCase{12288, true, false, true}}) {
    CAPTURE(c.dim);
    constexpr int32_t kRows = 3;
    const auto dim = static_cast<size_t>(c.dim);
    Buffer<float> start("hidden", kRows * dim);
    Buffer<Bf16> delta("delta", kRows * dim);
    Buffer<float> norm("norm", dim);
    Buffer<float> delta_norm("delta norm", dim);
    fill_normal(start.span(), 1, 3.0F);
    fill_normal(delta.span(), 2);
    fill_normal(norm.span(), 3);
    fill_normal(delta_norm.span(), 4);
    constexpr double kEps = 1e-5;

    std::vector<double> sums, outs;
    for (size_t r = 0; r < kRows; ++r) {
      std::vector<double> row, change;
      for (size_t i = 0; i < dim; ++i) {
        row.push_back(static_cast<double>(start[r * dim + i]));
        change.push_back(c.delta ? static_cast<double>(value(delta[r * dim + i])) : 0.0);
      }
      const double change_factor = c.delta_norm ? 1 / std::sqrt(mean_square(change) + kEps) : 1.0;
      for (size_t i = 0; i < dim; ++i) {
        row[i] +=
            change[i] * change_factor * (c.delta_norm ? static_cast<double>(delta_norm[i]) : 1.0);
      }
      const double factor = 1 / std::sqrt(mean_square(row) + kEps);
      for (size_t i = 0; i < dim; ++i) {
        sums.push_back(row[i]);
        outs.push_back(row[i] * factor * static_cast<double>(norm[i]));
      }
    }

    for (const Schedule& schedule : schedules()) {
      const ScheduleScope scope(schedule);
      Buffer<float> hidden("hidden", start.span());
      Buffer<Bf16> out("out", kRows * dim);
      Buffer<int8_t> out_int8("out int8", kRows * dim);
      Buffer<float> out_scale("out scale", kRows);
      ResidualNorm op;
      op.rows = kRows;
      op.dim = c.dim;
      op.hidden = hidden.data();
      op.delta = c.delta ? delta.data() : nullptr;
      op.delta_norm = c.delta_norm ? delta_norm.data() : nullptr;
      op.norm = norm.data();
      op.eps = static_cast<float>(kEps);
      op.out = out.data();
      op.out_int8 = c.int8 ? out_int8.data() : nullptr;
      op.out_scale = c.int8 ? out_scale.data() : nullptr;
      require_ok(run_residual_norm(op, nullptr));
      CHECK(difference(hidden.span(), sums) < 1e-6);
      CHECK(difference(out.span(), outs) < kBf16Step);
      if (!c.int8) continue;
      for (size_t r = 0; r < kRows; ++r) {
        double largest = 0;
        for (size_t i = 0; i < dim; ++i) largest = std::max(largest, std::abs(outs[r * dim + i]));
        CHECK(static_cast<double>(out_scale[r]) == doctest::Approx(largest / 127).epsilon(1e-5));
        double worst = 0;
        for (size_t i = 0; i < dim; ++i) {
          const double got =
              static_cast<double>(out_int8[r * dim + i]) * static_cast<double>(out_scale[r]);
          worst = std::max(worst, std::abs(got - outs[r * dim + i]));
        }
        CHECK(worst < 0.501 * largest / 127);
      }
    }
  }
}

TEST_CASE("a residual norm without outputs only adds") {
  Buffer<float> hidden("hidden", 16);
  Buffer<Bf16> delta("delta", 16);
  std::fill_n(hidden.data(), 16, 1.0F);
  std::fill_n(delta.data(), 16, Bf16{float_to_bf16(0.5F)});
  ResidualNorm op;
  op.rows = 1;
  op.dim = 16;
  op.hidden = hidden.data();
  op.delta = delta.data();
  require_ok(run_residual_norm(op, nullptr));
  for (const float v : hidden.span()) CHECK(v == 1.5F);
}

TEST_CASE("the gated unit is silu(gate) * up, also far from zero") {
  constexpr int32_t kRows = 3;
  constexpr int32_t kN = 4104;
  Buffer<Bf16> in("in", kRows * 2 * kN);
  fill_normal(in.span(), 6, 4.0F);
  for (size_t i = 0; i < 4; ++i) {
    in[i] = {float_to_bf16(i % 2 == 0 ? 200.0F : -200.0F)};
  }
  std::vector<double> expected;
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t i = 0; i < kN; ++i) {
      const auto gate = static_cast<double>(value(in[r * 2 * kN + i]));
      const auto up = static_cast<double>(value(in[r * 2 * kN + kN + i]));
      expected.push_back(gate / (1 + std::exp(-gate)) * up);
    }
  }
  Buffer<Bf16> out("out", kRows * kN);
  require_ok(run_gated_unit({kRows, kN, in.data(), out.data()}, nullptr));
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK(static_cast<double>(value(out[i])) == doctest::Approx(expected[i]).epsilon(kBf16Step));
  }
}

TEST_CASE("shapes that the row operations do not take are refused with their values") {
  ResidualNorm norm;
  norm.rows = 1;
  norm.dim = 12;
  CHECK(run_residual_norm(norm, nullptr).message().find("12 elements") != std::string::npos);
  CHECK(run_gated_unit({1, 9, nullptr, nullptr}, nullptr).message().find("9 elements") !=
        std::string::npos);
}

TEST_CASE("a norm's e4m3 rows are the nearest codes of the row's own scale, as bytes and widened") {
  constexpr int32_t kRows = 3;
  constexpr int32_t kDim = 2056;  // more than a pass of the block
  Buffer<float> start("hidden", kRows * kDim);
  Buffer<float> norm("norm", kDim);
  fill_normal(start.span(), 11, 2.0F);
  fill_normal(norm.span(), 12);
  const auto run = [&](bool bytes, int32_t first, int32_t rows, std::vector<float>& scales) {
    Buffer<float> hidden("hidden", start.span());
    Buffer<Float8> out("out", static_cast<size_t>(rows * kDim));
    Buffer<Bf16> widened("widened", static_cast<size_t>(rows * kDim));
    Buffer<float> scale("scale", static_cast<size_t>(rows));
    ResidualNorm op;
    op.rows = rows;
    op.dim = kDim;
    op.hidden = hidden.data() + first * kDim;
    op.norm = norm.data();
    op.eps = 1e-5F;
    op.out_float8 = bytes ? out.data() : nullptr;
    op.out_widened = bytes ? nullptr : widened.data();
    op.out_scale = scale.data();
    require_ok(run_residual_norm(op, nullptr));
    scales.assign(scale.span().begin(), scale.span().end());
    std::vector<float> values;
    for (size_t i = 0; i < out.size(); ++i) {
      values.push_back(bytes ? f8_to_float(out[i].bits) : value(widened[i]));
    }
    return values;
  };
  std::vector<float> scales;
  std::vector<float> again;
  const std::vector<float> codes = run(true, 0, kRows, scales);
  CHECK(run(false, 0, kRows, again) == codes);
  CHECK(again == scales);
  // The second row alone.
  const std::vector<float> alone = run(true, 1, 1, again);
  CHECK(std::equal(alone.begin(), alone.end(), codes.begin() + kDim));
  CHECK(again[0] == scales[1]);
  for (size_t r = 0; r < kRows; ++r) {
    std::vector<double> row(start.data() + r * kDim, start.data() + (r + 1) * kDim);
    const double factor = 1 / std::sqrt(mean_square(row) + 1e-5);
    double largest = 0;
    for (size_t i = 0; i < kDim; ++i) {
      row[i] *= factor * static_cast<double>(norm[i]);
      largest = std::max(largest, std::abs(row[i]));
    }
    CHECK(static_cast<double>(scales[r]) == doctest::Approx(largest / 448).epsilon(1e-5));
    for (size_t i = 0; i < kDim; ++i) {
      const double code = static_cast<double>(codes[r * kDim + i]);
      const double exact = row[i] * 448 / largest;
      const double step =
          std::ldexp(1.0, std::max(std::ilogb(std::max(std::abs(code), 1e-9)), -6) - 3);
      CHECK(std::abs(code - exact) <= 0.5001 * step + 1e-4);
    }
  }
}

TEST_CASE("a row that is not finite has a scale that is none, its neighbours keep theirs") {
  constexpr int32_t kDim = 64;
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const int32_t at : {0, 9, 63}) {
      CAPTURE(at);
      Buffer<float> hidden("hidden", 2 * kDim);
      Buffer<float> norm("norm", kDim);
      fill_normal(hidden.span(), 13);
      std::fill_n(norm.data(), kDim, 1.0F);
      hidden[static_cast<size_t>(at)] = bad;
      Buffer<int8_t> out("out", 2 * kDim);
      Buffer<float> scale("scale", 2);
      ResidualNorm op;
      op.rows = 2;
      op.dim = kDim;
      op.hidden = hidden.data();
      op.norm = norm.data();
      op.out_int8 = out.data();
      op.out_scale = scale.data();
      require_ok(run_residual_norm(op, nullptr));
      CHECK_FALSE(std::isfinite(scale[0]));
      CHECK(std::isfinite(scale[1]));
    }
  }
}
