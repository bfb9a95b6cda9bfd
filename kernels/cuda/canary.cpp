// A product, a rotation, a norm, a copy, a choice and both kinds of attention over a few numbers.
#include "kernels/cuda/canary.h"

#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/step_ops.h"
#include "kernels/quant/quant.h"

namespace updraft::cuda {
namespace {

constexpr int32_t kRows = 16;
constexpr int32_t kCols = 32;
constexpr int32_t kHeadDim = 64;
constexpr int32_t kPageTokens = 16;
constexpr float kValue = 5.0F;  // what attention to the one position finds

// One piece of device memory and its twin on the host, handed out part by part.
struct Board {
  DeviceMemory device;
  PinnedMemory host;
  size_t taken = 0;

  template <typename T>
  T* on_host(const T* at) const {
    return reinterpret_cast<T*>(host.data() +
                                (reinterpret_cast<const std::byte*>(at) - device.data()));
  }
  template <typename T>
  T* take(size_t count) {
    const size_t at = taken;
    taken = (taken + count * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(device.data() + at);
  }
};

Result<void> differs(const char* family, float got, float expected) {
  return fail(std::string("cuda: the kernels of this module do not work on this GPU: ") + family +
              " gave " + std::to_string(got) + " in place of " + std::to_string(expected));
}

}  // namespace

Result<void> run_canaries(GemmDevice& device, Stream stream, bool captured) {
  const auto layout = PackedLayout::of(DType::kBF16, kRows, kCols);
  if (!layout) return layout.error();
  const size_t scratch_bytes = gemm_scratch_bytes(device, *layout, 1);
  Board board;
  auto memory = DeviceMemory::allocate(scratch_bytes + (64 << 10), "canaries");
  if (!memory) return memory.error();
  board.device = std::move(*memory);
  auto twin = PinnedMemory::allocate(board.device.bytes(), "canaries");
  if (!twin) return twin.error();
  board.host = std::move(*twin);
  std::memset(board.host.data(), 0, board.host.bytes());

  auto* weight = board.take<std::byte>(static_cast<size_t>(layout->bytes));
  auto* x = board.take<Bf16>(2 * kCols);
  auto* gathered = board.take<Bf16>(kCols);
  auto* row = board.take<int32_t>(1);
  auto* y = board.take<float>(kRows);
  auto* hidden = board.take<float>(kCols);
  auto* ones = board.take<float>(kCols);
  auto* normed = board.take<Bf16>(kCols);
  auto* position = board.take<int32_t>(1);
  auto* turn = board.take<Float2>(1);
  auto* how = board.take<SampleRow>(1);
  auto* token = board.take<int32_t>(1);
  auto pages = KvPages::of(KvType::kBf16, 1, 1, kHeadDim, kPageTokens);
  if (!pages) return pages.error();
  pages->base = board.take<std::byte>(static_cast<size_t>(pages->page_bytes));
  auto* query = board.take<Bf16>(kHeadDim);
  auto* length = board.take<int32_t>(1);
  auto* line = board.take<int32_t>(1);
  auto* item_count = board.take<int32_t>(1);
  auto* items = board.take<DecodeWorkItem>(static_cast<size_t>(decode_work_items_max(1, 1)));
  auto* slice = board.take<PrefillSlice>(1);
  auto* decoded = board.take<Bf16>(kHeadDim);
  auto* prefilled = board.take<Bf16>(kHeadDim);
  auto* scratch = board.take<std::byte>(scratch_bytes);

  std::vector<float> values(kRows * kCols);
  for (int32_t r = 0; r < kRows; ++r) values[static_cast<size_t>(r * kCols + r)] = 1.0F + r;
  pack_tiles({reinterpret_cast<const std::byte*>(values.data()), DType::kF32, kRows, kCols},
             *layout, 0, 1, {board.on_host(weight), static_cast<size_t>(layout->bytes)});
  for (int32_t c = 0; c < kCols; ++c) {
    board.on_host(x)[kCols + c] = {float_to_bf16(2.0F)};  // the second row: twos
    board.on_host(hidden)[c] = 3.0F;
    board.on_host(ones)[c] = 1.0F;
  }
  auto* values_at = reinterpret_cast<Bf16*>(board.on_host(pages->base + pages->v_offset));
  for (int32_t i = 0; i < kHeadDim; ++i) values_at[i] = {float_to_bf16(kValue)};
  *board.on_host(length) = 1;
  *board.on_host(slice) = {0, 1, 0, 0};
  *board.on_host(row) = 1;
  *board.on_host(how) = {0.0F, 0.0F, 1.0F, 0, 0.0};
  if (auto r = copy_to_device(board.device.data(), board.host.data(), board.device.bytes(), stream);
      !r) {
    return r;
  }
  if (auto r = wait(stream); !r) return r;  // also where nothing comes behind it

  const auto launch_all = [&]() -> Result<void> {
    if (auto r = run_gather_rows({1, kCols, x, row, gathered}, stream); !r) return r;
    Gemm product;
    product.device = &device;
    product.layout = *layout;
    product.weight = weight;
    product.x = gathered;
    product.x_stride = kCols;
    product.tokens = 1;
    product.y_f32 = y;
    product.y_stride = kRows;
    product.scratch = {scratch, scratch_bytes};
    if (auto r = run_gemm(product, stream); !r) return r;
    ResidualNorm norm;
    norm.rows = 1;
    norm.dim = kCols;
    norm.hidden = hidden;
    norm.norm = ones;
    norm.out = normed;
    if (auto r = run_residual_norm(norm, stream); !r) return r;
    RopeTable table;
    table.rows = 1;
    table.pairs = 1;
    table.positions = position;
    table.inverse_frequency = ones;
    table.out = turn;
    if (auto r = run_rope_table(table, stream); !r) return r;
    if (auto r = run_sample({1, kRows, y, how, token}, stream); !r) return r;
    if (auto r = run_decode_work({1, length, line, 1, item_count, items}, stream); !r) return r;
    DecodeAttention decode;
    decode.pages = *pages;
    decode.rows = 1;
    decode.head_count = 1;
    decode.q = query;
    decode.q_stride = kHeadDim;
    decode.lengths = length;
    decode.length_max = 1;
    decode.item_count = item_count;
    decode.items = items;
    decode.table = line;  // page 0
    decode.table_stride = 1;
    decode.scale = 1.0F;
    decode.out = decoded;
    if (auto r = run_decode_attention(decode, stream); !r) return r;
    PrefillAttention prefill;
    prefill.pages = *pages;
    prefill.head_count = 1;
    prefill.q = query;
    prefill.q_stride = kHeadDim;
    prefill.slices = slice;
    prefill.slice_count = 1;
    prefill.row_count_max = 1;
    prefill.length_max = 1;
    prefill.table = line;
    prefill.table_stride = 1;
    prefill.scale = 1.0F;
    prefill.out = prefilled;
    if (auto r = run_prefill_attention(prefill, stream); !r) return r;
    return {};
  };
  if (captured) {
    if (auto r = begin_capture(stream); !r) return r;
    const auto launched = launch_all();
    auto graph = end_capture(stream);  // in any case: the stream is to take other work again
    if (!launched) return launched;
    if (!graph) return graph.error();
    if (auto r = graph->launch(stream); !r) return r;
    // Done before the graph goes.
    if (auto r = wait(stream); !r) return r;
  } else if (auto r = launch_all(); !r) {
    return r;
  }

  if (auto r = copy_to_host(board.host.data(), board.device.data(), board.device.bytes(), stream);
      !r) {
    return r;
  }
  if (auto r = wait(stream); !r) return r;
  for (int32_t i = 0; i < kRows; ++i) {
    const float expected = 2.0F + 2.0F * static_cast<float>(i);
    if (board.on_host(y)[i] != expected) {
      return differs("a product", board.on_host(y)[i], expected);
    }
  }
  const float unit = bf16_to_float(board.on_host(normed)->bits);
  if (unit != 1.0F) return differs("a norm", unit, 1.0F);
  if (board.on_host(turn)->x != 1.0F) return differs("a rotation", board.on_host(turn)->x, 1.0F);
  if (*board.on_host(token) != kRows - 1) {
    return differs("a choice", static_cast<float>(*board.on_host(token)), kRows - 1);
  }
  const float by_row = bf16_to_float(board.on_host(decoded)->bits);
  if (by_row != kValue) return differs("attention of one row", by_row, kValue);
  const float by_tile = bf16_to_float(board.on_host(prefilled)->bits);
  if (by_tile != kValue) return differs("attention of a prompt", by_tile, kValue);
  return {};
}

}  // namespace updraft::cuda
