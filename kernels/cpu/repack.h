// From a file's rows to tiles (tile_layout.h), and back to one row of f32 for embeddings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/quant/dtype.h"

namespace updraft {

// Writes one tile: rows [row_first, row_first + tile_rows) of `source` as `type`, which is
// source.type, kF32 (decoded) or, of F8_E4M3, kBF16. Rows beyond the matrix become zeros. `tile`
// holds tile_bytes(type, tile_rows, source.cols) zeroed bytes.
void pack_tile(const WeightView& source, int64_t row_first, int tile_rows, DType type,
               std::byte* tile);

// Decodes row `row_in_tile` of a tile to f32; the values are those of dequantize_row.
void unpack_tile_row(const std::byte* tile, DType type, int tile_rows, int row_in_tile,
                     std::span<float> out);

}  // namespace updraft
