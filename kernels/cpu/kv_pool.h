// The pages of K and V: one array of pages per layer and kv head (kv_layout.h). To everyone else a
// page is its number.
#pragma once

#include <cstdint>

#include "common/base/result.h"
#include "kernels/backend.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/memory.h"

namespace updraft {

class KvPool {
 public:
  // Errors: a shape out of range, a type that pages cannot have, memory.
  static Result<KvPool> make(const KvShape& shape, MemoryBudget& budget);
  static uint64_t page_bytes(const KvShape& shape);  // over all layers
  KvPool() = default;

  const KvShape& shape() const { return shape_; }
  const KvLayout& layout() const { return layout_; }
  // Page 0 of a kv head in a layer; page p lies p * layout().page_bytes further.
  std::byte* pages(int layer, int kv_head) const {
    const int64_t index = static_cast<int64_t>(layer) * shape_.kv_head_count + kv_head;
    return memory_.data() + index * shape_.page_count * layout_.page_bytes;
  }
  void copy_page(int32_t from, int32_t to);

 private:
  KvShape shape_;
  KvLayout layout_;
  HugeBuffer memory_;
};

}  // namespace updraft
