// Moving pages: copies within the pool, and swap to and from host memory. A page lies together for
// all layers (kv_pages.h), so one move takes a sequence's positions whole.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

// For each i < count: page to_index[i] of `to` = page from_index[i] of `from`, in one launch. An
// index list that is null means 0, 1, 2, ..: without `to_index` scattered pages are gathered into a
// contiguous buffer, without `from_index` they are scattered from one. Either side may be pinned
// host memory that the device maps; a copy engine that shall do the crossing takes the contiguous
// buffer with one cudaMemcpyAsync, or each page with one of its own.
struct MovePages {
  const std::byte* from = nullptr;      // 16-byte aligned
  std::byte* to = nullptr;              // the same; no page moved to is one moved from
  int64_t page_bytes = 0;               // a multiple of 16
  const int32_t* from_index = nullptr;  // [count] on the device
  const int32_t* to_index = nullptr;    // [count] on the device
  int32_t count = 0;                    // 0 is fine
};
// Errors: a size outside the above, both lists missing.
Result<void> run_move_pages(const MovePages& op, Stream stream);

}  // namespace updraft::cuda
