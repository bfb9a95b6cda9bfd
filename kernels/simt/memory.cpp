// The list of memory blocks and their guards.
#include "kernels/simt/memory.h"

#include <algorithm>
#include <map>
#include <new>

#include "kernels/simt/sanitizers.h"

namespace updraft::simt {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kGuardBytes = 256;
constexpr auto kGuardByte = std::byte{0xFF};  // a read beyond the end gives NaN

// By address. A map: blocks come and go with every thread block that runs.
std::map<uintptr_t, const MemoryBlock*>& blocks() {
  static thread_local std::map<uintptr_t, const MemoryBlock*> list;
  return list;
}

const char* space_name(Space space) { return space == Space::kShared ? "shared" : "global"; }

std::string described(const MemoryBlock& block) {
  return std::string(space_name(block.space())) + " buffer '" + block.name() + "' (" +
         std::to_string(block.bytes()) + " bytes)";
}

}  // namespace

// The guard behind begins at the very end of the data, whatever its size.
MemoryBlock::MemoryBlock(std::string name, Space space, size_t bytes)
    : name_(std::move(name)),
      space_(space),
      bytes_(bytes),
      whole_(static_cast<std::byte*>(
          ::operator new (kGuardBytes + bytes + kGuardBytes, std::align_val_t{kAlignment}))),
      data_(whole_ + kGuardBytes) {
  static_assert(kGuardBytes % kAlignment == 0);
  std::fill_n(whole_, kGuardBytes + bytes + kGuardBytes, kGuardByte);
  forbid(whole_, kGuardBytes);
  forbid(data_ + bytes_, kGuardBytes);
  blocks()[reinterpret_cast<uintptr_t>(data_)] = this;
}

MemoryBlock::~MemoryBlock() {
  blocks().erase(reinterpret_cast<uintptr_t>(data_));
  allow(whole_, kGuardBytes + bytes_ + kGuardBytes);
  ::operator delete (whole_, std::align_val_t{kAlignment});
}

std::optional<std::string> MemoryBlock::damage() const {
  if constexpr (kAddressSanitizer) return std::nullopt;  // it stops at the write itself
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (data_[bytes_ + i] != kGuardByte) {
      return described(*this) + " was written " + std::to_string(i) + " bytes beyond its end";
    }
    if (whole_[kGuardBytes - 1 - i] != kGuardByte) {
      return described(*this) + " was written " + std::to_string(i + 1) + " bytes before its begin";
    }
  }
  return std::nullopt;
}

std::optional<std::string> access_error(const void* at, size_t bytes, Space space) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  const auto& list = blocks();
  auto next = list.upper_bound(address);
  if (next == list.begin()) {
    return "of an address that lies in no " + std::string(space_name(space)) + " buffer";
  }
  const MemoryBlock& block = *std::prev(next)->second;
  const size_t offset = address - reinterpret_cast<uintptr_t>(block.data());
  if (offset >= block.bytes() + kGuardBytes) {
    return "of an address that lies in no " + std::string(space_name(space)) + " buffer";
  }
  if (offset + bytes > block.bytes()) {
    return "at byte " + std::to_string(offset) + " runs beyond the end of " + described(block);
  }
  if (block.space() != space) {
    return "wants " + std::string(space_name(space)) + " memory and got " + described(block);
  }
  if (offset % bytes != 0) {
    return "at byte " + std::to_string(offset) + " of " + described(block) +
           " is not aligned to its size";
  }
  return std::nullopt;
}

std::optional<std::string> guard_damage() {
  for (const auto& [address, block] : blocks()) {
    if (auto damage = block->damage()) return damage;
  }
  return std::nullopt;
}

}  // namespace updraft::simt
