// One warp per head of a row; a lane holds neighbouring dimensions and finds its partners' through
// shared memory.
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/head_rotation.h"
#include "kernels/cuda/rope.h"

namespace updraft::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

UPDRAFT_KERNEL(kThreads)
rope_table_kernel(RopeTable in) {
  const int64_t index = static_cast<int64_t>(block_x()) * kThreads + thread_x();
  if (index >= static_cast<int64_t>(in.rows) * in.pairs) return;
  const int64_t row = index / in.pairs;
  const auto pair = static_cast<int32_t>(index % in.pairs);
  int64_t axis = 0;
  if (in.sections[0] + in.sections[1] + in.sections[2] > 0) {
    axis = pair < in.sections[0] ? 0 : pair < in.sections[0] + in.sections[1] ? 1 : 2;
  }
  const float angle =
      static_cast<float>(in.positions[axis * in.rows + row]) * in.inverse_frequency[pair];
  float sine = 0.0F;
  float cosine = 0.0F;
  sine_cosine(angle, &sine, &cosine);
  in.out[index] = {cosine * in.magnitude, sine * in.magnitude};
}

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

template <int kDim>
UPDRAFT_KERNEL(kThreads)
prepare_qkv_kernel(PrepareQkv in) {
  constexpr int kPer = kDim / 32;
  const int head_dim = in.pages.head_dim;
  const int warp = static_cast<int>(thread_x()) / 32;
  const int lane = static_cast<int>(thread_x()) % 32;
  const auto row = static_cast<int64_t>(block_x());
  const int kv_heads = in.pages.kv_head_count;
  const int heads = in.head_count + 2 * kv_heads;
  const int head = static_cast<int>(block_y()) * kWarps + warp;
  if (head >= heads) return;  // the whole warp
  const bool is_q = head < in.head_count;
  const bool is_k = !is_q && head < in.head_count + kv_heads;

  Bf16* source = in.qkv + (row * heads + head) * head_dim + lane * kPer;
  const bool inside = lane * kPer < head_dim;  // dimensions behind are the pages' padding: zeros
  float v[kPer];
  UPDRAFT_UNROLL
  for (int i = 0; i < kPer / 2; ++i) {
    const uint32_t pair = inside ? reinterpret_cast<const uint32_t*>(source)[i] : 0U;
    v[2 * i] = low_bf16(pair);
    v[2 * i + 1] = high_bf16(pair);
  }
  if (is_q || is_k) {
    const float* norm = is_q ? in.q_norm : in.k_norm;
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
    float* whole = shared_array<float, kWarps * kDim>() + warp * kDim;
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
      v[i] = v[i] * turn.x + (first ? -whole[other] : whole[other]) * turn.y;
    }
  }
  const int block = in.pages.rotation_block;
  if (block > 1) rotate_head<1, kPer>(v, block, lane);
  if (is_q) {
    if (block > 1) {
      const float factor = 1.0F / static_cast<float>(block);
      UPDRAFT_UNROLL
      for (int i = 0; i < kPer; ++i) v[i] *= factor;
    }
    if (inside) store_bf16(source, v);
    return;
  }
  const int position = in.kv_positions[row];
  if (position < 0) return;
  const int kv_head = head - in.head_count - (is_k ? 0 : kv_heads);
  const int64_t page = in.table[static_cast<int64_t>(in.lines[row]) * in.table_stride +
                                (position >> in.pages.page_shift)];
  const int slot = position & (in.pages.page_tokens - 1);
  std::byte* layer = in.pages.base + page * in.pages.page_bytes + in.layer * in.pages.layer_bytes;
  std::byte* at = layer + (is_k ? 0 : in.pages.v_offset) + kv_head * in.pages.head_bytes;
  if (in.pages.type == KvType::kBf16) {
    store_bf16(reinterpret_cast<Bf16*>(at) + slot * kDim + lane * kPer, v);
  } else {
    auto* scales = reinterpret_cast<float*>(
        layer + (is_k ? in.pages.k_scale_offset : in.pages.v_scale_offset));
    float* scale = scales + kv_head * in.pages.page_tokens + slot;
    if (in.pages.type == KvType::kInt8) {
      store_bytes<KvType::kInt8>(at + slot * kDim, scale, lane, v);
    } else {
      store_bytes<KvType::kFp8>(at + slot * kDim, scale, lane, v);
    }
  }
}

}  // namespace

Result<void> run_rope_table(const RopeTable& op, Stream stream) {
  if (op.rows < 1 || op.pairs < 1) {
    return fail("rope table: " + std::to_string(op.rows) + " rows of " + std::to_string(op.pairs) +
                " pairs");
  }
  const int32_t in_sections = op.sections[0] + op.sections[1] + op.sections[2];
  if (in_sections != 0 && in_sections != op.pairs) {
    return fail("rope table: " + std::to_string(in_sections) + " pairs in sections, " +
                std::to_string(op.pairs) + " in all");
  }
  LaunchShape shape;
  const int64_t threads = int64_t{op.rows} * op.pairs;
  shape.grid = {static_cast<uint32_t>((threads + kThreads - 1) / kThreads), 1, 1};
  shape.block = {kThreads, 1, 1};
  return launch(rope_table_kernel, shape, stream, op);
}

Result<void> run_prepare_qkv(const PrepareQkv& op, Stream stream) {
  const int32_t head_dim = op.pages.head_dim;
  if (op.rows < 1 || op.head_count < 1 || op.layer < 0 || op.layer >= op.pages.layer_count ||
      op.rope_dims < 2 || op.rope_dims % 2 != 0 || op.rope_dims > head_dim) {
    return fail("prepare qkv: " + std::to_string(op.rows) + " rows, " +
                std::to_string(op.head_count) + " heads, layer " + std::to_string(op.layer) + ", " +
                std::to_string(op.rope_dims) + " rotated dimensions of " +
                std::to_string(head_dim));
  }
  LaunchShape shape;
  const int32_t heads = op.head_count + 2 * op.pages.kv_head_count;
  shape.grid = {static_cast<uint32_t>(op.rows),
                static_cast<uint32_t>((heads + kWarps - 1) / kWarps), 1};
  shape.block = {kThreads, 1, 1};
  if (op.pages.padded_dim == 64) return launch(prepare_qkv_kernel<64>, shape, stream, op);
  return launch(prepare_qkv_kernel<128>, shape, stream, op);
}

}  // namespace updraft::cuda
