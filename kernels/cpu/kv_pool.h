// The pages of K and V: one array of pages per layer, a page holding one part per kv head
// (kv_layout.h).
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
  int64_t page_stride_bytes() const {
    return layout_.part_bytes * shape_.kv_head_count;
  }  // within one layer
  // The part of one kv head in page 0 of a layer; page p lies p * page_stride_bytes() further.
  std::byte* part(int layer, int kv_head) const {
    return memory_.data() + layer * shape_.page_count * page_stride_bytes() +
           kv_head * layout_.part_bytes;
  }
  void copy_page(int32_t from, int32_t to);

 private:
  KvShape shape_;
  KvLayout layout_;
  HugeBuffer memory_;
};

}  // namespace updraft
