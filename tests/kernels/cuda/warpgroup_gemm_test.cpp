// The warpgroup product: sums in double precision of the weights as it rounds them, the same bits
// for a token in any batch and in any schedule.
#include "kernels/cuda/warpgroup_gemm.h"

#include "kernels/cuda/gemm_passes.h"
#include "kernels/cuda/tensor_map.h"
#include "tests/kernels/cuda/gemm_support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

struct Run {
  int32_t first = 0;
  int32_t tokens = 0;
  int32_t block_tokens = 128;
  bool with_bias = false;
  Schedule schedule = {};
  int32_t splits = 1;
};

// What splits need.
struct Splits {
  Buffer<uint32_t> counters{"counters", kSkinnyCounterBytes / sizeof(uint32_t)};
  Buffer<std::byte> partial;
  Splits(const Problem& problem, int32_t tokens, int32_t splits)
      : partial("partial", std::max(warpgroup_gemm_partial_bytes(problem.layout, tokens, splits),
                                    size_t{16})) {
    std::fill_n(counters.data(), counters.size(), 0U);
  }
  void give(int32_t splits, WarpgroupGemm* op) {
    op->splits = splits;
    op->counters = counters.data();
    op->partial = partial.data();
  }
};

WarpgroupGemm operation(const Problem& problem, const Run& run, const Buffer<Bf16>& arranged) {
  WarpgroupGemm op;
  op.product = problem.operation(run.first, run.tokens, run.with_bias);
  op.arranged = arranged.data();
  op.block_tokens = run.block_tokens;
  return op;
}

std::vector<float> product(const Problem& problem, const Run& run) {
  const ScheduleScope scope(run.schedule);
  Buffer<float> y("y", static_cast<size_t>(run.tokens * problem.rows));
  Buffer<Bf16> arranged("arranged", static_cast<size_t>(run.tokens * problem.cols));
  WarpgroupGemm op = operation(problem, run, arranged);
  op.product.y_f32 = y.data();
  if (run.splits == 1) {
    require_ok(run_warpgroup_gemm(op, nullptr));
    return {y.span().begin(), y.span().end()};
  }
  Splits splits(problem, run.tokens, run.splits);
  splits.give(run.splits, &op);
  require_ok(run_warpgroup_gemm(op, nullptr));
  // Counters are as they were: a second launch needs no clearing.
  const std::vector<float> once(y.span().begin(), y.span().end());
  std::fill_n(y.data(), y.size(), NAN);
  require_ok(run_warpgroup_gemm(op, nullptr));
  CHECK(std::equal(once.begin(), once.end(), y.span().begin()));
  return once;
}

// Weights rounded to bfloat16, as the kernel multiplies them; the scales of rows stay apart.
void round_weights(Problem& problem) {
  if (packed_format(problem.type).row_scale) return;
  for (auto& row : problem.weights) {
    for (float& w : row) w = bf16_to_float(float_to_bf16(w));
  }
}

