// The CUDA module from outside: found, refused, opened. The one that opens is the emulated one.
#include "kernels/module/cuda_module.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <numeric>
#include <vector>

using namespace updraft;

namespace {

const std::string kModules = std::string(UPDRAFT_BINARY_DIR) + "/tests/modules/";

Result<std::unique_ptr<Backend>> open_named(const std::string& path,
                                            const CudaConfig& config = {}) {
  setenv("UPDRAFT_CUDA_MODULE", path.c_str(), 1);
  auto opened = open_cuda_module(config);
  unsetenv("UPDRAFT_CUDA_MODULE");
  return opened;
}

}  // namespace

TEST_CASE("a module that is not there, is none or is of another version is told in one line") {
  const auto missing = open_named("/nowhere/libupdraft_cuda.so");
  CHECK(missing.message() ==
        "cuda: UPDRAFT_CUDA_MODULE names /nowhere/libupdraft_cuda.so, which is not there");
  CHECK(missing.kind() == static_cast<int>(CudaFailure::kNoModule));

  const auto other = open_named(kModules + "libother_version.so");
  CHECK(other.message() == "cuda: " + kModules +
                               "libother_version.so is of Updraft 9.9.9, interface " +
                               std::to_string(kCudaModuleVersion + 1) +
                               "; this is Updraft " UPDRAFT_VERSION ", interface " +
                               std::to_string(kCudaModuleVersion));
  CHECK(other.kind() == static_cast<int>(CudaFailure::kOther));

  const auto none = open_named("/proc/self/exe");
  CHECK(none.message().find("cuda: ") == 0);
  CHECK(none.message().find('\n') == std::string::npos);
}

TEST_CASE("the emulated module opens, says what it is and computes") {
  auto opened = open_named(kModules + "libupdraft_cuda_emulated.so");
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  Backend& backend = **opened;
  CHECK(backend.description() == "cuda emulated GPU, compute 9.0, 4 multiprocessors");
  CHECK(backend.samples());
  // One row of a table of 16 is looked up.
  std::vector<float> table(16 * 64);
  std::iota(table.begin(), table.end(), 0.0F);
  for (float& v : table) v = v / 4.0F - static_cast<float>(static_cast<int>(v / 64.0F)) * 16.0F;
  const WeightView view{reinterpret_cast<const std::byte*>(table.data()), DType::kF32, 16, 64};
  const auto e = backend.add_matrix({&view, 1});
  REQUIRE(e.ok());
  const Act hidden = *backend.add_residual(1, 64);
  REQUIRE(backend.reserve_logits(1, 16).ok());
  REQUIRE(backend.make_kv_pool({1, 1, 64, 16, 1, DType::kBF16}).ok());
  const std::vector<int32_t> ids = {5};
  const std::vector<int32_t> zero = {0};
  const SequenceSlice slice{0, 1, 0, zero};
  backend.begin({ids, zero, {&slice, 1}, {}});
  backend.embed(*e, hidden);
  backend.end();
  std::vector<float> out(64);
  backend.read_activation(hidden, 1, out);
  CHECK(std::equal(out.begin(), out.end(), table.begin() + int64_t{5 * 64}));
}

TEST_CASE("a group of GPUs that finds no NCCL or no GPUs says so in one line") {
  setenv("UPDRAFT_CUDA_MODULE", (kModules + "libupdraft_cuda_emulated.so").c_str(), 1);
  const auto comms = open_cuda_comms(std::vector<int32_t>{40, 41});
  unsetenv("UPDRAFT_CUDA_MODULE");
  REQUIRE_FALSE(comms.ok());
  const bool no_library = comms.message().find("several GPUs need NCCL") == 0;
  const bool no_gpus = comms.message().find("for the GPUs 40, 41") != std::string::npos;
  CHECK((no_library || no_gpus));
  CHECK(comms.message().find('\n') == std::string::npos);
}
