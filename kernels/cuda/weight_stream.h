// Weights that the device has no room for: they lie packed in pinned host memory and come over a
// stream of their own into two slots, the next matrix while the one before is multiplied with. A
// slot is written when the product that read it is done, and read when its copy is done: events in
// both directions, no waiting on the host.
//
// Matrices are used in the order in which they were added, again and again; who leaves the order
// (a step that stops before the last layer's end) waits for one copy.
#pragma once

#include <cstdint>
#include <vector>

#include "common/base/result.h"
#include "kernels/cuda/device_budget.h"
#include "kernels/cuda/runtime.h"

namespace updraft::cuda {

class WeightStream {
 public:
  static constexpr int32_t kSlots = 2;

  // Load time. The matrix's index; `memory` has its packed bytes.
  int32_t add(PinnedMemory memory);
  uint64_t host_bytes() const { return host_bytes_; }
  int32_t matrix_count() const { return static_cast<int32_t>(matrices_.size()); }
  size_t slot_bytes() const { return slot_bytes_; }
  // After the last add().
  Result<void> take_slots(DeviceBudget& budget);

  // Where the matrix lies for what is given to `compute` now; until release() behind it.
  Result<const std::byte*> use(int32_t matrix, Stream compute);
  // Its reader was given to `compute`: the next matrix comes.
  Result<void> release(int32_t matrix, Stream compute);

 private:
  struct Slot {
    DeviceMemory memory;
    int32_t matrix = -1;
    int64_t used = 0;  // when, in uses
    Event copied;
    Event read;
  };
  Slot* slot_of(int32_t matrix);
  Result<Slot*> fetch(int32_t matrix);

  std::vector<PinnedMemory> matrices_;
  uint64_t host_bytes_ = 0;
  size_t slot_bytes_ = 0;
  OwnedStream stream_;
  DeviceMemory mark_;  // written in front of each reader
  Slot slots_[kSlots];
  int64_t uses_ = 0;
};

}  // namespace updraft::cuda