// Of 70 tokens and 64 rows: bfloat16, added, gated.
void check_forms(const Problem& problem, int32_t splits) {
  CAPTURE(splits);
  const std::vector<float> exact = product(problem, {0, 70, 128, true, {}, splits});
  Buffer<Bf16> arranged("arranged", 70 * 160);
  WarpgroupGemm op = operation(problem, {0, 70, 256, true}, arranged);
  Splits of(problem, 70, splits);
  of.give(splits, &op);

  // bfloat16, in rows of a larger matrix.
  Buffer<Bf16> narrow("narrow", 70 * 72);
  op.product.y_bf16 = narrow.data();
  op.product.y_stride = 72;
  require_ok(run_warpgroup_gemm(op, nullptr));
  int wrong = 0;
  for (size_t i = 0; i < 70 * 72; ++i) {
    const uint16_t expected =
        i % 72 < 64 ? float_to_bf16(exact[i / 72 * 64 + i % 72]) : uint16_t{0xFFFF};
    wrong += narrow[i].bits == expected ? 0 : 1;
  }
  CHECK(wrong == 0);

  // Added to what is there.
  Buffer<float> wide("wide", 70 * 64);
  fill_normal(wide.span(), 9);
  const std::vector<float> before(wide.span().begin(), wide.span().end());
  op.product.y_bf16 = nullptr;
  op.product.y_f32 = wide.data();
  op.product.y_stride = 64;
  op.product.accumulate = true;
  require_ok(run_warpgroup_gemm(op, nullptr));
  for (size_t i = 0; i < 70 * 64; ++i) wrong += wide[i] == before[i] + exact[i] ? 0 : 1;
  CHECK(wrong == 0);

  // Gate and up, in alternating bands; the bias lies in the order of the two matrices.
  Buffer<Bf16> gated("gated", 70 * 32);
  op.product.layout.gated = true;
  op.product.y_f32 = nullptr;
  op.product.accumulate = false;
  op.product.y_bf16 = gated.data();
  op.product.y_stride = 32;
  require_ok(run_warpgroup_gemm(op, nullptr));
  const std::vector<float> plain = product(problem, {0, 70, 128, false, {}, splits});
  for (size_t i = 0; i < 70 * 32; ++i) {
    const size_t gate_row = i % 32 / 16 * 32 + i % 16;
    const float* sums = plain.data() + i / 32 * 64 + gate_row;
    const float* bias = problem.bias->data() + i % 32;
    const float gate = bf16_to_float(float_to_bf16(sums[0] + bias[0]));
    const float up = bf16_to_float(float_to_bf16(sums[16] + bias[32]));
    const float expected = up * gate / (1.0F + std::exp(-gate));
    wrong += std::abs(value(gated[i]) - expected) <= 0.005F * std::abs(expected) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("arranged columns are what one step of the packed weights multiplies") {
  for (const DType type : {DType::kQ4_0, DType::kQ6_K}) {
    Buffer<Bf16> x("x", 3 * 72);
    for (size_t i = 0; i < x.size(); ++i) x[i].bits = static_cast<uint16_t>(i);
    Buffer<Bf16> out("out", 3 * 64);
    ArrangeColumns op;
    op.weights = type;
    op.x = x.data();
    op.x_stride = 72;
    op.tokens = 3;
    op.cols = 64;
    op.out = out.data();
    require_ok(run_arrange_columns(op, nullptr));
    int wrong = 0;
    for (size_t i = 0; i < 3 * 64; ++i) {
      const size_t e = i % 2;
      const size_t t = i / 2 % 4;
      const size_t h = i / 8 % 2;
      const size_t s = i / 16 % 2;
      const size_t column =
          type == DType::kQ6_K ? 16 * s + 4 * t + 2 * h + e : 8 * t + 4 * s + 2 * h + e;
      wrong += out[i].bits == i / 64 * 72 + i % 64 / 32 * 32 + column ? 0 : 1;
    }
    CHECK(wrong == 0);
    op.cols = 48;
    CHECK_FALSE(run_arrange_columns(op, nullptr).ok());
  }
}

TEST_CASE("the warpgroup product of every format equals the sum in double precision") {
  if (!has_warpgroups()) return;
  for (const DType type : kTypes) {
    CAPTURE(dtype_info(type).name);
    const bool super = dtype_info(type).block_elems == 256;
    // 150 rows: a second block of two bands, the last with 6 rows. 544 columns: half a stage pads.
    Problem problem(type, 150, super ? 768 : 544, 70);
    round_weights(problem);
    std::vector<float> got = product(problem, {0, 70, 128, true});
    CHECK(difference(std::span(got), problem.expected(70, true)) < cut_off(problem.cols));
  }
}

TEST_CASE(
    "a token's bits in the warpgroup product are the same in every batch, block and schedule") {
  if (!has_warpgroups()) return;
  for (const DType type : {DType::kQ4_K, DType::kQ8_0, DType::kBF16}) {
    CAPTURE(dtype_info(type).name);
    const Problem problem(type, 32, 1024, 260);
    const std::vector<float> whole = product(problem, {0, 260, 256});
    for (const Schedule& schedule : schedules()) {
      const std::vector<float> part = product(problem, {7, 131, 128, false, schedule});
      CHECK(std::equal(part.begin(), part.end(), whole.begin() + 7 * 32));
    }
    const std::vector<float> alone = product(problem, {259, 1, 128});
    CHECK(std::equal(alone.begin(), alone.end(), whole.begin() + 259 * 32));
  }
}

TEST_CASE("no order of warps, early or late copies change the warpgroup product's bits") {
  if (!has_warpgroups()) return;
  const Problem problem(DType::kQ4_0, 16, 1024, 65);
  const std::vector<float> first = product(problem, {0, 65, 128});
  for (uint64_t seed = 10; seed < 26; ++seed) {
    const Landing landing = seed % 4 == 0 ? Landing::kAtWait : Landing::kAtIssue;
    CHECK(product(problem, {0, 65, 128, false, {seed, landing}}) == first);
  }
}

TEST_CASE("13,696 columns are summed by the warpgroup product as tensor cores sum them") {
  if (!has_warpgroups()) return;
  Problem problem(DType::kQ4_0, 16, 13696, 3);
  round_weights(problem);
  std::vector<float> got = product(problem, {0, 3, 128});
  CHECK(difference(std::span(got), problem.expected(3, false)) < cut_off(problem.cols));
}

TEST_CASE("blocks that share the columns are added up in the order of the columns") {
  if (!has_warpgroups()) return;
  // 15 stages of 64 columns, the last one half full where a format allows it; two tiles of rows.
  for (const DType type : {DType::kBF16, DType::kQ8_0, DType::kQ4_K}) {
    CAPTURE(dtype_info(type).name);
    const Problem problem(type, 144, type == DType::kQ4_K ? 1024 : 928, 70);
    const auto stages = static_cast<int32_t>((problem.cols + 63) / 64);
    for (const int32_t splits : {2, 3, 8}) {
      if (splits != 3 && type != DType::kBF16) continue;
      CAPTURE(splits);
      // Each block's sums: the product of columns that are zero outside its share.
      std::vector<float> expected(static_cast<size_t>(70 * problem.rows), 0.0F);
      for (int32_t split = 0; split < splits; ++split) {
        Problem part(type, problem.rows, problem.cols, 70);  // the same numbers
        for (int64_t i = 0; i < 70 * problem.cols; ++i) {
          const auto stage = static_cast<int32_t>(i % problem.cols / 64);
          const bool inside =
              stage >= stages * split / splits && stage < stages * (split + 1) / splits;
          if (!inside) (*part.x)[static_cast<size_t>(i)].bits = 0;
        }
        const std::vector<float> sums = product(part, {0, 70, 128});
        for (size_t i = 0; i < sums.size(); ++i) expected[i] += sums[i];
      }
      const std::vector<float> got = product(problem, {0, 70, 128, false, {}, splits});
      CHECK(got == expected);
      if (splits != 3) continue;
      // Whichever comes last, however many tokens a block has, whatever runs beside a token.
      for (uint64_t seed = 1; seed <= 6; ++seed) {
        const Schedule schedule{seed, seed % 2 == 0 ? Landing::kAtWait : Landing::kAtIssue};
        CHECK(product(problem, {0, 70, 128, false, schedule, 3}) == expected);
      }
      const std::vector<float> part = product(problem, {5, 33, 256, false, {}, 3});
      CHECK(std::equal(part.begin(), part.end(), expected.begin() + 5 * problem.rows));
    }
  }
}

TEST_CASE("columns are split where tiles of outputs leave multiprocessors idle") {
  const auto square = PackedLayout::of(DType::kQ4_K, 4096, 4096);
  CHECK(warpgroup_gemm_splits_max(*square, 65, 132) == 8);
  CHECK(warpgroup_gemm_splits_max(*square, 256, 132) == 4);  // 64 tiles
  CHECK(warpgroup_gemm_splits_max(*square, 512, 132) == 2);  // 128
  CHECK(warpgroup_gemm_splits_max(*square, 513, 132) == 1);
  const auto narrow = PackedLayout::of(DType::kQ4_0, 4096, 1024);  // of 16 stages
  CHECK(warpgroup_gemm_splits_max(*narrow, 65, 132) == 4);
  const auto few = PackedLayout::of(DType::kQ4_0, 64, 448);
  CHECK(warpgroup_gemm_splits_max(*few, 65, 132) == 1);
  int32_t before = kWarpgroupSplitsMax;
  for (int32_t tokens = 1; tokens < 1000; ++tokens) {
    const int32_t splits = warpgroup_gemm_splits_max(*square, tokens, 132);
    CHECK(splits <= before);
    before = splits;
  }
}

TEST_CASE("the warpgroup product's outputs are the tile product's forms") {
  if (!has_warpgroups()) return;
  const Problem problem(DType::kBF16, 64, 160, 70);
  for (const int32_t splits : {1, 2}) check_forms(problem, splits);
}

TEST_CASE("a shape that the warpgroup product does not take is refused with its value") {
  const Problem problem(DType::kQ8_0, 16, 64, 1);
  Buffer<float> y("y", 16);
  Buffer<Bf16> arranged("arranged", 64);
  WarpgroupGemm op = operation(problem, {0, 0}, arranged);
  op.product.y_f32 = y.data();
  CHECK(run_warpgroup_gemm(op, nullptr).message().find("0 tokens") != std::string::npos);
  op.product.tokens = 1;
  op.block_tokens = 64;
  CHECK(run_warpgroup_gemm(op, nullptr).message().find("blocks of 64") != std::string::npos);
  op.block_tokens = 0;
  op.splits = 2;  // one stage
  CHECK(run_warpgroup_gemm(op, nullptr).message().find("2 splits") != std::string::npos);
  op.splits = 0;
  CHECK(run_warpgroup_gemm(op, nullptr).message().find("0 splits") != std::string::npos);
  const Problem wide(DType::kQ8_0, 16, 1024, 1);
  WarpgroupGemm split = operation(wide, {0, 1}, arranged);
  split.product.y_f32 = y.data();
  split.splits = 9;
  CHECK(run_warpgroup_gemm(split, nullptr).message().find("9 splits") != std::string::npos);
  split.splits = 2;
  CHECK(run_warpgroup_gemm(split, nullptr).message().find("without counters") != std::string::npos);
  op.splits = 1;
  op.product.y_stride = 15;
  CHECK(run_warpgroup_gemm(op, nullptr).message().find("at least 16") != std::string::npos);
  op.product.layout.type = DType::kI8;
  CHECK(run_warpgroup_gemm(op, nullptr).message().find("no such format") != std::string::npos);
  TensorMap map;
  CHECK_FALSE(make_tensor_map({arranged.data(), 1, 64, 60, 128}, &map).ok());
  CHECK_FALSE(make_tensor_map({arranged.data(), 1, 64, 64, 264}, &map).ok());
  CHECK_FALSE(make_tensor_map({arranged.data() + 1, 1, 56, 56, 128}, &map).ok());
}
