// Slots in turn.
#include "kernels/cuda/step_ring.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace updraft::cuda {

Result<StepRing> StepRing::open(const Sizes& sizes) {
  StepRing out;
  for (Slot& slot : out.slots_) {
    const auto take = [](PinnedMemory& memory, size_t bytes, const char* what) -> Result<void> {
      auto taken = PinnedMemory::allocate(std::max<size_t>(bytes, 16), what);
      if (!taken) return taken.error();
      memory = std::move(*taken);
      return {};
    };
    if (auto r = take(slot.metadata, sizes.metadata_bytes, "step metadata"); !r) return r.error();
    if (auto r = take(slot.given, sizes.given_bytes, "given rows"); !r) return r.error();
    const size_t token_bytes = static_cast<size_t>(sizes.logit_rows_max) * sizeof(int32_t);
    if (auto r = take(slot.tokens, token_bytes, "tokens"); !r) return r.error();
    auto event = Event::create();
    if (!event) return event.error();
    slot.done = std::move(*event);
  }
  return out;
}

Result<void> StepRing::begin() {
  newest_ = (newest_ + 1) % kSteps;
  UPDRAFT_CHECK(now().token_count == 0, "the tokens of a step are read before two others began");
  return now().done.wait();
}

Result<void> StepRing::end(Stream stream, int32_t token_count) {
  now().token_count = token_count;
  return now().done.record(stream);
}

Result<std::span<const int32_t>> StepRing::read_tokens() {
  for (int32_t i = 1; i <= kSteps; ++i) {
    Slot& slot = slots_[(newest_ + i) % kSteps];
    if (slot.token_count == 0) continue;
    if (auto waited = slot.done.wait(); !waited) return waited.error();
    return std::span<const int32_t>(slot.tokens.as<int32_t>(),
                                    static_cast<size_t>(std::exchange(slot.token_count, 0)));
  }
  UPDRAFT_CHECK(false, "a step with samplings is under way");
  return std::span<const int32_t>();
}

Result<void> StepRing::wait_newest() { return now().done.wait(); }

}  // namespace updraft::cuda
