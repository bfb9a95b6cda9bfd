// Matrices of several parts: checks, one allocation, packing by all threads.
#include "kernels/cpu/weights.h"

#include <algorithm>
#include <string>

#include "kernels/cpu/repack.h"
#include "kernels/cpu/tile_layout.h"

namespace updraft {
namespace {

Result<void> check_views(std::span<const WeightView> views) {
  if (views.empty()) return fail("matrix: no parts given");
  for (const WeightView& view : views) {
    const DTypeInfo& info = dtype_info(view.type);
    const std::string shape = std::string(info.name) + " part of " + std::to_string(view.rows) +
                              " x " + std::to_string(view.cols);
    if (view.empty() || view.rows <= 0 || view.cols <= 0) return fail("matrix: empty " + shape);
    if (view.cols != views[0].cols) {
      return fail("matrix: " + shape + " beside a part of " + std::to_string(views[0].cols) +
                  " columns");
    }
    if (view.cols % info.block_elems != 0) {
      return fail("matrix: " + shape + ", its blocks hold " + std::to_string(info.block_elems) +
                  " columns");
    }
  }
  return {};
}

}  // namespace

void Matrix::decode_row(int64_t row, std::span<float> out) const {
  for (const MatrixPart& part : parts) {
    if (row >= part.row_first + part.rows) continue;
    const int64_t in_part = row - part.row_first;
    const std::byte* tile = part.tiles + in_part / tile_rows * part.tile_stride_bytes;
    unpack_tile_row(tile, part.type, tile_rows, static_cast<int>(in_part % tile_rows), out);
    return;
  }
  UPDRAFT_CHECK(false, "a row of the matrix");
}

Result<Matrix> make_matrix(std::span<const WeightView> views, int tile_rows, bool decode,
                           ThreadPool& pool, MemoryBudget& budget) {
  if (Result<void> checked = check_views(views); !checked) return checked.error();
  Matrix matrix;
  matrix.cols = views[0].cols;
  matrix.tile_rows = tile_rows;
  int64_t bytes = 0;
  std::vector<int64_t> tile_firsts;  // number of tiles before each part
  int64_t tile_total = 0;
  for (const WeightView& view : views) {
    MatrixPart part;
    // No processor multiplies e4m3; bfloat16 has all its values, and scales up to a rounding.
    part.type = decode ? DType::kF32 : view.type == DType::kF8_E4M3 ? DType::kBF16 : view.type;
    part.row_first = matrix.rows;
    part.rows = view.rows;
    part.tile_count = (view.rows + tile_rows - 1) / tile_rows;
    part.tile_stride_bytes = tile_bytes(part.type, tile_rows, matrix.cols);
    matrix.parts.push_back(part);
    matrix.rows += view.rows;
    matrix.has_quantised = matrix.has_quantised || !is_float_format(part.type);
    bytes += part.tile_count * part.tile_stride_bytes;
    tile_firsts.push_back(tile_total);
    tile_total += part.tile_count;
  }
  const std::string what =
      "weights of " + std::to_string(matrix.rows) + " x " + std::to_string(matrix.cols);
  Result<HugeBuffer> memory = HugeBuffer::allocate(budget, static_cast<uint64_t>(bytes), what);
  if (!memory) return memory.error();
  matrix.memory = std::move(*memory);
  std::byte* next = matrix.memory.data();
  for (MatrixPart& part : matrix.parts) {
    part.tiles = next;
    next += part.tile_count * part.tile_stride_bytes;
  }
  constexpr int64_t kTilesPerItem = 8;
  pool.for_each((tile_total + kTilesPerItem - 1) / kTilesPerItem, [&](int64_t item, int) {
    const int64_t last = std::min(tile_total, (item + 1) * kTilesPerItem);
    for (int64_t tile = item * kTilesPerItem; tile < last; ++tile) {
      size_t p = matrix.parts.size() - 1;
      while (tile_firsts[p] > tile) --p;
      const MatrixPart& part = matrix.parts[p];
      const int64_t in_part = tile - tile_firsts[p];
      pack_tile(views[p], in_part * tile_rows, tile_rows, part.type,
                part.tiles + in_part * part.tile_stride_bytes);
    }
  });
  return matrix;
}

}  // namespace updraft
