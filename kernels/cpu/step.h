// What the CPU backend works out once per step from the batch: where each row's K and V go, the
// pieces of attention, the rotation angles. Owner: the thread that calls the backend.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/kernels.h"

namespace updraft {

// Consecutive rows of one sequence whose queries are attended together.
struct QueryBlock {
  int32_t sequence = 0;
  int32_t row_first = 0;  // in the batch
  int32_t row_count = 0;
  int32_t first_key_count = 0;
};

// Most queries of one kv head per block: their state stays in the second-level cache, and the last
// block of a sequence is not much more work than the others.
inline constexpr int kQueriesPerBlock = 64;

class Step {
 public:
  void reserve(int64_t rows_max);
  // Checks the batch against the pool's shape; a batch that does not fit is the engine's bug.
  void begin(const Batch& batch, const KvShape& shape);

  const Batch& batch() const { return batch_; }
  int64_t row_count() const { return static_cast<int64_t>(batch_.token_ids.size()); }
  std::span<const int32_t> row_pages() const { return row_pages_; }  // where the rows' K and V go
  int32_t row_page(int64_t row) const { return row_pages_[static_cast<size_t>(row)]; }
  int32_t row_slot(int64_t row) const { return row_slots_[static_cast<size_t>(row)]; }
  // Which of the batch's given rows is the row's input; -1: its token is.
  int32_t given_index(int64_t row) const {
    return given_count_ == 0 ? -1 : given_[static_cast<size_t>(row)];
  }
  int32_t given_count() const { return given_count_; }

  // The blocks for `group` query heads per kv head, last rows (most keys) first.
  std::span<const QueryBlock> query_blocks(int group);

  // Angles of all rows for this rotation; computed at its first use in the step.
  void prepare_angles(const Rope& rope, std::span<const float> inverse_frequency);
  RopeRow angles_of(int64_t row) const;

 private:
  Batch batch_;
  std::vector<int32_t> row_pages_;
  std::vector<int32_t> row_slots_;
  std::vector<int32_t> given_;  // [rows] as given_index(); not filled when no row is given
  int32_t given_count_ = 0;
  std::vector<QueryBlock> query_blocks_;
  int query_blocks_group_ = 0;  // 0: not made in this step
  Rope rope_;
  bool angles_made_ = false;
  std::vector<float> cos_;  // [rows, pairs]
  std::vector<float> sin_;
};

}  // namespace updraft
