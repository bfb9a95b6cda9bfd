// Device code shared by the kernels that end with quantised rows: one scale per row, taken from the
// row alone, so that its bytes are the same in any batch. A row with a NaN or an infinity has a
// scale that is none either: its products are NaN, they don't pass for numbers.
#pragma once

#include "kernels/cuda/device.h"

namespace updraft::cuda {

constexpr float kInt8Largest = 127.0F;
constexpr float kFloat8Largest = 448.0F;

// |value| as bits: in the order of sizes, infinity above all numbers, NaN above infinity.
UPDRAFT_DEVICE uint32_t size_bits(float value) { return float_bits(value) & 0x7FFFFFFFU; }

UPDRAFT_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// The largest over a block of kWarps warps; `largest_of_warps` is shared and of no other use.
template <int kWarps>
UPDRAFT_DEVICE uint32_t block_largest(uint32_t largest, uint32_t* largest_of_warps) {
  UPDRAFT_UNROLL
  for (uint32_t step = 16; step > 0; step /= 2) {
    largest = larger(largest, shuffle_xor(largest, step));
  }
  if (thread_x() % 32 == 0) largest_of_warps[thread_x() / 32] = largest;
  sync_block();
  uint32_t out = largest_of_warps[0];
  UPDRAFT_UNROLL
  for (int w = 1; w < kWarps; ++w) out = larger(out, largest_of_warps[w]);
  return out;
}

// What a row is written as: exactly one of the three.
struct QuantizedRow {
  int8_t* int8;
  Float8* float8;
  Bf16* widened;  // the e4m3 values as bfloat16, which has them all
};

UPDRAFT_DEVICE float row_scale(uint32_t largest, bool int8) {
  return bits_float(largest) / (int8 ? kInt8Largest : kFloat8Largest);
}
// What values are multiplied by. Rows whose scale's inverse is no number become zeros: they are
// smaller than any sum could show.
UPDRAFT_DEVICE float inverse_scale(float scale) { return scale > 1e-36F ? 1.0F / scale : 0.0F; }

// Eight neighbours of a row, already multiplied by the inverse scale.
UPDRAFT_DEVICE void store_quantized(const QuantizedRow& out, int64_t at, const float* values) {
  if (out.widened != nullptr) {
    Vec16 bits;
    UPDRAFT_UNROLL
    for (int i = 0; i < 4; ++i) {
      bits.word[i] =
          pack_bf16(to_float(to_float8(values[2 * i])), to_float(to_float8(values[2 * i + 1])));
    }
    *reinterpret_cast<Vec16*>(out.widened + at) = bits;
    return;
  }
  Vec8 bytes = {{0, 0}};
  UPDRAFT_UNROLL
  for (int i = 0; i < 8; ++i) {
    const uint32_t byte = out.int8 != nullptr
                              ? static_cast<uint32_t>(round_to_int(values[i])) & 0xFFU
                              : static_cast<uint32_t>(to_float8(values[i]).bits);
    bytes.word[i / 4] |= byte << (8 * (i % 4));
  }
  std::byte* to = out.int8 != nullptr ? reinterpret_cast<std::byte*>(out.int8)
                                      : reinterpret_cast<std::byte*>(out.float8);
  store(reinterpret_cast<Vec8*>(to + at), bytes);
}

}  // namespace updraft::cuda
