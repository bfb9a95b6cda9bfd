// One warp per head of a row; a lane holds neighbouring dimensions and finds its partners' through
// shared memory.
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/rope.h"

namespace updraft::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

UPDRAFT_KERNEL(kThreads)
rope_table_kernel(RopeTable in) {
  const int64_t index = static_cast<int64_t>(block_x()) * kThreads + thread_x();
  if (index >= static_cast<int64_t>(in.rows) * in.pairs) return;
  const float angle =
      static_cast<float>(in.positions[index / in.pairs]) * in.inverse_frequency[index % in.pairs];
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

// int8 with one scale for the head.
template <int kPer>
UPDRAFT_DEVICE void store_int8(std::byte* at, float* scale_at, int lane, const float (&v)[kPer]) {
  float largest = 0.0F;
  UPDRAFT_UNROLL
  for (int i = 0; i < kPer; ++i) {
    const float size = v[i] < 0.0F ? -v[i] : v[i];
    largest = largest > size ? largest : size;
  }
  // Floats that are not negative compare like their bits.
  const float scale = bits_float(reduce_max(float_bits(largest))) / 127.0F;
  const float inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
  UPDRAFT_UNROLL
  for (int i = 0; i < kPer; ++i) {
    at[lane * kPer + i] = static_cast<std::byte>(round_to_int(v[i] * inverse) & 0xFF);
  }
  if (lane == 0) *scale_at = scale;
}

template <int kDim>
UPDRAFT_KERNEL(kThreads)
prepare_qkv_kernel(PrepareQkv in) {
  constexpr int kPer = kDim / 32;
  const int warp = static_cast<int>(thread_x()) / 32;
  const int lane = static_cast<int>(thread_x()) % 32;
  const auto row = static_cast<int64_t>(block_x());
  const int kv_heads = in.pages.kv_head_count;
  const int heads = in.head_count + 2 * kv_heads;
  const int head = static_cast<int>(block_y()) * kWarps + warp;
  if (head >= heads) return;  // the whole warp
  const bool is_q = head < in.head_count;
  const bool is_k = !is_q && head < in.head_count + kv_heads;

  Bf16* source = in.qkv + (row * heads + head) * kDim + lane * kPer;
  float v[kPer];
  UPDRAFT_UNROLL
  for (int i = 0; i < kPer / 2; ++i) {
    const uint32_t pair = reinterpret_cast<const uint32_t*>(source)[i];
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
      const float factor = inverse_sqrt(sum / static_cast<float>(kDim) + in.eps);
      UPDRAFT_UNROLL
      for (int i = 0; i < kPer; ++i) v[i] = v[i] * factor * norm[lane * kPer + i];
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
  if (is_q) {
    store_bf16(source, v);
    return;
  }
  const int position = in.kv_positions[row];
  if (position < 0) return;
  const int kv_head = head - in.head_count - (is_k ? 0 : kv_heads);
  const int64_t page = in.table[static_cast<int64_t>(in.sequences[row]) * in.table_stride +
                                (position >> in.pages.page_shift)];
  const int slot = position & (in.pages.page_tokens - 1);
  std::byte* layer = in.pages.base + page * in.pages.page_bytes + in.layer * in.pages.layer_bytes;
  std::byte* at = layer + (is_k ? 0 : in.pages.v_offset) + kv_head * in.pages.head_bytes;
  if (in.pages.type == KvType::kBf16) {
    store_bf16(reinterpret_cast<Bf16*>(at) + slot * kDim + lane * kPer, v);
  } else {
    auto* scales = reinterpret_cast<float*>(
        layer + (is_k ? in.pages.k_scale_offset : in.pages.v_scale_offset));
    store_int8(at + slot * kDim, scales + kv_head * in.pages.page_tokens + slot, lane, v);
  }
}

}  // namespace

Result<void> run_rope_table(const RopeTable& op, Stream stream) {
  if (op.rows < 1 || op.pairs < 1) {
    return fail("rope table: " + std::to_string(op.rows) + " rows of " + std::to_string(op.pairs) +
                " pairs");
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
  if (head_dim == 64) return launch(prepare_qkv_kernel<64>, shape, stream, op);
  return launch(prepare_qkv_kernel<128>, shape, stream, op);
}

}  // namespace updraft::cuda
