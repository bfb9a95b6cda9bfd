// One head of a row between the product and attention, on one warp: norm, rotation, and its place
// in the pages. For kernels: prepare_qkv's own (rope.cu), and decode attention, which prepares what
// it reads. Both give the same bits.
//
// Lane l holds the dimensions l * kPer + i in v[i], kPer = kDim / 32; those behind the model's head
// are the pages' padding: zeros.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/head_rotation.h"
#include "kernels/cuda/rope.h"

namespace updraft::cuda {

enum class HeadOf : uint8_t { kQ, kK, kV };

template <int kPer>
UPDRAFT_DEVICE void store_bf16(Bf16* at, const float (&v)[kPer]) {
  UPDRAFT_UNROLL
  for (int i = 0; i < kPer / 2; ++i) {
    reinterpret_cast<uint32_t*>(at)[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
  }
}

// The nearest e4m3 number, ties to even, at most 448 in size.
UPDRAFT_DEVICE uint32_t to_fp8(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t size = bits & 0x7FFFFFFFU;
  uint32_t out = 0;
  if (size < 0x3C800000U) {  // 2^-6: below, steps of 2^-9
    out = static_cast<uint32_t>(round_to_int(bits_float(size) * 512.0F));
  } else if (size < 0x43E00000U) {  // 448
    out = ((size + 0x7FFFFU + (size >> 20 & 1U)) >> 20) - (120U << 3);
  } else {
    out = 0x7E;
  }
  return out | (bits >> 24 & 0x80U);
}

// Bytes with one scale for the head.
template <KvType kType, int kPer>
UPDRAFT_DEVICE void store_bytes(std::byte* at, float* scale_at, int lane, const float (&v)[kPer]) {
  // Floats that are not negative compare like their bits, a NaN above all: the scale carries it on.
  uint32_t largest = 0;
  UPDRAFT_UNROLL
  for (int i = 0; i < kPer; ++i) {
    const uint32_t size = float_bits(v[i]) & 0x7FFFFFFFU;
    largest = largest > size ? largest : size;
  }
  constexpr float kLargestByte = kType == KvType::kInt8 ? 127.0F : 448.0F;
  const float scale = bits_float(reduce_max(largest)) / kLargestByte;
  const float inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
  uint32_t word = 0;
  UPDRAFT_UNROLL
  for (int i = 0; i < kPer; ++i) {
    const float x = v[i] * inverse;
    const uint32_t byte =
        kType == KvType::kInt8 ? static_cast<uint32_t>(round_to_int(x)) & 0xFFU : to_fp8(x);
    word |= byte << (8 * i);
  }
  if constexpr (kPer == 4) {
    reinterpret_cast<uint32_t*>(at)[lane] = word;
  } else {
    reinterpret_cast<uint16_t*>(at)[lane] = static_cast<uint16_t>(word);
  }
  if (lane == 0) *scale_at = scale;
}

// Head `head` of the row's q, k and v, of which `of` it is, as attention and pages want it. `whole`
// is kDim floats of shared memory for this warp alone.
template <int kDim>
UPDRAFT_DEVICE void prepare_head(const PrepareQkv& in, int64_t row, int head, HeadOf of,
                                 float* whole, int lane, float (&v)[kDim / 32]) {
  constexpr int kPer = kDim / 32;
  const int head_dim = in.pages.head_dim;
  const int heads = in.head_count + 2 * in.pages.kv_head_count;
  const Bf16* source = in.qkv + (row * heads + head) * head_dim + lane * kPer;
  const bool inside = lane * kPer < head_dim;
  UPDRAFT_UNROLL
  for (int i = 0; i < kPer / 2; ++i) {
    const uint32_t pair = inside ? reinterpret_cast<const uint32_t*>(source)[i] : 0U;
    v[2 * i] = low_bf16(pair);
    v[2 * i + 1] = high_bf16(pair);
  }
  if (of != HeadOf::kV) {
    const float* norm = of == HeadOf::kQ ? in.q_norm : in.k_norm;
    if (norm != nullptr) {
      float sum = 0.0F;
      UPDRAFT_UNROLL
      for (int i = 0; i < kPer; ++i) sum = fma(v[i], v[i], sum);
      UPDRAFT_UNROLL
      for (uint32_t step = 16; step > 0; step /= 2) sum += shuffle_xor(sum, step);
      const float factor = inverse_sqrt(sum / static_cast<float>(head_dim) + in.eps);
      UPDRAFT_UNROLL
      for (int i = 0; i < kPer; ++i) {
        if (inside) v[i] = v[i] * factor * norm[lane * kPer + i];
      }
    }
    sync_warp();  // the head before has been read
    UPDRAFT_UNROLL
    for (int i = 0; i < kPer; ++i) whole[lane * kPer + i] = v[i];
    sync_warp();
    const int pairs = in.rope_dims / 2;
    UPDRAFT_UNROLL
    for (int i = 0; i < kPer; ++i) {
      const int dim = lane * kPer + i;
      if (dim >= in.rope_dims) continue;
      const int pair = in.interleaved ? dim / 2 : dim % pairs;
      const bool first = in.interleaved ? dim % 2 == 0 : dim < pairs;
      const int other = in.interleaved ? dim ^ 1 : first ? dim + pairs : dim - pairs;
      const Float2 turn = in.rotations[row * pairs + pair];
      v[i] = fma(first ? -whole[other] : whole[other], turn.y, v[i] * turn.x);
    }
  }
  const int block = in.pages.rotation_block;
  if (block > 1) rotate_head<1, kPer>(v, block, lane);
  if (of == HeadOf::kQ && block > 1) {
    const float factor = 1.0F / static_cast<float>(block);
    UPDRAFT_UNROLL
    for (int i = 0; i < kPer; ++i) v[i] *= factor;
  }
}

// Puts a head of k or v into its row's page; a padded row has none.
template <int kDim>
UPDRAFT_DEVICE void append_head(const PrepareQkv& in, int64_t row, int kv_head, HeadOf of, int lane,
                                const float (&v)[kDim / 32]) {
  constexpr int kPer = kDim / 32;
  const int position = in.kv_positions[row];
  if (position < 0) return;
  const bool is_k = of == HeadOf::kK;
  const int64_t page = in.table[static_cast<int64_t>(in.lines[row]) * in.table_stride +
                                (position >> in.pages.page_shift)];
  const int slot = position & (in.pages.page_tokens - 1);
  std::byte* layer = in.pages.base + page * in.pages.page_bytes + in.layer * in.pages.layer_bytes;
  std::byte* at = layer + (is_k ? 0 : in.pages.v_offset) + kv_head * in.pages.head_bytes;
  if (in.pages.type == KvType::kBf16) {
    store_bf16(reinterpret_cast<Bf16*>(at) + slot * kDim + lane * kPer, v);
    return;
  }
  auto* scales =
      reinterpret_cast<float*>(layer + (is_k ? in.pages.k_scale_offset : in.pages.v_scale_offset));
  float* scale = scales + kv_head * in.pages.page_tokens + slot;
  if (in.pages.type == KvType::kInt8) {
    store_bytes<KvType::kInt8>(at + slot * kDim, scale, lane, v);
  } else {
    store_bytes<KvType::kFp8>(at + slot * kDim, scale, lane, v);
  }
}

}  // namespace updraft::cuda
