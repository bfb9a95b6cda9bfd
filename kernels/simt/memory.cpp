// The list of memory blocks and their guards.
#include "kernels/simt/memory.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "kernels/simt/sanitizers.h"

namespace updraft::simt {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kGuardBytes = 256;
constexpr auto kGuardByte = std::byte{0xFF};  // a read beyond the end gives NaN

// By address. A map: blocks of shared memory come and go with every thread block that runs.
using Blocks = std::map<uintptr_t, const MemoryBlock*>;

Blocks& shared_blocks() {
  static thread_local Blocks list;
  return list;
}

// The process's list. What an access is looked up in is a thread's own copy, made anew when the
// number has changed; it outlives the blocks, so it does not point to them.
struct Extent {
  std::string name;
  size_t bytes = 0;
};
struct GlobalList {
  std::mutex mutex;
  Blocks blocks;
  std::atomic<uint64_t> version{1};
};
GlobalList& global_list() {
  static GlobalList list;
  return list;
}
const std::map<uintptr_t, Extent>& global_extents() {
  static thread_local std::map<uintptr_t, Extent> copy;
  static thread_local uint64_t version = 0;
  GlobalList& list = global_list();
  // Pairs with the release in change_global(): who knows of a block sees it in the list.
  if (list.version.load(std::memory_order_acquire) != version) {
    const std::lock_guard lock(list.mutex);
    copy.clear();
    for (const auto& [address, block] : list.blocks) {
      copy.emplace_hint(copy.end(), address, Extent{block->name(), block->bytes()});
    }
    version = list.version.load(std::memory_order_relaxed);
  }
  return copy;
}
template <typename Change>
void change_global(Change change) {
  GlobalList& list = global_list();
  const std::lock_guard lock(list.mutex);
  change(list.blocks);
  list.version.fetch_add(1, std::memory_order_release);  // pairs with global_extents()
}

// What an address lies in, guards included.
struct Found {
  Space space;
  const std::string* name;
  size_t bytes;
  size_t offset;
};
std::optional<Found> find_shared(uintptr_t address) {
  const auto next = shared_blocks().upper_bound(address);
  if (next == shared_blocks().begin()) return std::nullopt;
  const auto& [begin, block] = *std::prev(next);
  if (address - begin >= block->bytes() + kGuardBytes) return std::nullopt;
  return Found{Space::kShared, &block->name(), block->bytes(), address - begin};
}
std::optional<Found> find_global(uintptr_t address) {
  const auto& list = global_extents();
  const auto next = list.upper_bound(address);
  if (next == list.begin()) return std::nullopt;
  const auto& [begin, extent] = *std::prev(next);
  if (address - begin >= extent.bytes + kGuardBytes) return std::nullopt;
  return Found{Space::kGlobal, &extent.name, extent.bytes, address - begin};
}

const char* space_name(Space space) { return space == Space::kShared ? "shared" : "global"; }

std::string described(Space space, const std::string& name, size_t bytes) {
  return std::string(space_name(space)) + " buffer '" + name + "' (" + std::to_string(bytes) +
         " bytes)";
}
std::string described(const Found& found) {
  return described(found.space, *found.name, found.bytes);
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
  const auto address = reinterpret_cast<uintptr_t>(data_);
  if (space_ == Space::kShared) {
    shared_blocks()[address] = this;
  } else {
    change_global([&](Blocks& list) { list[address] = this; });
  }
}

MemoryBlock::~MemoryBlock() {
  retire();
  allow(whole_, kGuardBytes + bytes_ + kGuardBytes);
  ::operator delete (whole_, std::align_val_t{kAlignment});
}

void MemoryBlock::retire() {
  if (retired_) return;
  retired_ = true;
  const auto address = reinterpret_cast<uintptr_t>(data_);
  if (space_ == Space::kShared) {
    shared_blocks().erase(address);
    return;
  }
  change_global([&](Blocks& list) { list.erase(address); });
  poison();
}

std::optional<std::string> MemoryBlock::damage() const {
  if constexpr (kAddressSanitizer) return std::nullopt;  // it stops at the write itself
  static const std::vector<std::byte> kWhole(kGuardBytes, kGuardByte);
  if (std::memcmp(whole_, kWhole.data(), kGuardBytes) == 0 &&
      std::memcmp(data_ + bytes_, kWhole.data(), kGuardBytes) == 0) {
    return std::nullopt;
  }
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (data_[bytes_ + i] != kGuardByte) {
      return described(space_, name_, bytes_) + " was written " + std::to_string(i) +
             " bytes beyond its end";
    }
    if (whole_[kGuardBytes - 1 - i] != kGuardByte) {
      return described(space_, name_, bytes_) + " was written " + std::to_string(i + 1) +
             " bytes before its begin";
    }
  }
  return std::nullopt;
}

std::optional<std::string> access_error(const void* at, size_t bytes, Space space) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  const bool shared = space == Space::kShared;
  auto found = shared ? find_shared(address) : find_global(address);
  if (!found) found = shared ? find_global(address) : find_shared(address);
  if (!found) {
    return "of an address that lies in no " + std::string(space_name(space)) + " buffer";
  }
  if (found->offset + bytes > found->bytes) {
    return "at byte " + std::to_string(found->offset) + " runs beyond the end of " +
           described(*found);
  }
  if (found->space != space) {
    return "wants " + std::string(space_name(space)) + " memory and got " + described(*found);
  }
  if (found->offset % bytes != 0) {
    return "at byte " + std::to_string(found->offset) + " of " + described(*found) +
           " is not aligned to its size";
  }
  return std::nullopt;
}

std::optional<std::string> range_error(const void* at, size_t bytes) {
  const auto found = find_global(reinterpret_cast<uintptr_t>(at));
  if (!found) return "of an address that lies in no global buffer";
  if (found->offset > found->bytes || bytes > found->bytes - found->offset) {
    return std::to_string(bytes) + " bytes at byte " + std::to_string(found->offset) +
           " run beyond the end of " + described(*found);
  }
  return std::nullopt;
}

std::optional<std::string> guard_damage() {
  for (const auto& [address, block] : shared_blocks()) {
    if (auto damage = block->damage()) return damage;
  }
  GlobalList& list = global_list();
  const std::lock_guard lock(list.mutex);  // no block goes away meanwhile
  for (const auto& [address, block] : list.blocks) {
    if (auto damage = block->damage()) return damage;
  }
  return std::nullopt;
}

std::vector<MemoryRange> global_memory() {
  GlobalList& list = global_list();
  const std::lock_guard lock(list.mutex);
  std::vector<MemoryRange> out;
  for (const auto& [address, block] : list.blocks) out.push_back({block->data(), block->bytes()});
  return out;
}

std::string place_in_global_memory(const void* at) {
  const auto found = find_global(reinterpret_cast<uintptr_t>(at));
  if (!found) return "an address that lies in no global buffer";
  return "byte " + std::to_string(found->offset) + " of " + described(*found);
}

}  // namespace updraft::simt
