// The batch, checked and written down.
#include "kernels/cuda/step_metadata.h"

#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "kernels/cuda/sample.h"

namespace updraft::cuda {
StepShape StepShape::of(const Batch& batch, int32_t page_tokens, int32_t page_count) {
  StepShape out;
  out.rows = static_cast<int32_t>(batch.token_ids.size());
  out.rows_padded = out.rows;
  out.page_tokens = page_tokens;
  out.logit_rows = static_cast<int32_t>(batch.logit_rows.size());
  out.logit_rows_padded = out.logit_rows;
  out.samples = !batch.samplings.empty();
  UPDRAFT_CHECK(out.rows > 0, "a step has rows");
  UPDRAFT_CHECK(batch.positions.size() == batch.token_ids.size(), "one position per row");
  UPDRAFT_CHECK(
      batch.plane_positions.empty() || batch.plane_positions.size() == 2 * batch.token_ids.size(),
      "a height and a width per row");
  UPDRAFT_CHECK(batch.samplings.empty() || batch.samplings.size() == batch.logit_rows.size(),
                "one sampling per logit row");
  UPDRAFT_CHECK(batch.token_sources.empty() || batch.token_sources.size() == batch.token_ids.size(),
                "one token source per row");
  int32_t next = 0;
  for (const SequenceSlice& slice : batch.sequences) {
    UPDRAFT_CHECK(slice.row_first == next && slice.row_count > 0,
                  "sequences cover the rows in order");
    next += slice.row_count;
    const int32_t length = slice.cached_count + slice.row_count;
    UPDRAFT_CHECK(
        slice.cached_count >= 0 && static_cast<int64_t>(slice.pages.size()) * page_tokens >= length,
        "pages for every position");
    for (const int32_t page : slice.pages)
      UPDRAFT_CHECK(page >= 0 && page < page_count, "a page of the pool");
    // The engine may have taken pages for what comes later.
    out.table_entries += (length + page_tokens - 1) / page_tokens;
    UPDRAFT_CHECK(slice.answer_count >= 0 && slice.answer_count <= slice.row_count,
                  "an answer's rows are the slice's last");
    const int32_t prompt_rows = slice.row_count - slice.answer_count;
    if (prompt_rows > 0) {
      ++out.prefill_slices;
      out.prefill_rows_max = std::max(out.prefill_rows_max, prompt_rows);
      out.prefill_length_max = std::max(out.prefill_length_max, slice.cached_count + prompt_rows);
    }
    if (slice.answer_count > 0) {
      out.decode_rows += slice.answer_count;
      out.sequences_share = out.sequences_share || slice.row_count > 1;
      out.decode_length_max = std::max(out.decode_length_max, length);
    }
  }
  UPDRAFT_CHECK(next == out.rows, "sequences cover all rows");
  for (const int32_t row : batch.logit_rows)
    UPDRAFT_CHECK(row >= 0 && row < out.rows, "a logit row of the batch");
  out.given_rows = static_cast<int32_t>(std::count_if(
      batch.token_ids.begin(), batch.token_ids.end(), [](int32_t id) { return id < 0; }));
  out.takes_tokens = std::any_of(batch.token_sources.begin(), batch.token_sources.end(),
                                 [](int32_t source) { return source >= 0; });
  return out;
}

StepLayout StepLayout::of(const StepShape& shape) {
  StepLayout out;
  size_t at = 0;
  const auto part = [&](int64_t count, size_t bytes) {
    const size_t offset = at;
    at = (at + static_cast<size_t>(count) * bytes + 15) / 16 * 16;
    return offset;
  };
  const int64_t rows = shape.rows_padded;
  const int64_t logit_rows = shape.logit_rows_padded;
  out.token_ids = part(rows, sizeof(int32_t));
  out.token_sources = part(rows, sizeof(int32_t));
  out.positions = part(3 * rows, sizeof(int32_t));
  out.kv_positions = part(rows, sizeof(int32_t));
  out.lengths = part(rows, sizeof(int32_t));
  out.lines = part(rows, sizeof(int32_t));
  out.logit_rows = part(logit_rows, sizeof(int32_t));
  out.samplings = part(logit_rows, sizeof(SampleRow));
  out.slices = part(shape.prefill_slices, sizeof(PrefillSlice));
  out.table = part(shape.table_entries, sizeof(int32_t));
  out.bytes = at;
  return out;
}

void write_step(const Batch& batch, const StepShape& shape, const StepLayout& layout,
                std::span<std::byte> to) {
  UPDRAFT_CHECK(to.size() >= layout.bytes, "room for the step's metadata");
  const auto ints = [&](size_t offset) { return reinterpret_cast<int32_t*>(to.data() + offset); };
  const auto rows = static_cast<size_t>(shape.rows);
  const auto copy_rows = [&](size_t offset, std::span<const int32_t> values, int32_t otherwise) {
    int32_t* out = ints(offset);
    std::copy(values.begin(), values.end(), out);
    std::fill(out + values.size(), out + shape.rows_padded, otherwise);
  };
  copy_rows(layout.token_ids, batch.token_ids, -1);
  for (size_t row = 0; row < rows; ++row) {
    int32_t& id = ints(layout.token_ids)[row];
    if (id < 0) id = -1;
  }
  copy_rows(layout.token_sources, batch.token_sources, -1);
  // Always three: a captured step does not know whose rows come.
  copy_rows(layout.positions, batch.positions, 0);
  const size_t padded = static_cast<size_t>(shape.rows_padded) * sizeof(int32_t);
  for (size_t plane = 0; plane < 2; ++plane) {
    copy_rows(layout.positions + (plane + 1) * padded,
              batch.plane_positions.empty() ? batch.positions
                                            : batch.plane_positions.subspan(plane * rows, rows),
              0);
  }
  std::fill_n(ints(layout.kv_positions) + rows, shape.rows_padded - shape.rows, -1);
  std::fill_n(ints(layout.lengths) + rows, shape.rows_padded - shape.rows, 0);
  std::fill_n(ints(layout.lines) + rows, shape.rows_padded - shape.rows, 0);

  auto* slices = reinterpret_cast<PrefillSlice*>(to.data() + layout.slices);
  int32_t line = 0;
  for (const SequenceSlice& slice : batch.sequences) {
    const int32_t prompt_rows = slice.row_count - slice.answer_count;
    for (int32_t i = 0; i < slice.row_count; ++i) {
      const int32_t row = slice.row_first + i;
      ints(layout.kv_positions)[row] = slice.cached_count + i;
      ints(layout.lengths)[row] = i < prompt_rows ? -1 : slice.cached_count + i + 1;
      ints(layout.lines)[row] = line;
    }
    if (prompt_rows > 0) *slices++ = {slice.row_first, prompt_rows, slice.cached_count, line};
    const int32_t length = slice.cached_count + slice.row_count;
    const auto pages = static_cast<size_t>((length + shape.page_tokens - 1) / shape.page_tokens);
    std::copy_n(slice.pages.begin(), pages, ints(layout.table) + line);
    line += static_cast<int32_t>(pages);
  }
  UPDRAFT_CHECK(line == shape.table_entries, "the table that was counted");

  int32_t* logit_rows = ints(layout.logit_rows);
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), logit_rows);
  std::fill(logit_rows + shape.logit_rows, logit_rows + shape.logit_rows_padded, -1);
  if (!shape.samples) return;
  auto* samplings = reinterpret_cast<SampleRow*>(to.data() + layout.samplings);
  for (const RowSampling& how : batch.samplings) {
    *samplings++ = {how.temperature, how.min_p, how.top_p, how.top_k, how.uniform};
  }
  std::fill_n(samplings, shape.logit_rows_padded - shape.logit_rows, SampleRow{0, 0, 1, 0, 0});
}

}  // namespace updraft::cuda
