// Exact decoding of every weight format to f32, one block at a time. Value formulas: the GGUF
// formats' definitions.
#include <cstring>

#include "common/base/check.h"
#include "kernels/quant/block_layout.h"

namespace updraft {
namespace {

void decode_q4_0(const std::byte* block, float* out) {
  const float d = load_half(block);
  const std::byte* qs = block + kQ4_0Quants;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((byte_at(qs, i) & 15) - 8);
    out[i + 16] = d * static_cast<float>((byte_at(qs, i) >> 4) - 8);
  }
}

void decode_q4_1(const std::byte* block, float* out) {
  const float d = load_half(block);
  const float m = load_half(block + 2);
  const std::byte* qs = block + kQ4_1Quants;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(byte_at(qs, i) & 15) + m;
    out[i + 16] = d * static_cast<float>(byte_at(qs, i) >> 4) + m;
  }
}

// Quant `i` of 32: a nibble and one bit of the 32-bit mask.
int five_bits(const std::byte* qs, uint32_t high, int i) {
  const int nibble = i < 16 ? byte_at(qs, i) & 15 : byte_at(qs, i - 16) >> 4;
  return nibble | static_cast<int>(((high >> i) & 1U) << 4);
}

void decode_q5_0(const std::byte* block, float* out) {
  const float d = load_half(block);
  const auto high = load_le<uint32_t>(block + kQ5_0High);
  for (int i = 0; i < 32; ++i) {
    out[i] = d * static_cast<float>(five_bits(block + kQ5_0Quants, high, i) - 16);
  }
}

void decode_q5_1(const std::byte* block, float* out) {
  const float d = load_half(block);
  const float m = load_half(block + 2);
  const auto high = load_le<uint32_t>(block + kQ5_1High);
  for (int i = 0; i < 32; ++i) {
    out[i] = d * static_cast<float>(five_bits(block + kQ5_1Quants, high, i)) + m;
  }
}

void decode_q8_0(const std::byte* block, float* out) {
  const float d = load_half(block);
  for (int i = 0; i < 32; ++i) {
    out[i] = d * static_cast<float>(static_cast<int8_t>(block[kQ8_0Quants + i]));
  }
}

// Q4_K and Q5_K differ in where the quants are: y = d * scale * q - dmin * min.
template <void (*Unpack)(const std::byte*, int, uint8_t*)>
void decode_scale_min(const std::byte* block, float* out) {
  const float d = load_half(block);
  const float dmin = load_half(block + 2);
  for (int s = 0; s < 8; ++s) {
    const ScaleMin sm = unpack_scale_min(block + kKScales, s);
    const float scale = d * static_cast<float>(sm.scale);
    const float min = dmin * static_cast<float>(sm.min);
    uint8_t q[32];
    Unpack(block, s, q);
    for (int i = 0; i < 32; ++i) out[32 * s + i] = scale * static_cast<float>(q[i]) - min;
  }
}

void decode_q6_k(const std::byte* block, float* out) {
  const float d = load_half(block + kQ6KD);
  for (int s = 0; s < 8; ++s) {
    uint8_t q[32];
    unpack_q6_k(block, s, q);
    for (int i = 0; i < 32; ++i) {
      const auto scale = static_cast<int8_t>(block[kQ6KScales + 2 * s + i / 16]);
      out[32 * s + i] = d * static_cast<float>(scale) * static_cast<float>(q[i] - 32);
    }
  }
}

using BlockDecoder = void (*)(const std::byte*, float*);

BlockDecoder block_decoder(DType type) {
  switch (type) {
    case DType::kQ8_0:
      return decode_q8_0;
    case DType::kQ4_0:
      return decode_q4_0;
    case DType::kQ4_1:
      return decode_q4_1;
    case DType::kQ5_0:
      return decode_q5_0;
    case DType::kQ5_1:
      return decode_q5_1;
    case DType::kQ4_K:
      return decode_scale_min<unpack_q4_k>;
    case DType::kQ5_K:
      return decode_scale_min<unpack_q5_k>;
    case DType::kQ6_K:
      return decode_q6_k;
    default:
      return nullptr;
  }
}

}  // namespace

void dequantize_row(DType type, const std::byte* src, std::span<float> out) {
  const DTypeInfo& info = dtype_info(type);
  UPDRAFT_CHECK(out.size() % static_cast<size_t>(info.block_elems) == 0, "whole blocks");
  if (out.empty()) return;
  switch (type) {
    case DType::kF32:
      std::memcpy(out.data(), src, out.size_bytes());
      return;
    case DType::kF16:
      for (size_t i = 0; i < out.size(); ++i) out[i] = load_half(src + 2 * i);
      return;
    case DType::kBF16:
      for (size_t i = 0; i < out.size(); ++i)
        out[i] = bf16_to_float(load_le<uint16_t>(src + 2 * i));
      return;
    case DType::kF8_E4M3:
      for (size_t i = 0; i < out.size(); ++i) out[i] = f8_to_float(static_cast<uint8_t>(src[i]));
      return;
    case DType::kI8:
      for (size_t i = 0; i < out.size(); ++i)
        out[i] = static_cast<float>(static_cast<int8_t>(src[i]));
      return;
    default:
      break;
  }
  const BlockDecoder decode = block_decoder(type);
  for (size_t at = 0; at < out.size(); at += info.block_elems, src += info.block_bytes) {
    decode(src, out.data() + at);
  }
}

void dequantize_row(const WeightView& view, int64_t row, std::span<float> out) {
  dequantize_row(view.type, view.data + row * row_bytes(view.type, view.cols), out);
  if (view.row_scales == nullptr) return;
  for (float& v : out) v *= view.row_scales[row];
}

}  // namespace updraft
