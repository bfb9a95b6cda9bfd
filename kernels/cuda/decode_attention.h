// Attention of single rows over their sequence's pages: decode steps.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/kv_pages.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

// Positions that one block reads of a long sequence. Fixed: the order of additions, and with it
// every bit of a row's result, depends on the row's length alone.
inline constexpr int32_t kAttentionChunk = 1024;

struct DecodeAttention {
  KvPages pages;
  int32_t layer = 0;
  int32_t rows = 0;
  int32_t head_count = 0;   // a multiple of kv_head_count
  const Bf16* q = nullptr;  // [rows, q_stride], heads one after another
  int64_t q_stride = 0;     // elements, a multiple of 8
  const int32_t* lengths =
      nullptr;  // [rows] positions that a row sees, its own included; 0: a padded row, output zero
  const int32_t* sequences = nullptr;  // [rows] its line of the table
  const int32_t* table = nullptr;      // [.., table_stride] page of each page_tokens positions
  int32_t table_stride = 0;
  int32_t length_max = 0;  // at least the largest of lengths
  float scale = 0.0F;      // 1 / sqrt(head_dim)
  Bf16* out = nullptr;     // [rows, head_count * head_dim]
  std::byte* workspace =
      nullptr;  // decode_attention_workspace_bytes(); for length_max > kAttentionChunk
};

size_t decode_attention_workspace_bytes(int32_t rows, int32_t head_count, int32_t head_dim,
                                        int32_t length_max);

// Errors: a shape outside the above.
Result<void> run_decode_attention(const DecodeAttention& op, Stream stream);

}  // namespace updraft::cuda
