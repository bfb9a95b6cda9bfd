// Host memory for KV pages that gave way, the copies there and back, and how long they take on the
// device: between the first and the last copy in front of a step. Owned by the backend's thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/runtime.h"

namespace updraft::cuda {

class SwapSpace {
 public:
  // Once, for `page_count` pages of `page_bytes`.
  Result<void> open(int32_t page_count, int64_t page_bytes);
  int32_t page_count() const { return page_count_; }

  // In the order of the stream; `page` is its begin on the device, `slot` is below page_count().
  Result<void> out(const std::byte* page, int32_t slot, Stream stream);
  Result<void> in(int32_t slot, std::byte* page, Stream stream);
  // Behind the copies that belong together; without one nothing happens. Not while work is
  // captured.
  Result<void> end_moves(Stream stream);
  // Of the moves that are over; never waits.
  Result<int64_t> elapsed_ns();

 private:
  // More than steps can be under way; beyond them moves are not timed.
  static constexpr size_t kWatches = 4;
  Result<void> start(Stream stream);

  PinnedMemory memory_;
  int32_t page_count_ = 0;
  size_t page_bytes_ = 0;
  std::array<Stopwatch, kWatches> watches_;
  std::array<bool, kWatches> pending_{};
  size_t running_ = kWatches;  // the watch that was started; kWatches: none
  bool moving_ = false;
  int64_t elapsed_ns_ = 0;
};

}  // namespace updraft::cuda
