// Two slots and who is in them.
#include "kernels/cuda/weight_stream.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace updraft::cuda {

int32_t WeightStream::add(PinnedMemory memory) {
  host_bytes_ += memory.bytes();
  slot_bytes_ = std::max(slot_bytes_, memory.bytes());
  matrices_.push_back(std::move(memory));
  return matrix_count() - 1;
}

Result<void> WeightStream::take_slots(DeviceBudget& budget) {
  if (matrices_.empty()) return {};
  auto stream = OwnedStream::create();
  if (!stream) return stream.error();
  stream_ = std::move(*stream);
  if (auto r = budget.grow(mark_, sizeof(uint32_t), "mark of streamed weights"); !r) return r;
  for (Slot& slot : slots_) {
    slot.matrix = -1;
    if (auto r = budget.grow(slot.memory, slot_bytes_, "slot of streamed weights"); !r) return r;
    for (Event* event : {&slot.copied, &slot.read}) {
      auto made = Event::create();
      if (!made) return made.error();
      *event = std::move(*made);
    }
  }
  return {};
}

WeightStream::Slot* WeightStream::slot_of(int32_t matrix) {
  for (Slot& slot : slots_) {
    if (slot.matrix == matrix) return &slot;
  }
  return nullptr;
}

// Into the slot that was used longest ago.
Result<WeightStream::Slot*> WeightStream::fetch(int32_t matrix) {
  Slot& slot = *std::min_element(std::begin(slots_), std::end(slots_),
                                 [](const Slot& a, const Slot& b) { return a.used < b.used; });
  const PinnedMemory& from = matrices_[static_cast<size_t>(matrix)];
  if (auto r = slot.read.hold(stream_.get()); !r) return r.error();
  if (auto r = copy_to_device(slot.memory.data(), from.data(), from.bytes(), stream_.get()); !r) {
    return r.error();
  }
  if (auto r = slot.copied.record(stream_.get()); !r) return r.error();
  slot.matrix = matrix;
  slot.used = ++uses_;
  return &slot;
}

Result<const std::byte*> WeightStream::use(int32_t matrix, Stream compute) {
  Slot* slot = slot_of(matrix);
  if (slot == nullptr) {
    auto fetched = fetch(matrix);
    if (!fetched) return fetched.error();
    slot = *fetched;
  }
  if (auto r = slot->copied.hold(compute); !r) return r.error();
  // The product reads its weights before it waits for what is in front of it: that is no kernel
  // here, so it starts when all in front has ended, the copy too.
  if (auto r = fill(mark_.data(), 0, mark_.bytes(), compute); !r) return r.error();
  return static_cast<const std::byte*>(slot->memory.data());
}

Result<void> WeightStream::release(int32_t matrix, Stream compute) {
  Slot* slot = slot_of(matrix);
  UPDRAFT_CHECK(slot != nullptr, "a matrix in use");
  slot->used = ++uses_;
  if (auto r = slot->read.record(compute); !r) return r;
  const int32_t next = (matrix + 1) % matrix_count();
  if (slot_of(next) != nullptr) return {};
  auto fetched = fetch(next);
  if (!fetched) return fetched.error();
  return {};
}

}  // namespace updraft::cuda
