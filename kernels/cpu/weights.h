// A weight matrix of the CPU backend: its parts as tiles (tile_layout.h) in one huge-page buffer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/base/result.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/quant/dtype.h"

namespace updraft {

struct MatrixPart {
  DType type = DType::kF32;
  int64_t row_first = 0;  // in the matrix
  int64_t rows = 0;
  int64_t tile_count = 0;
  int64_t tile_stride_bytes = 0;
  std::byte* tiles = nullptr;
};

struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  int tile_rows = 0;
  bool has_quantised = false;  // some part takes int8 activations
  std::vector<MatrixPart> parts;
  HugeBuffer memory;

  // Decodes one row to f32, out.size() == cols.
  void decode_row(int64_t row, std::span<float> out) const;
};

// Repacks the views, several threads at a time. `decode`: keep f32 values whatever the format.
// Errors: no rows, different cols, cols that are no whole blocks, memory.
Result<Matrix> make_matrix(std::span<const WeightView> views, int tile_rows, bool decode,
                           ThreadPool& pool, MemoryBudget& budget);

}  // namespace updraft
