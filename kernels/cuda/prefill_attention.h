// Attention of a prompt's rows over its pages: whole or in chunks, down to single rows, behind a
// cached prefix or not.
//
// A row's bits depend on its position and on the keys and values up to it, not on how the prompt
// was cut, on what else is in the step, or on the device's size: whole prefill = chunked prefill =
// prefill behind a cached prefix. They are not the bits that decode_attention.h gives a row: there
// four warps share a row's positions, here a row is one warp's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/kv_pages.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

// Positions after which a row's sums are put aside and begun anew; the sums of the chunks are added
// in order. So a few rows far into a long context can be read by a block per chunk, with the bits
// that one block for all chunks gives.
inline constexpr int32_t kPrefillChunk = 2048;

struct PrefillSlice {
  int32_t row_first;     // its rows are [row_first, row_first + row_count) of q and out
  int32_t row_count;     // at least 1
  int32_t cached_count;  // positions before the first row's; the keys of all rows are in the pages
  int32_t line;          // of the table
};

struct PrefillAttention {
  KvPages pages;
  int32_t layer = 0;
  int32_t head_count = 0;  // a multiple of kv_head_count
  const Bf16* q =
      nullptr;           // [rows, q_stride], heads of head_dim one after another, 16-byte aligned
  int64_t q_stride = 0;  // elements, a multiple of 8
  const PrefillSlice* slices = nullptr;  // [slice_count] on the device
  int32_t slice_count = 0;
  int32_t row_count_max = 0;       // at least the largest row_count
  int32_t length_max = 0;          // at least the largest cached_count + row_count
  const int32_t* table = nullptr;  // [.., table_stride] page of each page_tokens positions
  int32_t table_stride = 0;
  int32_t multiprocessor_count = 132;  // of the device: sizes the grid, changes no bit
  float scale = 0.0F;                  // 1 / sqrt(head_dim)
  Bf16* out = nullptr;                 // [rows, head_count * head_dim]; other rows stay untouched
  // bfloat16 pages: by the kernel for capability 9.0, whose bits are its own. For all prefills of a
  // device or for none.
  bool warpgroup = false;
  std::byte* workspace =
      nullptr;  // prefill_attention_workspace_bytes(); for length_max > kPrefillChunk
};

// Enough for every step up to length_max; at most 64 MiB and what the resident blocks put aside.
size_t prefill_attention_workspace_bytes(const KvPages& pages, int32_t multiprocessor_count,
                                         int32_t length_max);

// Errors: a shape outside the above.
Result<void> run_prefill_attention(const PrefillAttention& op, Stream stream);

}  // namespace updraft::cuda
