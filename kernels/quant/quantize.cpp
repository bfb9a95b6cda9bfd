// The quantisers of the 32-weight formats and the entry point for all. These give ggml's bytes
// exactly, so the order of the float operations and the truncating roundings below are part of the
// format's definition, not a choice.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/base/check.h"
#include "kernels/quant/block_layout.h"
#include "kernels/quant/quantize_k.h"

namespace updraft {
namespace {

template <typename T>
void store_le(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

// Truncation to an integer in [0, limit]; NaN becomes 0, so that bad weights never become undefined
// behaviour. Without branches, like everything per weight here: the compiler makes vectors of it.
int truncate_to(float value, int limit) {
  const auto top = static_cast<float>(limit);
  const float positive = value > 0.0F ? value : 0.0F;
  return static_cast<int>(positive < top ? positive : top);
}

// Nearest integer in [-127, 127], halves away from zero; NaN becomes -127.
int round_to_byte(float value) {
  const float low = value > -127.0F ? value : -127.0F;
  const float clamped = low < 127.0F ? low : 127.0F;
  const int whole = static_cast<int>(clamped);
  const float rest = clamped - static_cast<float>(whole);  // exact
  return whole + (rest >= 0.5F ? 1 : 0) - (rest <= -0.5F ? 1 : 0);
}

float largest_magnitude(const float* x) {
  float lanes[8] = {};
  for (int i = 0; i < 32; i += 8) {
    for (int l = 0; l < 8; ++l) {
      const float magnitude = std::fabs(x[i + l]);
      lanes[l] = magnitude > lanes[l] ? magnitude : lanes[l];
    }
  }
  return *std::max_element(lanes, lanes + 8);
}

// The value of largest magnitude, with its sign; the first on ties.
float signed_peak(const float* x) {
  const float magnitude = largest_magnitude(x);
  if (magnitude == 0.0F) return 0.0F;
  return *std::find_if(x, x + 32, [&](float v) { return std::fabs(v) == magnitude; });
}

float inverse(float d) { return d != 0.0F ? 1.0F / d : 0.0F; }

// Two rows of 16 quants of 5 bits: nibbles into `qs`, fifth bits into `high`.
void store_quants(const int* q, std::byte* qs, std::byte* high) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) {
    qs[i] = static_cast<std::byte>((q[i] & 15) | ((q[i + 16] & 15) << 4));
    mask |= static_cast<uint32_t>(q[i] >> 4) << i;
    mask |= static_cast<uint32_t>(q[i + 16] >> 4) << (i + 16);
  }
  if (high != nullptr) store_le(high, mask);
}

void encode_q8_0(const float* x, std::byte* block) {
  const float d = largest_magnitude(x) / 127.0F;
  const float id = inverse(d);
  store_le(block, float_to_half(d));
  for (int i = 0; i < 32; ++i)
    block[kQ8_0Quants + i] = static_cast<std::byte>(round_to_byte(x[i] * id));
}

// y = d * (q - levels / 2): the peak maps to q = 0.
void encode_offset(const float* x, int levels, std::byte* block, std::byte* qs, std::byte* high) {
  const int half = levels / 2;
  const float d = signed_peak(x) / static_cast<float>(-half);
  const float id = inverse(d);
  store_le(block, float_to_half(d));
  int q[32];
  for (int i = 0; i < 32; ++i) {
    q[i] = truncate_to(x[i] * id + (static_cast<float>(half) + 0.5F), levels - 1);
  }
  store_quants(q, qs, high);
}

// y = d * q + m with m the least value.
void encode_min(const float* x, int levels, std::byte* block, std::byte* qs, std::byte* high) {
  const float low = *std::min_element(x, x + 32);
  const float top = *std::max_element(x, x + 32);
  const float d = (top - low) / static_cast<float>(levels - 1);
  const float id = inverse(d);
  store_le(block, float_to_half(d));
  store_le(block + 2, float_to_half(low));
  int q[32];
  for (int i = 0; i < 32; ++i) q[i] = truncate_to((x[i] - low) * id + 0.5F, levels - 1);
  store_quants(q, qs, high);
}

void encode_block(DType type, const float* x, std::byte* block) {
  switch (type) {
    case DType::kQ8_0:
      return encode_q8_0(x, block);
    case DType::kQ4_0:
      return encode_offset(x, 16, block, block + kQ4_0Quants, nullptr);
    case DType::kQ4_1:
      return encode_min(x, 16, block, block + kQ4_1Quants, nullptr);
    case DType::kQ5_0:
      return encode_offset(x, 32, block, block + kQ5_0Quants, block + kQ5_0High);
    case DType::kQ5_1:
      return encode_min(x, 32, block, block + kQ5_1Quants, block + kQ5_1High);
    case DType::kQ4_K:
      return encode_q4_k(x, block);
    case DType::kQ5_K:
      return encode_q5_k(x, block);
    case DType::kQ6_K:
      return encode_q6_k(x, block);
    default:
      UPDRAFT_CHECK(false, "a block format");
  }
}

}  // namespace

void quantize_row(DType type, std::span<const float> values, std::byte* dst) {
  const DTypeInfo& info = dtype_info(type);
  UPDRAFT_CHECK(values.size() % static_cast<size_t>(info.block_elems) == 0, "whole blocks");
  if (values.empty()) return;
  switch (type) {
    case DType::kF32:
      std::memcpy(dst, values.data(), values.size_bytes());
      return;
    case DType::kF16:
      for (size_t i = 0; i < values.size(); ++i) store_le(dst + 2 * i, float_to_half(values[i]));
      return;
    case DType::kBF16:
      for (size_t i = 0; i < values.size(); ++i) store_le(dst + 2 * i, float_to_bf16(values[i]));
      return;
    case DType::kF8_E4M3:
      for (size_t i = 0; i < values.size(); ++i) {
        dst[i] = static_cast<std::byte>(float_to_f8(values[i]));
      }
      return;
    case DType::kI8:
      for (size_t i = 0; i < values.size(); ++i) {
        const float rounded = std::nearbyint(values[i]);
        dst[i] = static_cast<std::byte>(static_cast<int8_t>(rounded < -127.0F  ? -127.0F
                                                            : rounded > 127.0F ? 127.0F
                                                                               : rounded));
      }
      return;
    default:
      break;
  }
  for (size_t at = 0; at < values.size(); at += info.block_elems, dst += info.block_bytes) {
    encode_block(type, values.data() + at, dst);
  }
}

}  // namespace updraft
