// The bytes of GGUF blocks on one side, the interleaved tiles on the other.
#include "kernels/cpu/repack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/base/check.h"
#include "kernels/cpu/tile_layout.h"
#include "kernels/quant/block_layout.h"

namespace updraft {
namespace {

template <typename T>
void store_le(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

// One row's place in a tile of a quantised format. Blocks are those of 32 columns.
struct RowPlace {
  std::byte* tile;
  TileFormat format;
  int tile_rows;
  int row;

  // This row's field of field_bytes bytes in the header of the block's group; the fields of all
  // rows begin bytes_before bytes per row behind the header's begin.
  std::byte* header(int64_t block, int bytes_before, int field_bytes) const {
    return tile + tile_header_offset(format, tile_rows, block) + bytes_before * tile_rows +
           row * field_bytes;
  }
  // This row's words in a block: its 4 bytes in each byte vector.
  struct Words {
    std::byte* first;
    int step;
    std::byte* operator[](int vector) const { return first + vector * step; }
  };
  Words words(int64_t block) const {
    return {tile + tile_quants_offset(format, tile_rows, block) + 4 * row, 4 * tile_rows};
  }
};

// Bits j, j+4, j+8, .. of `mask` (one per group of four columns) as one byte.
uint8_t every_fourth_bit(uint32_t mask, int j) {
  uint32_t x = (mask >> j) & 0x11111111U;
  x = (x | x >> 3) & 0x03030303U;
  x = (x | x >> 6) & 0x000F000FU;
  return static_cast<uint8_t>(x | x >> 12);
}

// The fifth bits of 32 quants as a byte vector's word.
uint32_t fifth_bits_word(uint32_t mask) {
  uint32_t word = 0;
  for (int j = 0; j < 4; ++j) word |= static_cast<uint32_t>(every_fourth_bit(mask, j)) << (8 * j);
  return word;
}

// ggml keeps columns i and i + 16 of a block of 32 in one byte: the pairing the tiles use, so whole
// words move.
void place_nibbles(const std::byte* qs, const RowPlace::Words& words) {
  for (int i = 0; i < 4; ++i) std::memcpy(words[i], qs + 4 * i, 4);
}

// 32 unsigned quants of 4 to 6 bits into nibbles and high bits.
void place_quants(const uint8_t* q, const RowPlace& place, int64_t block, DType type) {
  const RowPlace::Words words = place.words(block);
  for (int i = 0; i < 4; ++i) {
    const auto low = load_le<uint32_t>(q + 4 * i);
    const auto high = load_le<uint32_t>(q + 16 + 4 * i);
    store_le(words[i], (low & 0x0F0F0F0FU) | (high & 0x0F0F0F0FU) << 4);
  }
  if (type == DType::kQ5_K) {
    uint32_t word = 0;
    for (int g = 0; g < 8; ++g) word |= ((load_le<uint32_t>(q + 4 * g) >> 4) & 0x01010101U) << g;
    store_le(words[4], word);
  }
  if (type == DType::kQ6_K) {
    for (int half = 0; half < 2; ++half) {
      uint32_t word = 0;
      for (int g = 0; g < 4; ++g) {
        word |= ((load_le<uint32_t>(q + 16 * half + 4 * g) >> 4) & 0x03030303U) << (2 * g);
      }
      store_le(words[4 + half], word);
    }
  }
}

// A block of 32 weights of the classic formats.
void place_block(DType type, const std::byte* src, const RowPlace& place, int64_t block) {
  const auto s = static_cast<int>(block % place.format.group_blocks);
  std::memcpy(place.header(block, 2 * s, 2), src, 2);
  if (type == DType::kQ4_1 || type == DType::kQ5_1)
    std::memcpy(place.header(block, 2, 2), src + 2, 2);
  const RowPlace::Words words = place.words(block);
  switch (type) {
    case DType::kQ8_0:
      for (int g = 0; g < 8; ++g) std::memcpy(words[g], src + kQ8_0Quants + 4 * g, 4);
      return;
    case DType::kQ4_0:
      return place_nibbles(src + kQ4_0Quants, words);
    case DType::kQ4_1:
      return place_nibbles(src + kQ4_1Quants, words);
    case DType::kQ5_0:
      place_nibbles(src + kQ5_0Quants, words);
      store_le(words[4], fifth_bits_word(load_le<uint32_t>(src + kQ5_0High)));
      return;
    case DType::kQ5_1:
      place_nibbles(src + kQ5_1Quants, words);
      store_le(words[4], fifth_bits_word(load_le<uint32_t>(src + kQ5_1High)));
      return;
    default:
      UPDRAFT_CHECK(false, "a format of 32-weight blocks");
  }
}

// A superblock of 256 weights of the K formats.
void place_super_block(DType type, const std::byte* src, const RowPlace& place, int64_t index) {
  const int64_t first = 8 * index;
  uint8_t q[kBlockCols];
  if (type == DType::kQ6_K) {
    std::memcpy(place.header(first, 0, 2), src + kQ6KD, 2);
    for (int s = 0; s < 16; ++s) *place.header(first, 2 + s, 1) = src[kQ6KScales + s];
    for (int s = 0; s < 8; ++s) {
      unpack_q6_k(src, s, q);
      place_quants(q, place, first + s, type);
    }
    return;
  }
  std::memcpy(place.header(first, 0, 2), src, 2);
  std::memcpy(place.header(first, 2, 2), src + 2, 2);
  for (int s = 0; s < 8; ++s) {
    const ScaleMin sm = unpack_scale_min(src + kKScales, s);
    *place.header(first, 4 + 2 * s, 1) = static_cast<std::byte>(sm.scale);
    *place.header(first, 5 + 2 * s, 1) = static_cast<std::byte>(sm.min);
    if (type == DType::kQ4_K) {
      unpack_q4_k(src, s, q);
    } else {
      unpack_q5_k(src, s, q);
    }
    place_quants(q, place, first + s, type);
  }
}

// A float row (2 or 4 bytes per weight) into its lane.
void place_values(const std::byte* src, int64_t cols, const RowPlace& place) {
  const int value_bytes = place.format.quant_bytes_per_row;
  std::byte* to = place.tile + place.row * value_bytes;
  const int64_t step = static_cast<int64_t>(place.tile_rows) * value_bytes;
  for (int64_t c = 0; c < cols; ++c)
    std::memcpy(to + c * step, src + c * value_bytes, static_cast<size_t>(value_bytes));
}

// Where a row's bits are when a tile is read back; as RowPlace.
struct RowReader {
  const std::byte* tile;
  TileFormat format;
  int tile_rows;
  int row;

  const std::byte* header(int64_t block, int bytes_before) const {
    return tile + tile_header_offset(format, tile_rows, block) + bytes_before * tile_rows;
  }
  float half(int64_t block, int bytes_before) const {
    return load_half(header(block, bytes_before) + 2 * row);
  }
  uint8_t byte(int64_t block, int bytes_before) const {
    return byte_at(header(block, bytes_before), row);
  }
  // The word of byte vector 0 of a block; the next vectors follow at 4 * tile_rows bytes each.
  const std::byte* quants(int64_t block) const {
    return tile + tile_quants_offset(format, tile_rows, block) + 4 * row;
  }
};

// The 32 quants of a block as the kernels see them: unsigned, or signed bytes for Q8_0.
void read_quants(const RowReader& reader, DType type, int64_t block, int* q) {
  const std::byte* quants = reader.quants(block);
  const auto byte = [&](int vector, int j) {
    return byte_at(quants, vector * 4 * reader.tile_rows + j);
  };
  for (int c = 0; c < kBlockCols; ++c) {
    const int group = c / 4;
    const int j = c % 4;
    if (type == DType::kQ8_0) {
      q[c] = static_cast<int8_t>(byte(group, j));
      continue;
    }
    const int both = byte(group & 3, j);
    q[c] = group < 4 ? both & 15 : both >> 4;
    if (type == DType::kQ6_K) {
      q[c] |= ((byte(4 + group / 4, j) >> (2 * (group & 3))) & 3) << 4;
    } else if (reader.format.quant_bytes_per_row == 20) {
      q[c] |= ((byte(4, j) >> group) & 1) << 4;
    }
  }
}

// y = scale * (q - offset) + add, with the operations in dequantize_row's order. Adding -0 changes
// nothing, not even -0.
void decode_block(const RowReader& reader, DType type, int64_t block, float* out) {
  int q[kBlockCols];
  read_quants(reader, type, block, q);
  const int s = static_cast<int>(block % reader.format.group_blocks);
  const auto fill = [&](float scale, int offset, float add, int first, int last) {
    for (int c = first; c < last; ++c) out[c] = scale * static_cast<float>(q[c] - offset) + add;
  };
  switch (type) {
    case DType::kQ8_0:
      return fill(reader.half(block, 2 * s), 0, -0.0F, 0, 32);
    case DType::kQ4_0:
      return fill(reader.half(block, 2 * s), 8, -0.0F, 0, 32);
    case DType::kQ5_0:
      return fill(reader.half(block, 2 * s), 16, -0.0F, 0, 32);
    case DType::kQ4_1:
    case DType::kQ5_1:
      return fill(reader.half(block, 0), 0, reader.half(block, 2), 0, 32);
    case DType::kQ4_K:
    case DType::kQ5_K: {
      const float scale = reader.half(block, 0) * static_cast<float>(reader.byte(block, 4 + 2 * s));
      const float min = reader.half(block, 2) * static_cast<float>(reader.byte(block, 5 + 2 * s));
      return fill(scale, 0, -min, 0, 32);
    }
    case DType::kQ6_K:
      for (int half = 0; half < 2; ++half) {
        const auto scale = static_cast<int8_t>(reader.byte(block, 2 + 2 * s + half));
        fill(reader.half(block, 0) * static_cast<float>(scale), 32, -0.0F, 16 * half,
             16 * half + 16);
      }
      return;
    default:
      UPDRAFT_CHECK(false, "a block format");
  }
}

}  // namespace

void pack_tile(const WeightView& source, int64_t row_first, int tile_rows, DType type,
               std::byte* tile) {
  UPDRAFT_CHECK(type == source.type || type == DType::kF32 ||
                    (type == DType::kBF16 && source.type == DType::kF8_E4M3),
                "same format, or decoded");
  const int64_t source_row_bytes = row_bytes(source.type, source.cols);
  const int64_t rows = std::min<int64_t>(tile_rows, source.rows - row_first);
  std::vector<float> decoded(type != source.type ? static_cast<size_t>(source.cols) : 0);
  std::vector<std::byte> rounded(2 * decoded.size());
  for (int row = 0; row < rows; ++row) {
    const std::byte* src = source.data + (row_first + row) * source_row_bytes;
    const RowPlace place{tile, tile_format(type), tile_rows, row};
    if (is_float_format(type)) {
      if (type != source.type) {
        dequantize_row(source, row_first + row, decoded);
        if (type == DType::kBF16) quantize_row(type, decoded, rounded.data());
        src = type == DType::kBF16 ? rounded.data()
                                   : reinterpret_cast<const std::byte*>(decoded.data());
      }
      place_values(src, source.cols, place);
      continue;
    }
    const DTypeInfo& info = dtype_info(type);
    const int64_t blocks = source.cols / info.block_elems;
    for (int64_t b = 0; b < blocks; ++b, src += info.block_bytes) {
      if (info.block_elems == kSuperBlockCols) {
        place_super_block(type, src, place, b);
      } else {
        place_block(type, src, place, b);
      }
    }
  }
}

void unpack_tile_row(const std::byte* tile, DType type, int tile_rows, int row_in_tile,
                     std::span<float> out) {
  const auto cols = static_cast<int64_t>(out.size());
  const RowReader reader{tile, tile_format(type), tile_rows, row_in_tile};
  if (!is_float_format(type)) {
    for (int64_t b = 0; b < cols / kBlockCols; ++b)
      decode_block(reader, type, b, out.data() + b * kBlockCols);
    return;
  }
  const int value_bytes = reader.format.quant_bytes_per_row;
  for (int64_t c = 0; c < cols; ++c) {
    const std::byte* at = tile + (c * tile_rows + row_in_tile) * value_bytes;
    dequantize_row(type, at, {out.data() + c, 1});
  }
}

}  // namespace updraft
