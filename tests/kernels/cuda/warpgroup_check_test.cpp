// The check of the warpgroup product: content with the kernel as it is, and not with one whose
// waits give up.
#include "kernels/cuda/warpgroup_check.h"

#include "kernels/cuda/runtime.h"
#include "tests/kernels/cuda/support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

TEST_CASE("the warpgroup product agrees with the tile product bit for bit in every format") {
  if (!has_warpgroups()) return;
  const auto stream = OwnedStream::create();
  REQUIRE(stream.ok());
  const auto verdict = check_warpgroup_gemm(stream->get());
  REQUIRE_MESSAGE(verdict.ok(), verdict.message());
  CHECK_MESSAGE(verdict->right, verdict->why);
}
