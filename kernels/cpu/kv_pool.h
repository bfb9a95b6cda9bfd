// The pages of K and V (kv_layout.h). To everyone else a page is its number.
//
// The pool's memory is asked for at once and taken from the system as pages come into use, by all
// threads at the begin of a step: a large pool costs what was used of it, and no layer waits for
// one page fault after the other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/base/result.h"
#include "kernels/backend.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"

namespace updraft {

class KvPool {
 public:
  // Errors: a shape out of range, a type that pages cannot have, memory.
  static Result<KvPool> make(const KvShape& shape, MemoryBudget& budget);
  static uint64_t page_bytes(const KvShape& shape);  // over all layers
  KvPool() = default;

  const KvShape& shape() const { return shape_; }
  const KvLayout& layout() const { return layout_; }
  // Page 0 of a kv head in a layer; page p lies p * layout().page_stride further.
  std::byte* pages(int layer, int kv_head) const {
    const int64_t index = static_cast<int64_t>(layer) * shape_.kv_head_count + kv_head;
    return memory_.data() + index * layout_.page_bytes;
  }
  // Before `pages` are written: those of them that never were get their memory now.
  void take_memory(std::span<const int32_t> pages, ThreadPool& pool);
  void copy_page(int32_t from, int32_t to);

 private:
  KvShape shape_;
  KvLayout layout_;
  HugeBuffer memory_;
  std::vector<bool> unit_taken_;    // per kTakenUnit of memory
  std::vector<int64_t> new_units_;  // scratch of take_memory
};

}  // namespace updraft
