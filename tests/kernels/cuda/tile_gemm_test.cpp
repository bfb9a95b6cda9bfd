// The tile product: bit for bit the skinny one, and a sum in double precision.
#include "kernels/cuda/tile_gemm.h"

#include "tests/kernels/cuda/gemm_support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

std::vector<float> tile_product(const Problem& problem, int32_t first, int32_t tokens,
                                int32_t splits, bool with_bias, const Schedule& schedule = {}) {
  const ScheduleScope scope(schedule);
  Buffer<float> y("y", static_cast<size_t>(tokens * problem.rows));
  SkinnyGemm op = problem.operation(first, tokens, with_bias);
  op.y_f32 = y.data();
  op.splits = splits;
  require_ok(run_tile_gemm(op, nullptr));
  return {y.span().begin(), y.span().end()};
}

}  // namespace

TEST_CASE("the tile product equals the sum in double precision and the skinny one bit for bit") {
  for (const DType type : kTypes) {
    CAPTURE(dtype_info(type).name);
    const bool super = dtype_info(type).block_elems == 256;
    // 150 rows: a second block of two bands, the last with 6 rows. 544 columns: half a stage pads.
    const Problem problem(type, 150, super ? 768 : 544, 70);
    const std::vector<float> got = tile_product(problem, 0, 70, 1, true);
    std::vector<float> copy = got;
    CHECK(difference(std::span(copy), problem.expected(70, true)) < 2e-6);
    const std::vector<float> few = problem.run(0, 5, 1, true);
    CHECK(std::equal(few.begin(), few.end(), got.begin()));
    const std::vector<float> many = problem.run(6, 64, 1, true);
    CHECK(std::equal(many.begin(), many.end(), got.begin() + 6 * 150));
  }
}

TEST_CASE("the order of the additions is the skinny product's with split columns too") {
  for (const DType type : {DType::kQ4_0, DType::kQ5_K, DType::kBF16}) {
    CAPTURE(dtype_info(type).name);
    const Problem problem(type, 32, 3072, 70);
    for (const int32_t splits : {1, 2, 3}) {
      CAPTURE(splits);
      const std::vector<float> skinny = problem.run(60, 10, splits, false);
      const std::vector<float> got = tile_product(problem, 0, 70, splits, false);
      CHECK(std::equal(skinny.begin(), skinny.end(), got.begin() + 60 * 32));
    }
  }
}

#if !defined(UPDRAFT_TESTS_ON_GPU)
TEST_CASE("where a block has 99 KiB of shared memory split columns give the same bits") {
  const Problem problem(DType::kQ8_0, 32, 3072, 140);
  const std::vector<float> expected = tile_product(problem, 0, 140, 3, true);
  const simt::SharedLimit limit(99 << 10);
  Buffer<float> y("y", 140 * 32);
  SkinnyGemm op = problem.operation(0, 140, true);
  op.y_f32 = y.data();
  op.splits = 3;
  CHECK(run_tile_gemm(op, nullptr).message().find("without a workspace") != std::string::npos);
  Buffer<std::byte> workspace("workspace", skinny_gemm_workspace_bytes(op.layout, 3));
  std::fill_n(workspace.data(), kSkinnyCounterBytes, std::byte{0});
  op.workspace = workspace.data();
  require_ok(run_tile_gemm(op, nullptr));
  CHECK(std::equal(expected.begin(), expected.end(), y.data()));
  op.splits = 1;  // fits
  require_ok(run_tile_gemm(op, nullptr));
}
#endif

TEST_CASE("every schedule of the tile product gives the same bits, a second block of tokens too") {
  for (const DType type : {DType::kQ4_K, DType::kQ8_0}) {
    const Problem problem(type, 32, 1024, 140);
    std::vector<float> first;
    for (const Schedule& schedule : schedules()) {
      const std::vector<float> got = tile_product(problem, 0, 140, 1, true, schedule);
      if (first.empty()) first = got;
      CHECK(got == first);
    }
    const std::vector<float> alone = problem.run(139, 1, 1, true);
    CHECK(std::equal(alone.begin(), alone.end(), first.begin() + 139 * 32));
  }
}

TEST_CASE("13,696 columns are summed by the tile product as in double precision") {
  const Problem problem(DType::kQ4_0, 16, 13696, 3);
  std::vector<float> got = tile_product(problem, 0, 3, 1, false);
  CHECK(difference(std::span(got), problem.expected(3, false)) < cut_off(13696 / 8));
}

TEST_CASE("the tile product writes its rows and tokens alone, as bfloat16") {
  const Problem problem(DType::kBF16, 40, 256, 70);
  Buffer<Bf16> y("y", 70 * 48);
  SkinnyGemm op = problem.operation(0, 70, false);
  op.y_bf16 = y.data();
  op.y_stride = 48;
  require_ok(run_tile_gemm(op, nullptr));
  const std::vector<float> exact = tile_product(problem, 0, 70, 1, false);
  int wrong = 0;
  for (size_t token = 0; token < 70; ++token) {
    for (size_t r = 0; r < 48; ++r) {
      const uint16_t expected = r < 40 ? float_to_bf16(exact[token * 40 + r]) : 0xFFFF;
      wrong += y[token * 48 + r].bits == expected ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("a shape that the tile product does not take is refused with its value") {
  const Problem problem(DType::kQ8_0, 16, 64, 1);
  Buffer<float> y("y", 16);
  SkinnyGemm op = problem.operation(0, 0, false);
  op.y_f32 = y.data();
  CHECK(run_tile_gemm(op, nullptr).message().find("0 tokens") != std::string::npos);
  op.tokens = 1;
  op.x_stride = 60;
  CHECK(run_tile_gemm(op, nullptr).message().find("60") != std::string::npos);
  op.x_stride = 64;
  op.y_stride = 15;
  CHECK(run_tile_gemm(op, nullptr).message().find("16") != std::string::npos);
  op.y_stride = 16;
  op.splits = 0;
  CHECK(run_tile_gemm(op, nullptr).message().find("0 splits") != std::string::npos);
}
