// What kernels' tests run on with a GPU: memory that host and device both see, filled with 0xFF as
// the emulator's is. The hardware has a schedule of its own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/result.h"

namespace updraft::cuda::testing {

enum class Landing : uint8_t { kAtWait, kAtIssue };
struct Schedule {
  uint64_t seed = 1;
  Landing landing = Landing::kAtWait;
};
class ScheduleScope {
 public:
  explicit ScheduleScope(const Schedule& /*schedule*/) {}
  ~ScheduleScope() {}  // NOLINT: without it a scope would count as unused
};

// Several runs: what depends on their order shows.
inline std::vector<Schedule> schedules() { return {{1}, {2}, {3}}; }

inline Result<void> finish() {
  const cudaError_t status = cudaDeviceSynchronize();
  if (status == cudaSuccess) return {};
  return fail(std::string("cuda: ") + cudaGetErrorString(status));
}

template <typename T>
class Buffer {
 public:
  Buffer(const std::string& /*name*/, size_t count) : count_(count) {
    // One element more, so that there is something to point at.
    const cudaError_t status = cudaMallocManaged(&memory_, (count + 1) * sizeof(T));
    UPDRAFT_CHECK(status == cudaSuccess, "memory of both sides for a test");
    std::memset(memory_, 0xFF, (count + 1) * sizeof(T));
  }
  Buffer(const std::string& name, std::span<const T> values) : Buffer(name, values.size()) {
    if (count_ != 0) std::memcpy(memory_, values.data(), values.size_bytes());
  }
  ~Buffer() {
    (void)finish();  // a kernel may still read it
    cudaFree(memory_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return static_cast<T*>(memory_); }
  size_t size() const { return count_; }
  std::span<T> span() const { return {data(), count_}; }
  T& operator[](size_t index) const {
    UPDRAFT_CHECK(index < count_, "an index within the buffer");
    return data()[index];
  }

 private:
  void* memory_ = nullptr;
  size_t count_;
};

}  // namespace updraft::cuda::testing
