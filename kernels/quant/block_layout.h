// Byte offsets and bit fields of the GGUF blocks, shared by the decoder, the quantisers and the
// CPU's repacking: one place that knows where a scale or a quant lies. Layouts: ggml's block
// structures as the GGUF format fixes them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/base/bytes.h"
#include "kernels/quant/quant.h"

namespace updraft {

// A superblock of the K formats: 256 weights in 8 sub-blocks of 32 (Q4_K, Q5_K) or 16 of 16 (Q6_K).
inline constexpr int kSuperBlock = 256;

// Byte offsets. Q4_0/Q8_0: d at 0, quants after it. Q4_1/Q5_1: m follows d.
inline constexpr int kQ4_0Quants = 2;
inline constexpr int kQ4_1Quants = 4;
inline constexpr int kQ5_0High = 2;
inline constexpr int kQ5_0Quants = 6;
inline constexpr int kQ5_1High = 4;
inline constexpr int kQ5_1Quants = 8;
inline constexpr int kQ8_0Quants = 2;
inline constexpr int kKScales = 4;  // Q4_K, Q5_K: d, dmin, then 12 bytes of 6-bit scales and mins
inline constexpr int kQ4KQuants = 16;
inline constexpr int kQ5KHigh = 16;
inline constexpr int kQ5KQuants = 48;
inline constexpr int kQ6KHigh = 128;  // the low nibbles are at 0
inline constexpr int kQ6KScales = 192;
inline constexpr int kQ6KD = 208;

inline float load_half(const std::byte* at) { return half_to_float(load_le<uint16_t>(at)); }
inline uint8_t byte_at(const std::byte* at, int index) { return static_cast<uint8_t>(at[index]); }

struct ScaleMin {
  uint8_t scale;  // 6 bits
  uint8_t min;    // 6 bits
};

// Scale and min of sub-block `index` (0..7) from the 12 packed bytes of a Q4_K or Q5_K superblock.
inline ScaleMin unpack_scale_min(const std::byte* packed, int index) {
  if (index < 4) {
    return {static_cast<uint8_t>(byte_at(packed, index) & 63),
            static_cast<uint8_t>(byte_at(packed, index + 4) & 63)};
  }
  const uint8_t both = byte_at(packed, index + 4);
  return {static_cast<uint8_t>((both & 15) | ((byte_at(packed, index - 4) >> 6) << 4)),
          static_cast<uint8_t>((both >> 4) | ((byte_at(packed, index) >> 6) << 4))};
}

// The reverse for all 8 sub-blocks: 6-bit scales and mins into the 12 bytes.
inline void pack_scale_mins(const uint8_t* scale, const uint8_t* min, std::byte* packed) {
  for (int s = 0; s < 4; ++s) {
    packed[s] = static_cast<std::byte>(scale[s] | ((scale[s + 4] >> 4) << 6));
    packed[s + 4] = static_cast<std::byte>(min[s] | ((min[s + 4] >> 4) << 6));
    packed[s + 8] = static_cast<std::byte>((scale[s + 4] & 15) | ((min[s + 4] & 15) << 4));
  }
}

// The 32 unsigned quants of sub-block `index` (0..7) of a superblock; for Q6_K without the offset
// of 32 removed.
inline void unpack_q4_k(const std::byte* block, int index, uint8_t* q) {
  const std::byte* chunk = block + kQ4KQuants + 32 * (index / 2);
  const int shift = 4 * (index & 1);
  for (int i = 0; i < 32; ++i) q[i] = static_cast<uint8_t>((byte_at(chunk, i) >> shift) & 15);
}
inline void unpack_q5_k(const std::byte* block, int index, uint8_t* q) {
  const std::byte* chunk = block + kQ5KQuants + 32 * (index / 2);
  const std::byte* high = block + kQ5KHigh;
  const int shift = 4 * (index & 1);
  for (int i = 0; i < 32; ++i) {
    const int top = (byte_at(high, i) >> index) & 1;
    q[i] = static_cast<uint8_t>(((byte_at(chunk, i) >> shift) & 15) | (top << 4));
  }
}
inline void unpack_q6_k(const std::byte* block, int index, uint8_t* q) {
  const int half = index / 4;     // 128 weights each
  const int quarter = index & 3;  // 32 weights each
  const std::byte* low = block + 64 * half + 32 * (quarter & 1);
  const std::byte* high = block + kQ6KHigh + 32 * half;
  const int low_shift = 4 * (quarter / 2);
  const int high_shift = 2 * quarter;
  for (int i = 0; i < 32; ++i) {
    const int top = (byte_at(high, i) >> high_shift) & 3;
    q[i] = static_cast<uint8_t>(((byte_at(low, i) >> low_shift) & 15) | (top << 4));
  }
}

}  // namespace updraft
