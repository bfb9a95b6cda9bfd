// Copies between two readings of the device's clock.
#include "kernels/cuda/swap_space.h"

#include <optional>
#include <string>
#include <utility>

namespace updraft::cuda {

Result<void> SwapSpace::open(int32_t page_count, int64_t page_bytes) {
  auto memory =
      PinnedMemory::allocate(static_cast<size_t>(page_count) * static_cast<size_t>(page_bytes),
                             "swap space of " + std::to_string(page_count) + " KV pages");
  if (!memory) return memory.error();
  for (Stopwatch& watch : watches_) {
    auto made = Stopwatch::create();
    if (!made) return made.error();
    watch = std::move(*made);
  }
  memory_ = std::move(*memory);
  page_count_ = page_count;
  page_bytes_ = static_cast<size_t>(page_bytes);
  return {};
}

Result<void> SwapSpace::start(Stream stream) {
  if (std::exchange(moving_, true)) return {};
  if (auto counted = elapsed_ns(); !counted) return counted.error();
  for (size_t i = 0; i < kWatches && running_ == kWatches; ++i) {
    if (!pending_[i]) running_ = i;
  }
  return running_ == kWatches ? Result<void>() : watches_[running_].start(stream);
}

Result<void> SwapSpace::out(const std::byte* page, int32_t slot, Stream stream) {
  if (auto started = start(stream); !started) return started;
  return copy_to_host(memory_.data() + static_cast<size_t>(slot) * page_bytes_, page, page_bytes_,
                      stream);
}

Result<void> SwapSpace::in(int32_t slot, std::byte* page, Stream stream) {
  if (auto started = start(stream); !started) return started;
  return copy_to_device(page, memory_.data() + static_cast<size_t>(slot) * page_bytes_, page_bytes_,
                        stream);
}

Result<void> SwapSpace::end_moves(Stream stream) {
  if (!std::exchange(moving_, false) || running_ == kWatches) return {};
  const size_t watch = std::exchange(running_, kWatches);
  pending_[watch] = true;
  return watches_[watch].stop(stream);
}

Result<int64_t> SwapSpace::elapsed_ns() {
  for (size_t i = 0; i < kWatches; ++i) {
    if (!pending_[i]) continue;
    const auto elapsed = watches_[i].elapsed_ns();
    if (!elapsed) return elapsed.error();
    if (!elapsed->has_value()) continue;
    elapsed_ns_ += **elapsed;
    pending_[i] = false;
  }
  return elapsed_ns_;
}

}  // namespace updraft::cuda
