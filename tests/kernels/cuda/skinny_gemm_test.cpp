// The skinny product against a sum in double precision over the reference decoder's weights.
#include "kernels/cuda/skinny_gemm.h"

#include <optional>

#include "tests/kernels/cuda/support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

struct Problem {
  DType type;
  int64_t rows;
  int64_t cols;
  std::vector<std::vector<float>> weights;  // decoded
  PackedLayout layout;
  std::optional<simt::Buffer<std::byte>> packed;
  std::optional<simt::Buffer<Bf16>> x;
  std::optional<simt::Buffer<float>> bias;

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
    pack_tiles({bytes.data(), type, rows, cols}, layout, 0, layout.rows_padded / kTileRows,
               packed->span());
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

  // Tokens [first, first + tokens) in one launch.
  std::vector<float> run(int32_t first, int32_t tokens, int32_t splits, bool with_bias,
                         const simt::Schedule& schedule = {}) const {
    const simt::ScheduleScope scope(schedule);
    simt::Buffer<float> y("y", static_cast<size_t>(tokens * rows));
    simt::Buffer<std::byte> workspace("workspace", skinny_gemm_workspace_bytes(layout, splits));
    std::fill_n(workspace.data(), std::min(workspace.size(), kSkinnyCounterBytes), std::byte{0});
    SkinnyGemm op;
    op.layout = layout;
    op.weight = packed->data();
    op.x = x->data() + first * cols;
    op.x_stride = cols;
    op.tokens = tokens;
    op.bias = with_bias ? bias->data() : nullptr;
    op.y_f32 = y.data();
    op.y_stride = rows;
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

constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ8_0, DType::kBF16, DType::kQ4_K, DType::kQ6_K};

}  // namespace

TEST_CASE("the skinny product equals the sum in double precision, in every format and schedule") {
  for (const DType type : kTypes) {
    CAPTURE(dtype_info(type).name);
    const bool super = dtype_info(type).block_elems == 256;
    // 37 rows: a band of 5 and a block without its second band; 544 columns of Q4_0: half a tile
    // pads.
    const Problem problem(type, 37, super ? 768 : 544, 64);
    for (const int32_t tokens : {1, 8, 11, 16}) {
      const auto expected = problem.expected(tokens, true);
      for (const simt::Schedule& schedule : schedules()) {
        std::vector<float> got = problem.run(0, tokens, 1, true, schedule);
        CHECK(difference(std::span(got), expected) < 2e-6);
      }
    }
    std::vector<float> got = problem.run(0, 61, 1, false);
    CHECK(difference(std::span(got), problem.expected(61, false)) < 2e-6);
  }
}

TEST_CASE("columns split over blocks are added in one order") {
  for (const DType type : kTypes) {
    CAPTURE(dtype_info(type).name);
    const Problem problem(type, 48, 2048, 16);
    const auto expected = problem.expected(3, true);
    std::vector<float> first;
    for (const simt::Schedule& schedule : schedules()) {
      std::vector<float> got = problem.run(0, 3, 3, true, schedule);
      CHECK(difference(std::span(got), expected) < 2e-6);
      if (first.empty()) first = got;
      CHECK(got == first);
    }
  }
}

TEST_CASE("a token alone gets the same bits as in any batch") {
  for (const DType type : kTypes) {
    CAPTURE(dtype_info(type).name);
    const Problem problem(type, 32, 1024, 64);
    for (const int32_t splits : {1, 2}) {
      const std::vector<float> whole = problem.run(0, 64, splits, false);
      for (const int32_t tokens : {1, 5, 12, 20, 40}) {
        const int32_t first = 64 - tokens;
        const std::vector<float> part = problem.run(first, tokens, splits, false);
        CHECK(std::equal(part.begin(), part.end(), whole.begin() + first * 32));
      }
    }
  }
}

TEST_CASE("bfloat16 outputs are the rounded sums") {
  const Problem problem(DType::kQ4_0, 40, 256, 4);
  simt::Buffer<Bf16> y("y", 4 * 48);
  SkinnyGemm op;
  op.layout = problem.layout;
  op.weight = problem.packed->data();
  op.x = problem.x->data();
  op.x_stride = 256;
  op.tokens = 4;
  op.y_bf16 = y.data();
  op.y_stride = 48;
  require_ok(run_skinny_gemm(op, nullptr));
  const std::vector<float> exact = problem.run(0, 4, 1, false);
  for (size_t token = 0; token < 4; ++token) {
    for (size_t r = 0; r < 48; ++r) {
      const uint16_t bits = y[token * 48 + r].bits;
      CHECK(bits == (r < 40 ? float_to_bf16(exact[token * 40 + r]) : 0xFFFF));
    }
  }
}

TEST_CASE("few rows are split so that the device is full, many are not") {
  const auto splits = [](int64_t rows, int64_t cols) {
    return skinny_gemm_splits(*PackedLayout::of(DType::kQ4_0, rows, cols), 132);
  };
  CHECK(splits(151552, 4096) == 1);
  CHECK(splits(4096, 4096) == 1);
  CHECK(splits(4096, 13696) == 1);
  CHECK(splits(1024, 4096) == 2);
  CHECK(splits(512, 4096) == 2);  // four tiles a warp
  CHECK(splits(512, 16384) == 8);
}

TEST_CASE("a shape that the skinny product does not take is refused with its value") {
  const Problem problem(DType::kQ8_0, 16, 64, 1);
  simt::Buffer<float> y("y", 16);
  SkinnyGemm op;
  op.layout = problem.layout;
  op.weight = problem.packed->data();
  op.x = problem.x->data();
  op.x_stride = 64;
  op.tokens = 65;
  op.y_f32 = y.data();
  op.y_stride = 16;
  CHECK(run_skinny_gemm(op, nullptr).message().find("65 tokens") != std::string::npos);
  op.tokens = 1;
  op.x_stride = 60;
  CHECK(run_skinny_gemm(op, nullptr).message().find("60") != std::string::npos);
  op.x_stride = 64;
  op.splits = 2;
  CHECK(run_skinny_gemm(op, nullptr).message().find("workspace") != std::string::npos);
}
