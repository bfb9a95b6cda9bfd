// The engine's batch, checked and turned into places, blocks and angles.
#include "kernels/cpu/step.h"

#include <algorithm>
#include <cmath>

#include "common/base/check.h"

namespace updraft {

void Step::reserve(int64_t rows_max) {
  const auto rows = static_cast<size_t>(rows_max);
  row_pages_.reserve(rows);
  row_slots_.reserve(rows);
  given_.reserve(rows);
  query_blocks_.reserve(rows);
}

void Step::begin(const Batch& batch, const KvShape& shape) {
  batch_ = batch;
  query_blocks_group_ = 0;
  angles_made_ = false;
  const auto rows = static_cast<int64_t>(batch.token_ids.size());
  UPDRAFT_CHECK(batch.positions.size() == batch.token_ids.size(), "one position per row");
  UPDRAFT_CHECK(
      batch.plane_positions.empty() || batch.plane_positions.size() == 2 * batch.token_ids.size(),
      "a height and a width per row");
  row_pages_.assign(static_cast<size_t>(rows), 0);
  row_slots_.assign(static_cast<size_t>(rows), 0);
  int64_t next = 0;
  for (const SequenceSlice& sequence : batch.sequences) {
    UPDRAFT_CHECK(sequence.row_first == next && sequence.row_count > 0,
                  "sequences cover the rows in order");
    next += sequence.row_count;
    const int64_t keys = static_cast<int64_t>(sequence.cached_count) + sequence.row_count;
    UPDRAFT_CHECK(next <= rows && sequence.cached_count >= 0, "a sequence inside the batch");
    UPDRAFT_CHECK(static_cast<int64_t>(sequence.pages.size()) * shape.page_tokens >= keys,
                  "pages for every position");
    for (const int32_t page : sequence.pages)
      UPDRAFT_CHECK(page >= 0 && page < shape.page_count, "a page of the pool");
    for (int32_t i = 0; i < sequence.row_count; ++i) {
      const int32_t position = sequence.cached_count + i;
      const auto row = static_cast<size_t>(sequence.row_first + i);
      row_pages_[row] = sequence.pages[static_cast<size_t>(position / shape.page_tokens)];
      row_slots_[row] = position % shape.page_tokens;
    }
  }
  UPDRAFT_CHECK(batch.sequences.empty() || next == rows, "sequences cover all rows");
  given_.clear();
  given_count_ = 0;
  if (!batch.given_rows.empty()) {
    for (const int32_t id : batch.token_ids) given_.push_back(id < 0 ? given_count_++ : -1);
  }
  for (const int32_t row : batch.logit_rows)
    UPDRAFT_CHECK(row >= 0 && row < rows, "a row of the batch");
}

std::span<const QueryBlock> Step::query_blocks(int group) {
  if (query_blocks_group_ == group) return query_blocks_;
  query_blocks_.clear();
  query_blocks_group_ = group;
  const int32_t rows_per_block = std::max(1, kQueriesPerBlock / group);
  for (size_t s = 0; s < batch_.sequences.size(); ++s) {
    const SequenceSlice& sequence = batch_.sequences[s];
    for (int32_t first = 0; first < sequence.row_count; first += rows_per_block) {
      query_blocks_.push_back({static_cast<int32_t>(s), sequence.row_first + first,
                               std::min(rows_per_block, sequence.row_count - first),
                               sequence.cached_count + first + 1});
    }
  }
  // The longest first, so that no thread begins one when the others are done.
  std::sort(query_blocks_.begin(), query_blocks_.end(),
            [](const QueryBlock& a, const QueryBlock& b) {
              const int64_t work_a = static_cast<int64_t>(a.first_key_count) * a.row_count;
              const int64_t work_b = static_cast<int64_t>(b.first_key_count) * b.row_count;
              return work_a != work_b ? work_a > work_b : a.row_first < b.row_first;
            });
  return query_blocks_;
}

void Step::prepare_angles(const Rope& rope, std::span<const float> inverse_frequency) {
  const bool same = angles_made_ && rope.inverse_frequency == rope_.inverse_frequency &&
                    rope.rope_dims == rope_.rope_dims && rope.magnitude == rope_.magnitude &&
                    rope.sections == rope_.sections;
  rope_ = rope;
  if (same) return;
  angles_made_ = true;
  const size_t pairs = inverse_frequency.size();
  const size_t rows = batch_.positions.size();
  cos_.resize(rows * pairs);
  sin_.resize(rows * pairs);
  const auto& sections = rope.sections;
  const int32_t sectioned = sections[0] + sections[1] + sections[2];
  UPDRAFT_CHECK(sectioned == 0 || sectioned == static_cast<int32_t>(pairs),
                "sections that are together all pairs");
  const bool planes = sectioned > 0 && !batch_.plane_positions.empty();
  for (size_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < pairs; ++i) {
      int32_t position = batch_.positions[row];
      const auto pair = static_cast<int32_t>(i);
      if (planes && pair >= sections[0]) {
        position = batch_.plane_positions[pair < sections[0] + sections[1] ? row : rows + row];
      }
      // In double: at position 30,000 a float angle would be off by 1e-3.
      const double angle =
          static_cast<double>(position) * static_cast<double>(inverse_frequency[i]);
      cos_[row * pairs + i] =
          static_cast<float>(std::cos(angle) * static_cast<double>(rope.magnitude));
      sin_[row * pairs + i] =
          static_cast<float>(std::sin(angle) * static_cast<double>(rope.magnitude));
    }
  }
}

RopeRow Step::angles_of(int64_t row) const {
  const int pairs = rope_.rope_dims / 2;
  return {cos_.data() + row * pairs, sin_.data() + row * pairs, pairs,
          rope_.style == RopeStyle::kInterleaved};
}

}  // namespace updraft
