// One thread per token, per 16 bytes, per banned logit.
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/step_ops.h"

namespace updraft::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kVector = 8;  // bfloat16 in 16 bytes

LaunchShape shape_of(int64_t threads) {
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>((threads + kThreads - 1) / kThreads), 1, 1};
  shape.block = {kThreads, 1, 1};
  shape.early_start = true;
  return shape;
}

UPDRAFT_DEVICE int64_t thread_index() {
  return static_cast<int64_t>(block_x()) * kThreads + thread_x();
}

UPDRAFT_KERNEL(kThreads)
take_tokens_kernel(TakeTokens in) {
  let_next_start();
  wait_for_previous();
  const int64_t row = thread_index();
  if (row >= in.rows) return;
  const int source = load(in.sources + row);
  if (source >= 0) store(in.token_ids + row, load_written(in.chosen + source));
}

UPDRAFT_KERNEL(kThreads)
gather_rows_kernel(GatherRows in) {
  let_next_start();
  wait_for_previous();
  const int vectors = in.cols / kVector;
  const int64_t index = thread_index();
  if (index >= static_cast<int64_t>(in.count) * vectors) return;
  const int row = load(in.rows + index / vectors);
  Vec16 value = {{0, 0, 0, 0}};
  if (row >= 0) {
    value =
        load_written(reinterpret_cast<const Vec16*>(in.in + static_cast<int64_t>(row) * in.cols) +
                     index % vectors);
  }
  store(reinterpret_cast<Vec16*>(in.out) + index, value);
}

UPDRAFT_KERNEL(kThreads)
ban_tokens_kernel(BanTokens in) {
  let_next_start();
  wait_for_previous();
  const int64_t index = thread_index();
  if (index >= static_cast<int64_t>(in.rows) * in.count) return;
  const int64_t row = index / in.count;
  store(in.logits + row * in.vocab + load(in.ids + index % in.count), bits_float(0xFF800000U));
}

}  // namespace

Result<void> run_take_tokens(const TakeTokens& op, Stream stream) {
  if (op.rows < 1) return fail("take tokens: " + std::to_string(op.rows) + " rows");
  return launch(take_tokens_kernel, shape_of(op.rows), stream, op);
}

Result<void> run_gather_rows(const GatherRows& op, Stream stream) {
  if (op.count < 1 || op.cols < kVector || op.cols % kVector != 0) {
    return fail("gather rows: " + std::to_string(op.count) + " rows of " + std::to_string(op.cols) +
                " elements (a multiple of 8)");
  }
  return launch(gather_rows_kernel, shape_of(int64_t{op.count} * (op.cols / kVector)), stream, op);
}

Result<void> run_ban_tokens(const BanTokens& op, Stream stream) {
  if (op.rows < 1 || op.count < 1 || op.vocab < 1) {
    return fail("ban tokens: " + std::to_string(op.count) + " ids in " + std::to_string(op.rows) +
                " rows of " + std::to_string(op.vocab) + " logits");
  }
  return launch(ban_tokens_kernel, shape_of(int64_t{op.rows} * op.count), stream, op);
}

}  // namespace updraft::cuda
