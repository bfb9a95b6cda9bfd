// Rows of a prompt whose inputs are given: from where a client left them (which may be its own
// memory, still writable) to f32 in the engine's.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "common/message/request.h"

namespace updraft {

// In a prompt, the id of a position whose input is given: of no token.
inline constexpr int32_t kNoToken = -1;

// The positions [first, first + rows.row_count) of a prompt.
struct InputRows {
  int32_t first = 0;
  EmbeddingRows rows;  // rows.bytes has embedding_bytes(rows) bytes
  int32_t end() const { return first + rows.row_count; }
};

struct BadValue {
  int32_t row = 0;  // of all of the piece
  int32_t column = 0;
};

// Rows [first, first + count) of the piece as f32 into `out` [count, dim]. Each value is judged
// after it was copied, never before, so what is in `out` is finite whatever happens to the source
// meanwhile. The first value that is not, if any; `out` is then zeros from its row on.
std::optional<BadValue> copy_rows(const EmbeddingRows& rows, int32_t first, int32_t count,
                                  std::span<float> out);

}  // namespace updraft
