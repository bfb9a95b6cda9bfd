#include <algorithm>
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/page_ops.h"

namespace updraft::cuda {
namespace {

constexpr int kThreads = 256;

UPDRAFT_KERNEL(kThreads)
move_pages_kernel(MovePages in) {
  const int64_t vectors = in.page_bytes / 16;
  // A grid has at most 65535 blocks in this direction.
  for (int64_t i = block_y(); i < in.count; i += grid_y()) {
    const int64_t from_page = in.from_index != nullptr ? in.from_index[i] : i;
    const int64_t to_page = in.to_index != nullptr ? in.to_index[i] : i;
    const auto* from = reinterpret_cast<const Vec16*>(in.from + from_page * in.page_bytes);
    auto* to = reinterpret_cast<Vec16*>(in.to + to_page * in.page_bytes);
    for (int64_t v = static_cast<int64_t>(block_x()) * kThreads + thread_x(); v < vectors;
         v += static_cast<int64_t>(grid_x()) * kThreads) {
      store(to + v, load_once(from + v));
    }
  }
}

}  // namespace

Result<void> run_move_pages(const MovePages& op, Stream stream) {
  if (op.count < 0 || op.page_bytes < 16 || op.page_bytes % 16 != 0 ||
      (op.from_index == nullptr && op.to_index == nullptr)) {
    return fail("move of " + std::to_string(op.count) + " pages of " +
                std::to_string(op.page_bytes) + " bytes (a multiple of 16), " +
                (op.from_index == nullptr ? "no " : "") + "list from, " +
                (op.to_index == nullptr ? "no " : "") + "list to");
  }
  if (op.count == 0) return {};
  constexpr int64_t kBlocksMax = 64;  // of one page
  LaunchShape shape;
  shape.grid = {
      static_cast<uint32_t>(std::min((op.page_bytes / 16 + kThreads - 1) / kThreads, kBlocksMax)),
      static_cast<uint32_t>(std::min(op.count, 65535)), 1};
  shape.block = {kThreads, 1, 1};
  return launch(move_pages_kernel, shape, stream, op);
}

}  // namespace updraft::cuda
