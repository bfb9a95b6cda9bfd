// Memory of the CPU backend: anonymous mappings on huge pages where the OS allows, counted against
// one limit. Everything large (weights, KV pages, activations) comes from here, so the counters are
// true.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/base/result.h"

namespace updraft {

// Bytes of memory of this machine or, if smaller, of the control group that this process is in.
uint64_t machine_memory_bytes();
// What the kernel says can still be had without swapping; 0 when unknown.
uint64_t available_memory_bytes();

class MemoryBudget {
 public:
  // limit_bytes 0: the machine's memory. Large buffers are spread over numa_nodes (numa.h) when
  // there are several.
  explicit MemoryBudget(uint64_t limit_bytes, std::vector<int> numa_nodes = {});
  uint64_t limit_bytes() const { return limit_bytes_; }
  uint64_t used_bytes() const { return used_bytes_; }

 private:
  friend class HugeBuffer;
  uint64_t limit_bytes_;
  uint64_t used_bytes_ = 0;
  std::vector<int> numa_nodes_;
};

// A zeroed mapping, at least 64-byte aligned (2 MiB aligned from 2 MiB on). Gives its bytes back to
// its budget.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  // `what` names the use in the error: "weights", "KV pages". Errors give the bytes needed and the
  // bytes allowed.
  static Result<HugeBuffer> allocate(MemoryBudget& budget, uint64_t bytes, const std::string& what);
  ~HugeBuffer() { release(); }
  HugeBuffer(HugeBuffer&& other) noexcept { *this = std::move(other); }
  HugeBuffer& operator=(HugeBuffer&& other) noexcept;
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;

  // Takes these bytes, as far as the buffer has them, from the system now instead of page by page
  // at their first touch. A wish: systems that do not know it take them then. first_byte is a
  // multiple of 4096. Any thread.
  void take(int64_t first_byte, int64_t bytes) const;

  std::byte* data() const { return data_; }
  uint64_t size_bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void release();

  MemoryBudget* budget_ = nullptr;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace updraft
