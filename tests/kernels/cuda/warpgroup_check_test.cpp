// The checks that a GPU is asked to pass before it runs the kernels for capability 9.0: the
// emulator passes them.
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

TEST_CASE("warpgroup attention agrees with that of mma.sync bit for bit where sums are exact") {
  if (!has_warpgroups()) return;
  const auto stream = OwnedStream::create();
  REQUIRE(stream.ok());
  const auto verdict = check_warpgroup_attention(stream->get());
  REQUIRE_MESSAGE(verdict.ok(), verdict.message());
  CHECK_MESSAGE(verdict->right, verdict->why);
}
