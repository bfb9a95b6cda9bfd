// The rotations of a step's rows, and one warp per head of a row.
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/prepare_head.h"

namespace updraft::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

UPDRAFT_KERNEL(kThreads)
rope_table_kernel(RopeTable in) {
  let_next_start();
  wait_for_previous();
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

template <int kDim>
UPDRAFT_KERNEL(kThreads)
prepare_qkv_kernel(PrepareQkv in) {
  let_next_start();
  wait_for_previous();
  constexpr int kPer = kDim / 32;
  const int warp = static_cast<int>(thread_x()) / 32;
  const int lane = static_cast<int>(thread_x()) % 32;
  const auto row = static_cast<int64_t>(block_x());
  const int kv_heads = in.pages.kv_head_count;
  const int heads = in.head_count + 2 * kv_heads;
  const int head = static_cast<int>(block_y()) * kWarps + warp;
  if (head >= heads) return;  // the whole warp
  const HeadOf of = head < in.head_count              ? HeadOf::kQ
                    : head < in.head_count + kv_heads ? HeadOf::kK
                                                      : HeadOf::kV;
  float v[kPer];
  prepare_head<kDim>(in, row, head, of, shared_array<float, kWarps * kDim>() + warp * kDim, lane,
                     v);
  if (of == HeadOf::kQ) {
    const int head_dim = in.pages.head_dim;
    if (lane * kPer < head_dim) {
      store_bf16(in.qkv + (row * heads + head) * head_dim + lane * kPer, v);
    }
    return;
  }
  const int kv_head = head - in.head_count - (of == HeadOf::kK ? 0 : kv_heads);
  append_head<kDim>(in, row, kv_head, of, lane, v);
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
  shape.early_start = true;
  return launch(rope_table_kernel, shape, stream, op);
}

Result<void> check_prepare_qkv(const PrepareQkv& op) {
  const int32_t head_dim = op.pages.head_dim;
  if (op.rows < 1 || op.head_count < 1 || op.layer < 0 || op.layer >= op.pages.layer_count ||
      op.rope_dims < 2 || op.rope_dims % 2 != 0 || op.rope_dims > head_dim) {
    return fail("prepare qkv: " + std::to_string(op.rows) + " rows, " +
                std::to_string(op.head_count) + " heads, layer " + std::to_string(op.layer) + ", " +
                std::to_string(op.rope_dims) + " rotated dimensions of " +
                std::to_string(head_dim));
  }
  return {};
}

Result<void> run_prepare_qkv(const PrepareQkv& op, Stream stream) {
  if (auto checked = check_prepare_qkv(op); !checked) return checked;
  LaunchShape shape;
  const int32_t heads = op.head_count + 2 * op.pages.kv_head_count;
  shape.grid = {static_cast<uint32_t>(op.rows),
                static_cast<uint32_t>((heads + kWarps - 1) / kWarps), 1};
  shape.block = {kThreads, 1, 1};
  shape.early_start = true;
  if (op.pages.padded_dim == 64) return launch(prepare_qkv_kernel<64>, shape, stream, op);
  return launch(prepare_qkv_kernel<128>, shape, stream, op);
}

}  // namespace updraft::cuda
