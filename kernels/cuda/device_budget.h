// Device memory within a limit, and the message where it does not suffice.
#pragma once

#include <cstdint>
#include <string>

#include "common/base/result.h"
#include "kernels/cuda/runtime.h"

namespace updraft::cuda {

// What of the memory that a device has free may be planned with. The rest is for what it takes
// while steps run, where a refusal would end the process: kernels that are loaded when they are
// first used, cuBLASLt's among them, captured graphs, and what it rounds up (to 2 MiB each).
uint64_t plannable_bytes(uint64_t free_bytes);

class DeviceBudget {
 public:
  DeviceBudget() = default;
  // `by_setting`: the limit is the operator's, not the device's.
  DeviceBudget(uint64_t limit_bytes, bool by_setting)
      : limit_bytes_(limit_bytes), by_setting_(by_setting) {}

  uint64_t limit_bytes() const { return limit_bytes_; }
  uint64_t used_bytes() const { return used_bytes_; }

  // Errors: beyond the limit, with all figures; what the device says.
  Result<DeviceMemory> take(uint64_t bytes, const std::string& what);
  // Gives `old` back first where it is too small; its content is lost. Never shrinks.
  Result<void> grow(DeviceMemory& old, uint64_t bytes, const std::string& what);

 private:
  uint64_t limit_bytes_ = 0;
  uint64_t used_bytes_ = 0;
  bool by_setting_ = false;
};

}  // namespace updraft::cuda
