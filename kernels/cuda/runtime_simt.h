// What tests set of the emulated device; nobody else includes this.
#pragma once

#include <cstdint>

#include "kernels/simt/stream.h"

namespace updraft::cuda {

struct EmulatedDevices {
  int32_t count = 1;                          // 0: no GPU
  uint64_t memory_bytes = uint64_t{1} << 30;  // of each
  int32_t multiprocessor_count = 4;
  int32_t compute_major = 9;
  bool captures = true;  // false: as a driver that knows no graphs of such kernels
};
// For what is opened from now on.
void set_emulated_devices(const EmulatedDevices& devices);
// When work on the streams of the thread's current device runs.
void set_stream_order(const simt::StreamOrder& order);
// Memory taken on all of them now.
uint64_t emulated_memory_used_bytes();

}  // namespace updraft::cuda
