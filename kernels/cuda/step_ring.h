// Steps under way: what each of them needs on the host until the device is done with it. Slots are
// used in turn, so a step's staging memory is written anew only when the step that had it is done.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/runtime.h"

namespace updraft::cuda {

class StepRing {
 public:
  static constexpr int32_t kSteps = 2;

  struct Sizes {
    size_t metadata_bytes = 0;
    size_t given_bytes = 0;
    int32_t logit_rows_max = 0;
  };
  static Result<StepRing> open(const Sizes& sizes);

  // Takes the next slot, waits until the device is done with it.
  Result<void> begin();
  // Of the step that began last.
  std::span<std::byte> metadata() { return {now().metadata.data(), now().metadata.bytes()}; }
  std::span<float> given_rows() {
    return {now().given.as<float>(), now().given.bytes() / sizeof(float)};
  }
  int32_t* tokens() { return now().tokens.as<int32_t>(); }
  // All of the step was given to the stream. token_count: how many tokens it gives, 0: none.
  Result<void> end(Stream stream, int32_t token_count);

  // The tokens of the oldest step that has some and was not read. Waits for it.
  Result<std::span<const int32_t>> read_tokens();
  // Waits for the step that ended last.
  Result<void> wait_newest();

 private:
  struct Slot {
    PinnedMemory metadata;
    PinnedMemory given;
    PinnedMemory tokens;
    Event done;
    int32_t token_count = 0;  // not read yet
  };
  Slot& now() { return slots_[newest_]; }

  Slot slots_[kSteps];
  int32_t newest_ = 0;
};

}  // namespace updraft::cuda
