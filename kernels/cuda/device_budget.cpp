// Counting, and one sentence.
#include "kernels/cuda/device_budget.h"

#include <algorithm>
#include <utility>

namespace updraft::cuda {
namespace {

// What cudaMalloc rounds small sizes to.
constexpr uint64_t kGrain = 256;

std::string mebibytes(uint64_t bytes) {
  return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB";
}

}  // namespace

uint64_t plannable_bytes(uint64_t free_bytes) {
  constexpr uint64_t kAside = uint64_t{512} << 20;
  return free_bytes - std::min(kAside + free_bytes / 64, free_bytes / 8);
}

Result<DeviceMemory> DeviceBudget::take(uint64_t bytes, const std::string& what) {
  const uint64_t rounded = (std::max<uint64_t>(bytes, 1) + kGrain - 1) / kGrain * kGrain;
  if (rounded > limit_bytes_ - std::min(limit_bytes_, used_bytes_)) {
    return fail("cuda: " + what + " of " + mebibytes(rounded) +
                " does not fit: " + mebibytes(used_bytes_) + " of " + mebibytes(limit_bytes_) +
                (by_setting_ ? " that max_memory allows" : " of the GPU that may be planned with") +
                " are taken");
  }
  auto memory = DeviceMemory::allocate(rounded, what);
  if (!memory) return memory.error("cuda");
  used_bytes_ += rounded;
  return memory;
}

Result<void> DeviceBudget::grow(DeviceMemory& old, uint64_t bytes, const std::string& what) {
  if (old.bytes() >= bytes && old.bytes() != 0) return {};
  used_bytes_ -= old.bytes();
  old = DeviceMemory();
  auto memory = take(bytes, what);
  if (!memory) return memory.error();
  old = std::move(*memory);
  return {};
}

}  // namespace updraft::cuda
