// Number formats of weights. Blocks and byte layouts are those of GGUF (ggml), so that a file's
// bytes are used as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace updraft {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  // Of no GGUF file: bytes with one f32 scale per row that is not part of the format
  // (WeightView::row_scales). What a device makes of float weights at load, what fp8 checkpoints
  // have, and what keys and values are kept in.
  kF8_E4M3,  // 1 sign, 4 exponent (bias 7), 3 fraction bits; no infinity, 0x7F and 0xFF are NaN
  kI8,       // a signed byte, -127..127
};
inline constexpr int kDTypeCount = 11;     // formats that a GGUF file may hold: the first ones
inline constexpr int kDTypeCountAll = 13;  // with those of no GGUF file

struct DTypeInfo {
  const char* name;     // "F32", "Q4_K", ... as GGUF tools print it
  uint32_t gguf_type;   // ggml type id in a GGUF tensor record
  int32_t block_elems;  // weights per block; a row holds a whole number of blocks
  int32_t block_bytes;
};

const DTypeInfo& dtype_info(DType type);

// The format of a ggml type id; nothing when Updraft does not read it.
std::optional<DType> dtype_from_gguf(uint32_t gguf_type);

// Bytes of one row of `cols` weights; cols is a multiple of block_elems.
int64_t row_bytes(DType type, int64_t cols);

// A matrix inside somebody else's memory (a mapped file), one output row after another: row r
// begins at data + r * row_bytes(type, cols). Any alignment. Valid as long as the file stays
// mapped.
struct WeightView {
  const std::byte* data = nullptr;
  DType type = DType::kF32;
  int64_t rows = 0;  // outputs
  int64_t cols = 0;  // inputs
  // [rows] of F8_E4M3: a weight is its byte's value times its row's scale; null: scales of one.
  const float* row_scales = nullptr;

  bool empty() const { return data == nullptr; }
};

// Rows [first, first + count) of it.
inline WeightView row_range(const WeightView& view, int64_t first, int64_t count) {
  WeightView out = view;
  out.data = view.data + first * row_bytes(view.type, view.cols);
  if (view.row_scales != nullptr) out.row_scales = view.row_scales + first;
  out.rows = count;
  return out;
}

}  // namespace updraft
