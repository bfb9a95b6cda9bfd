// Attention of single rows over their sequence's pages, each with the length that it sees: the rows
// of answers. Drafts under test, and an answer that is computed again, are several rows of one
// sequence, given one by one: each has the bits that it has alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/kv_pages.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

// Positions that one block reads at a time. Fixed: the order of additions, and with it every bit of
// a row's result, depends on the row's length alone. Small enough that one sequence of 32K keeps
// all multiprocessors busy, large enough that its partial sums are no traffic to speak of.
inline constexpr int32_t kAttentionChunk = 256;

// What a step's rows have to read, chunk by chunk: made once per step, used by every layer, so that
// a launch whose grid a CUDA graph fixed does no more than the rows of the moment need.
struct DecodeWorkItem {
  int32_t row;
  int32_t first;   // position
  int32_t length;  // of the row
  int32_t line;    // of the table
};
struct DecodeWork {
  int32_t rows = 0;
  const int32_t* lengths =
      nullptr;  // [rows] positions that a row sees, its own included; 0: a padded row, output
                // zero; negative: a row of somebody else's, its output is not touched
  const int32_t* lines = nullptr;   // [rows] its line of the table; of padded rows never looked at
  int32_t length_max = 0;           // at least the largest of lengths
  int32_t* item_count = nullptr;    // out: [1]
  DecodeWorkItem* items = nullptr;  // out: [decode_work_items_max()]
};
int64_t decode_work_items_max(int32_t rows, int32_t length_max);
// Errors: no rows.
Result<void> run_decode_work(const DecodeWork& op, Stream stream);

struct DecodeAttention {
  KvPages pages;
  int32_t layer = 0;
  int32_t rows = 0;
  int32_t head_count = 0;  // a multiple of kv_head_count
  const Bf16* q =
      nullptr;           // [rows, q_stride], heads of head_dim one after another, 16-byte aligned
  int64_t q_stride = 0;  // elements, a multiple of 8
  const int32_t* lengths = nullptr;     // as in DecodeWork, and the same
  int32_t length_max = 0;               // as in DecodeWork
  const int32_t* item_count = nullptr;  // of run_decode_work()
  const DecodeWorkItem* items = nullptr;
  const int32_t* table = nullptr;  // [.., table_stride] page of each page_tokens positions
  int32_t table_stride = 0;
  // Of the device: they size the grid and change no bit.
  int32_t multiprocessor_count = 132;
  int32_t multiprocessor_shared_bytes = 228 << 10;
  float scale = 0.0F;   // 1 / sqrt(head_dim)
  Bf16* out = nullptr;  // [rows, head_count * head_dim]
  std::byte* workspace =
      nullptr;  // decode_attention_workspace_bytes(); for length_max > kAttentionChunk
  // decode_attention_counter_bytes(), zero before the first use and after each; null: rows of
  // several chunks always take a second kernel.
  uint32_t* counters = nullptr;
  // Or null, when run_prepare_qkv() has run: what it would be given, rows and all; its qkv is q. No
  // two rows are of one sequence, since none waits for another's key. q is left as it is.
  const PrepareQkv* prepare = nullptr;
};

size_t decode_attention_counter_bytes(int32_t rows, int32_t head_count);
size_t decode_attention_workspace_bytes(const KvPages& pages, int32_t rows, int32_t head_count,
                                        int32_t length_max);

// One kernel, or two where the longest row has many chunks. Errors: a shape outside the above.
Result<void> run_decode_attention(const DecodeAttention& op, Stream stream);

}  // namespace updraft::cuda
