// The memory of the KV pool: which bytes a page has, and when the system gives them.
#include "kernels/cpu/kv_pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "tests/kernels/cpu/harness.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

std::unique_ptr<ThreadPool> two_threads() {
  ThreadPool::Config config;
  config.thread_count = 2;
  return take(ThreadPool::open(config));
}

// Bytes of [at, at + bytes) that are in memory.
int64_t resident_bytes(const std::byte* at, int64_t bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const auto begin =
      reinterpret_cast<uintptr_t>(at) / static_cast<uintptr_t>(page) * static_cast<uintptr_t>(page);
  const int64_t length = at + bytes - reinterpret_cast<const std::byte*>(begin);
  std::vector<unsigned char> pages(static_cast<size_t>((length + page - 1) / page));
  REQUIRE(mincore(reinterpret_cast<void*>(begin), static_cast<size_t>(length), pages.data()) == 0);
  return page * std::count_if(pages.begin(), pages.end(), [](unsigned char p) { return p & 1; });
}

// Whether the system gives memory before its first touch at all (emulators say so and do not).
bool system_takes() {
  const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* probe = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(probe != MAP_FAILED);
  const bool takes = madvise(probe, bytes, MADV_POPULATE_WRITE) == 0 &&
                     resident_bytes(static_cast<const std::byte*>(probe), 1) > 0;
  munmap(probe, bytes);
  return takes;
}

}  // namespace

TEST_CASE("no two pages share a byte, and together they are the pool") {
  MemoryBudget budget(0);
  for (const DType type : {DType::kF16, DType::kQ8_0}) {
    const KvShape shape{3, 2, 40, 16, 5, type};
    const KvPool pool = take(KvPool::make(shape, budget));
    const int64_t bytes = pool.layout().page_bytes;
    std::vector<int64_t> begins;
    for (int layer = 0; layer < shape.layer_count; ++layer) {
      for (int head = 0; head < shape.kv_head_count; ++head) {
        for (int32_t page = 0; page < shape.page_count; ++page) {
          const std::byte* at = pool.pages(layer, head) + page * pool.layout().page_stride;
          begins.push_back(at - pool.pages(0, 0));
        }
      }
    }
    std::sort(begins.begin(), begins.end());
    for (size_t i = 0; i < begins.size(); ++i) CHECK(begins[i] == static_cast<int64_t>(i) * bytes);
    CHECK(static_cast<int64_t>(KvPool::page_bytes(shape)) * shape.page_count ==
          bytes * static_cast<int64_t>(begins.size()));
  }
}

TEST_CASE("pages have their memory before they are written, and unused ones have none") {
  if (!system_takes()) {
    MESSAGE("skipped: this system gives memory at its first touch only");
    return;
  }
  MemoryBudget budget(0);
  const std::unique_ptr<ThreadPool> threads = two_threads();
  // Pages of 448 KiB and of 6 MiB over all layers: less and more than a huge page.
  for (const KvShape& shape :
       {KvShape{7, 4, 64, 64, 200, DType::kF16}, KvShape{24, 8, 128, 64, 10, DType::kF16}}) {
    KvPool pool = take(KvPool::make(shape, budget));
    const std::byte* memory = pool.pages(0, 0);
    const int64_t page_bytes = pool.layout().page_stride;
    const int64_t all_bytes = page_bytes * shape.page_count;
    CHECK(resident_bytes(memory, all_bytes) == 0);
    const std::vector<int32_t> used{5, 5, 6, 2};
    pool.take_memory(used, *threads);
    for (const int32_t page : used)
      CHECK(resident_bytes(memory + page * page_bytes, page_bytes) >= page_bytes);
    // Up to a huge page more at both ends of each run of pages.
    CHECK(resident_bytes(memory, all_bytes) <= 3 * page_bytes + 4 * (2 << 20));
    CHECK(*pool.pages(1, 1) == std::byte{0});
  }
}
