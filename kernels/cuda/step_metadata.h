// What the kernels of a step are told of its rows, as one piece of memory that goes to the device
// in one copy: where each part lies in it, and its content made from the engine's batch.
//
// A sequence's pages lie one behind the other in `table`, a sequence's line is the index of its
// first: kernels take it as a table whose lines are one entry apart.
//
// A slice's rows of a prompt go through prefill attention together, be it a single one, those of an
// answer through decode attention one by one: which of the two a row takes, and so its bits, does
// not depend on how the engine cut the prompt or on what else is in the step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/backend.h"
#include "kernels/cuda/prefill_attention.h"

namespace updraft::cuda {

// Rows and logit rows are padded where a graph was captured for more of them.
struct StepShape {
  int32_t rows = 0;
  int32_t rows_padded = 0;
  int32_t logit_rows = 0;
  int32_t logit_rows_padded = 0;
  int32_t prefill_slices = 0;
  int32_t prefill_rows_max = 0;    // of the longest of them
  int32_t prefill_length_max = 0;  // positions that the last row of any of them sees
  int32_t decode_rows = 0;
  int32_t decode_length_max = 0;  // positions that any of them sees
  bool sequences_share = false;   // two of them are of one sequence: drafts under test
  int32_t given_rows = 0;
  int32_t table_entries = 0;
  int32_t page_tokens = 0;
  bool samples = false;
  bool takes_tokens = false;  // some row's token is one that the step before chose

  // Unpadded. A batch that cannot be is the engine's bug: pages beyond the pool, rows left out.
  static StepShape of(const Batch& batch, int32_t page_tokens, int32_t page_count);
};

// Byte offsets of the parts, each a multiple of 16; the table is last.
struct StepLayout {
  size_t token_ids = 0;      // [rows_padded] int32; -1: a padded row, or one that is given
  size_t token_sources = 0;  // [rows_padded] int32
  size_t positions = 0;      // [3, rows_padded] int32, rotary: time, height, width
  size_t kv_positions = 0;   // [rows_padded] int32; -1: a padded row
  size_t lengths = 0;        // [rows_padded] int32 as decode_attention.h wants them
  size_t lines = 0;          // [rows_padded] int32
  size_t logit_rows = 0;     // [logit_rows_padded] int32; -1: padded
  size_t samplings = 0;      // [logit_rows_padded] SampleRow
  size_t slices = 0;         // [prefill_slices] PrefillSlice
  size_t table = 0;          // [table_entries] int32
  size_t bytes = 0;

  static StepLayout of(const StepShape& shape);
};

// Writes it all; `to` has layout.bytes.
void write_step(const Batch& batch, const StepShape& shape, const StepLayout& layout,
                std::span<std::byte> to);

}  // namespace updraft::cuda
