// A copy that never comes: the kernel says so with NaN and ends. Beside the emulator only, whose
// schedule can let waits give up at once.
#include "kernels/cuda/warpgroup_gemm_kernel.h"
#include "tests/kernels/cuda/gemm_support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

TEST_CASE("a product whose activations never come gives up and is NaN everywhere") {
  const Problem problem(DType::kBF16, 64, 1024, 70);
  Buffer<float> y("y", 70 * 64);
  // Boxes of half the tokens: every phase lacks bytes.
  TensorMap map;
  require_ok(make_tensor_map({problem.x->data(), 70, 1024, 1024, 64}, &map));
  WarpgroupGemmArguments in{};
  in.weight = PackedWeight::of(problem.layout, problem.packed->data());
  in.out.y_f32 = y.data();
  in.out.y_stride = 64;
  in.out.tokens = 70;
  in.out.rows = 64;
  in.bands = 4;
  {
    const ScheduleScope scope({1, Landing::kAtWait, simt::Stuck::kGiveUp});
    std::fill_n(y.data(), y.size(), 0.0F);
    require_ok(run_warpgroup_gemm_of<DType::kBF16>(128, map, in, nullptr));
    int numbers = 0;
    for (const float v : y.span()) numbers += std::isnan(v) ? 0 : 1;
    CHECK(numbers == 0);
  }
  const Result<void> reported = run_warpgroup_gemm_of<DType::kBF16>(128, map, in, nullptr);
  CHECK(reported.message().find("lacks 0 arrivals and 8192 bytes") != std::string::npos);
}
