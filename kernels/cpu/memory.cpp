// Anonymous mappings, their alignment and their accounting (Linux).
#include "kernels/cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "kernels/cpu/numa.h"

namespace updraft {
namespace {

constexpr uint64_t kHugePage = uint64_t{2} << 20;

uint64_t round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

std::string mib(uint64_t bytes) {
  char text[48];
  std::snprintf(text, sizeof text, "%.1f MiB (%llu bytes)", static_cast<double>(bytes) / (1 << 20),
                static_cast<unsigned long long>(bytes));
  return text;
}

}  // namespace

uint64_t machine_memory_bytes() {
  const auto pages = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES));
  uint64_t total = pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  // Inside a container the root of the mounted hierarchy is the container's own group; "max" does
  // not parse.
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    uint64_t limit = 0;
    if (std::ifstream(path) >> limit && limit > 0 && limit < total) total = limit;
  }
  return total;
}

uint64_t available_memory_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  uint64_t kib = 0;
  while (meminfo >> key) {
    if (key == "MemAvailable:" && meminfo >> kib) return kib * 1024;
    meminfo.ignore(256, '\n');
  }
  return 0;
}

MemoryBudget::MemoryBudget(uint64_t limit_bytes, std::vector<int> numa_nodes)
    : limit_bytes_(limit_bytes != 0 ? limit_bytes : machine_memory_bytes()),
      numa_nodes_(std::move(numa_nodes)) {}

Result<HugeBuffer> HugeBuffer::allocate(MemoryBudget& budget, uint64_t bytes,
                                        const std::string& what) {
  HugeBuffer buffer;
  if (bytes == 0) return buffer;
  const uint64_t size = round_up(bytes, 4096);
  if (size > budget.limit_bytes_ || budget.used_bytes_ > budget.limit_bytes_ - size) {
    return fail(what + ": needs " + mib(size) + " beside the " + mib(budget.used_bytes_) +
                " already taken, the limit is " + mib(budget.limit_bytes_));
  }
  // The kernel overcommits: a mapping larger than what is free would succeed now and kill the
  // process later.
  const uint64_t available = size >= kHugePage ? available_memory_bytes() : 0;
  if (available != 0 && size > available) {
    return fail(what + ": needs " + mib(size) + ", this machine has " + mib(available) + " left");
  }
  const uint64_t alignment = size >= kHugePage ? kHugePage : 4096;
  const uint64_t reserved = size + (alignment > 4096 ? alignment : 0);
  void* mapping =
      mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) {
    return fail(what + ": needs " + mib(size) + ", the system refused it with " +
                mib(available_memory_bytes()) + " left");
  }
  // Give back what lies before the aligned start and behind the end.
  const auto begin = reinterpret_cast<uintptr_t>(mapping);
  const uintptr_t start = round_up(begin, alignment);
  if (start > begin) munmap(mapping, start - begin);
  if (begin + reserved > start + size) {
    munmap(reinterpret_cast<void*>(start + size), begin + reserved - (start + size));
  }
  buffer.budget_ = &budget;
  buffer.data_ = reinterpret_cast<std::byte*>(start);
  buffer.bytes_ = size;
  budget.used_bytes_ += size;
  if (size >= kHugePage) {
    madvise(buffer.data_, size, MADV_HUGEPAGE);  // a wish: without it, 4 KiB pages
    if (budget.numa_nodes_.size() > 1)
      (void)interleave_pages(buffer.data_, size, budget.numa_nodes_);  // a wish, too
  }
  return buffer;
}

void HugeBuffer::take(int64_t first_byte, int64_t bytes) const {
  const int64_t last = std::min(static_cast<int64_t>(bytes_), first_byte + bytes);
  if (first_byte >= last) return;
  // Linux 5.14 and later.
  (void)madvise(data_ + first_byte, static_cast<size_t>(last - first_byte), MADV_POPULATE_WRITE);
}

HugeBuffer& HugeBuffer::operator=(HugeBuffer&& other) noexcept {
  if (this != &other) {
    release();
    budget_ = std::exchange(other.budget_, nullptr);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

void HugeBuffer::release() {
  if (data_ == nullptr) return;
  munmap(data_, bytes_);
  budget_->used_bytes_ -= bytes_;
  data_ = nullptr;
}

}  // namespace updraft
