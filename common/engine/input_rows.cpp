// See the header.
#include "common/engine/input_rows.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstring>

#include "common/base/check.h"
#include "kernels/quant/quant.h"

namespace updraft {
namespace {

constexpr size_t kPieceValues = 256;  // of 16 bits, copied before they are widened

void copy_halves(const std::byte* from, std::span<float> out, float (*widen)(uint16_t)) {
  std::array<uint16_t, kPieceValues> piece;
  for (size_t at = 0; at < out.size(); at += piece.size()) {
    const size_t count = std::min(piece.size(), out.size() - at);
    std::memcpy(piece.data(), from + at * sizeof(uint16_t), count * sizeof(uint16_t));
    for (size_t i = 0; i < count; ++i) out[at + i] = widen(piece[i]);
  }
}

// `from` may lie at any address.
void copy_row(EmbeddingRows::Type type, const std::byte* from, std::span<float> out) {
  switch (type) {
    case EmbeddingRows::Type::kF32:
      std::memcpy(out.data(), from, out.size_bytes());
      return;
    case EmbeddingRows::Type::kF16:
      return copy_halves(from, out, half_to_float);
    case EmbeddingRows::Type::kBF16:
      return copy_halves(from, out, bf16_to_float);
  }
}

// By the bits, so that no compiler flag can make it "always".
bool finite(float value) { return (std::bit_cast<uint32_t>(value) & 0x7F800000U) != 0x7F800000U; }

}  // namespace

std::optional<BadValue> copy_rows(const EmbeddingRows& rows, int32_t first, int32_t count,
                                  std::span<float> out) {
  const auto dim = static_cast<size_t>(rows.dim);
  UPDRAFT_CHECK(static_cast<int64_t>(rows.bytes.size()) == embedding_bytes(rows) && first >= 0 &&
                    count >= 0 && first + count <= rows.row_count,
                "the piece has the rows that are asked for");
  UPDRAFT_CHECK(out.size() == static_cast<size_t>(count) * dim, "room for the rows");
  const size_t row_bytes = dim * value_bytes(rows.type);
  for (int32_t i = 0; i < count; ++i) {
    const std::span<float> to = out.subspan(static_cast<size_t>(i) * dim, dim);
    copy_row(rows.type, rows.bytes.data() + static_cast<size_t>(first + i) * row_bytes, to);
    bool all = true;
    for (const float value : to) all &= finite(value);
    if (all) continue;
    const auto bad = std::find_if_not(to.begin(), to.end(), finite);
    const BadValue found{first + i, static_cast<int32_t>(bad - to.begin())};
    std::fill(to.begin(), out.end(), 0.0F);
    return found;
  }
  return std::nullopt;
}

}  // namespace updraft
