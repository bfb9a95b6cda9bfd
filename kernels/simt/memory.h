// Memory as kernels see it: blocks of exactly the size asked for, filled with 0xFF (a NaN in every
// float format, -1 in every integer), with guards on both sides. AddressSanitizer stops a plain
// access to a guard; without it a launch fails whose kernels wrote into one. What goes through the
// device functions (16-byte loads, cp.async, ldmatrix) is checked against the list of blocks in
// every build: bounds, alignment and which memory it is.
//
// Global memory is the process's: any thread may run kernels on what another made, as long as
// nobody frees it meanwhile. Shared memory is of the thread that runs the block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "common/base/check.h"

namespace updraft::simt {

enum class Space : uint8_t { kGlobal, kShared };

class MemoryBlock {
 public:
  // `name` is what reports call it. Aligned to 256 bytes, as cudaMalloc does.
  MemoryBlock(std::string name, Space space, size_t bytes);
  ~MemoryBlock();
  MemoryBlock(const MemoryBlock&) = delete;
  MemoryBlock& operator=(const MemoryBlock&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Space space() const { return space_; }
  const std::string& name() const { return name_; }
  void poison() { std::memset(data_, 0xFF, bytes_); }
  // Freed, as far as kernels are concerned: poisoned, and no block any more to who checks accesses.
  // The memory itself stays until the destructor, so that a stale pointer reads poison.
  void retire();
  // What happened to the guards, or nothing: "global buffer 'y' (64 bytes) was written 4 bytes
  // beyond its end".
  std::optional<std::string> damage() const;

 private:
  std::string name_;
  Space space_;
  size_t bytes_;
  std::byte* whole_;
  std::byte* data_;
  bool retired_ = false;
};

// Global memory of `count` elements.
template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer(std::string name, size_t count)
      : block_(std::move(name), Space::kGlobal, count * sizeof(T)), count_(count) {}
  Buffer(std::string name, std::span<const T> values) : Buffer(std::move(name), values.size()) {
    if (count_ != 0) std::memcpy(block_.data(), values.data(), values.size_bytes());
  }
  T* data() const { return reinterpret_cast<T*>(block_.data()); }
  size_t size() const { return count_; }
  std::span<T> span() const { return {data(), count_}; }
  T& operator[](size_t index) const {
    UPDRAFT_CHECK(index < count_, "an index within the buffer");
    return data()[index];
  }

 private:
  MemoryBlock block_;
  size_t count_;
};

// What is wrong with an access of `bytes` at `at`, which must be a multiple of `bytes` and lie
// within one block of `space`; nothing when it is in order.
std::optional<std::string> access_error(const void* at, size_t bytes, Space space);

// What is wrong with a copy of `bytes` from or to `at`: they must lie within one block of global
// memory, with any alignment.
std::optional<std::string> range_error(const void* at, size_t bytes);

// The damage of the first block whose guards were written.
std::optional<std::string> guard_damage();

// All blocks of global memory.
struct MemoryRange {
  std::byte* data;
  size_t bytes;
};
std::vector<MemoryRange> global_memory();
// "byte 12 of global buffer 'y' (64 bytes)".
std::string place_in_global_memory(const void* at);

}  // namespace updraft::simt
