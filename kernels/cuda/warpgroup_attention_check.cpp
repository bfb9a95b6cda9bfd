// Two kinds of exact attention: queries of zero, whose output is the mean of small integers; and
// keys that are codes of +-1, of which each query has one, so that one weight is one and the others
// are zero.
#include <array>
#include <cstring>
#include <random>
#include <vector>

#include "common/base/clock.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/warpgroup_check.h"
#include "kernels/quant/quant.h"

namespace updraft::cuda {
namespace {

constexpr int32_t kHeads = 6;  // three to a key head: rows of a tile that begin within a position
constexpr int32_t kKvHeads = 2;
constexpr float kCode = 8.0F;  // a score of dim * kCode against sums of random signs

struct Case {
  int32_t head_dim;
  int32_t page_tokens;
  int32_t cached_count;
  int32_t row_count;
  int32_t multiprocessor_count;  // few: a block for all chunks of a tile; many: one for each
};
// Tiles that end in the middle of a page, of a box, of a tile; a ring that comes round; rows on
// both sides of a chunk's end.
constexpr Case kCases[] = {{128, 64, 97, 53, 4},
                           {128, 16, 0, 150, 4},
                           {64, 32, 300, 33, 4},
                           {128, 64, kPrefillChunk - 30, 50, 1},
                           {64, 64, kPrefillChunk - 30, 50, 132}};

// One piece of device memory and its twin on the host.
struct Board {
  DeviceMemory device;
  PinnedMemory host;
  size_t taken = 0;

  static Result<Board> make(size_t bytes) {
    Board out;
    auto device = DeviceMemory::allocate(bytes, "check of warpgroup attention");
    if (!device) return device.error();
    auto host = PinnedMemory::allocate(bytes, "check of warpgroup attention");
    if (!host) return host.error();
    out.device = std::move(*device);
    out.host = std::move(*host);
    std::memset(out.host.data(), 0xFF, bytes);  // NaN behind every end
    return out;
  }
  size_t take(size_t bytes) {
    const size_t at = taken;
    taken += (bytes + 255) / 256 * 256;
    return at;
  }
};

class AttentionCheck {
 public:
  AttentionCheck(const Case& one, bool codes, Stream stream)
      : case_(one), codes_(codes), stream_(stream) {}

  Result<WarpgroupVerdict> run() {
    if (auto ready = prepare(); !ready) return ready.error();
    for (const bool warpgroup : {false, true}) {
      PrefillAttention op = op_;
      op.warpgroup = warpgroup;
      if (warpgroup) op.out += row_elems() * case_.row_count;
      if (auto ran = run_prefill_attention(op, stream_); !ran) return ran.error();
    }
    if (auto copied = copy_to_host(board_.host.data() + out_, board_.device.data() + out_,
                                   2 * out_bytes(), stream_);
        !copied) {
      return copied.error();
    }
    if (auto done = wait(stream_); !done) return done.error();
    const auto* expected = reinterpret_cast<const uint16_t*>(board_.host.data() + out_);
    const int64_t count = row_elems() * case_.row_count;
    for (int64_t i = 0; i < count; ++i) {
      const float got = bf16_to_float(expected[count + i]);
      // Never true of NaN; the sign of a zero is no matter.
      if (got == bf16_to_float(expected[i])) continue;
      return WarpgroupVerdict{
          false, std::string(codes_ ? "codes" : "means") + ", heads of " +
                     std::to_string(case_.head_dim) + ", pages of " +
                     std::to_string(case_.page_tokens) + ", rows " +
                     std::to_string(case_.cached_count) + " + " + std::to_string(case_.row_count) +
                     ": row " + std::to_string(i / row_elems()) + ", element " +
                     std::to_string(i % row_elems()) + " is " + std::to_string(got) +
                     " in place of " + std::to_string(bf16_to_float(expected[i]))};
    }
    return WarpgroupVerdict{true, ""};
  }

 private:
  int64_t row_elems() const { return int64_t{kHeads} * case_.head_dim; }
  size_t out_bytes() const {
    return static_cast<size_t>(row_elems() * case_.row_count) * sizeof(Bf16);
  }

  // +-1 by position, key head and dimension.
  float code(int32_t position, int32_t head, int32_t dim) const {
    std::array<uint32_t, 3> key = {static_cast<uint32_t>(position), static_cast<uint32_t>(head),
                                   static_cast<uint32_t>(dim)};
    uint32_t hash = 2166136261U;
    for (const uint32_t word : key) {
      hash = (hash ^ word) * 2654435761U;
      hash ^= hash >> 15;
    }
    return (hash & 1U) != 0 ? 1.0F : -1.0F;
  }
  // Of the code that a query head of a row asks for, one of the positions that it sees.
  int32_t wanted(int32_t row, int32_t head) const {
    return (row * 7 + head * 13) % (case_.cached_count + row + 1);
  }

  Result<void> prepare() {
    auto pages = KvPages::of(KvType::kBf16, 1, kKvHeads, case_.head_dim, case_.page_tokens);
    if (!pages) return pages.error();
    const int32_t length = case_.cached_count + case_.row_count;
    const int32_t page_count = (length + case_.page_tokens - 1) / case_.page_tokens;
    const auto kv_bytes = static_cast<size_t>(pages->page_bytes * page_count);
    const size_t workspace_bytes =
        prefill_attention_workspace_bytes(*pages, case_.multiprocessor_count, length) + 256;
    auto board = Board::make(kv_bytes + 3 * out_bytes() + workspace_bytes +
                             static_cast<size_t>(page_count) * 4 + (8 << 10));
    if (!board) return board.error();
    board_ = std::move(*board);
    const size_t kv = board_.take(kv_bytes);
    const size_t table = board_.take(static_cast<size_t>(page_count) * sizeof(int32_t));
    const size_t slices = board_.take(sizeof(PrefillSlice));
    const size_t q = board_.take(out_bytes());
    out_ = board_.take(2 * out_bytes());
    const size_t workspace = board_.take(workspace_bytes);

    for (int32_t i = 0; i < page_count; ++i) {  // the last page comes first
      const int32_t page = page_count - 1 - i;
      std::memcpy(board_.host.data() + table + static_cast<size_t>(i) * 4, &page, 4);
    }
    const PrefillSlice slice{0, case_.row_count, case_.cached_count, 0};
    std::memcpy(board_.host.data() + slices, &slice, sizeof slice);
    std::mt19937 random(3);
    for (int32_t p = 0; p < length; ++p) {
      const int32_t page = page_count - 1 - p / case_.page_tokens;
      for (int32_t head = 0; head < kKvHeads; ++head) {
        std::byte* k = board_.host.data() + kv + page * pages->page_bytes +
                       head * pages->head_bytes +
                       static_cast<int64_t>(p % case_.page_tokens) * case_.head_dim * 2;
        for (int32_t d = 0; d < case_.head_dim; ++d) {
          put(k, d, code(p, head, d));
          put(k + pages->v_offset, d, static_cast<float>(static_cast<int>(random() % 17) - 8));
        }
      }
    }
    for (int32_t row = 0; row < case_.row_count; ++row) {
      for (int32_t head = 0; head < kHeads; ++head) {
        std::byte* at = board_.host.data() + q + (row * row_elems() + head * case_.head_dim) * 2;
        for (int32_t d = 0; d < case_.head_dim; ++d) {
          const int32_t kv_head = head / (kHeads / kKvHeads);
          put(at, d, codes_ ? kCode * code(wanted(row, head), kv_head, d) : 0.0F);
        }
      }
    }
    std::byte* base = board_.device.data();
    op_.pages = *pages;
    op_.pages.base = base + kv;
    op_.head_count = kHeads;
    op_.q = reinterpret_cast<const Bf16*>(base + q);
    op_.q_stride = row_elems();
    op_.slices = reinterpret_cast<const PrefillSlice*>(base + slices);
    op_.slice_count = 1;
    op_.row_count_max = case_.row_count;
    op_.length_max = length;
    op_.table = reinterpret_cast<const int32_t*>(base + table);
    op_.table_stride = page_count;
    op_.multiprocessor_count = case_.multiprocessor_count;
    op_.scale = 1.0F;
    op_.out = reinterpret_cast<Bf16*>(base + out_);
    op_.workspace = base + workspace;
    return copy_to_device(base, board_.host.data(), board_.device.bytes(), stream_);
  }

  static void put(std::byte* row, int32_t dim, float value) {
    const uint16_t bits = float_to_bf16(value);
    std::memcpy(row + int64_t{dim} * 2, &bits, 2);
  }

  const Case case_;
  const bool codes_;
  const Stream stream_;
  Board board_;
  PrefillAttention op_;
  size_t out_ = 0;
};

// Seconds of a prompt of 2,048 tokens, 32 heads over 2 of 128 dimensions, on pages of zeros.
class PromptTimer {
 public:
  explicit PromptTimer(int32_t multiprocessor_count)
      : multiprocessor_count_(multiprocessor_count) {}

  Result<bool> warpgroup_is_faster(Stream stream) {
    constexpr int32_t kTokens = 2048;
    constexpr int32_t kQueryHeads = 32;
    constexpr int32_t kDim = 128;
    auto pages = KvPages::of(KvType::kBf16, 1, 2, kDim, kTokens / 8);
    if (!pages) return pages.error();
    const size_t kv_bytes = static_cast<size_t>(pages->page_bytes) * 8;
    constexpr size_t kRowsBytes = size_t{kTokens} * kQueryHeads * kDim * 2;
    auto memory = DeviceMemory::allocate(kv_bytes + 2 * kRowsBytes + 4096, "timing of attention");
    if (!memory) return memory.error();
    auto host = PinnedMemory::allocate(4096, "timing of attention");
    if (!host) return host.error();
    if (auto filled = fill(memory->data(), 0, memory->bytes(), stream); !filled) {
      return filled.error();
    }
    const PrefillSlice slice{0, kTokens, 0, 0};
    std::memcpy(host->data(), &slice, sizeof slice);
    for (int32_t i = 0; i < 8; ++i) host->as<int32_t>()[64 + i] = i;
    std::byte* small = memory->data() + kv_bytes + 2 * kRowsBytes;
    if (auto copied = copy_to_device(small, host->data(), 4096, stream); !copied) {
      return copied.error();
    }
    PrefillAttention op;
    op.pages = *pages;
    op.pages.base = memory->data();
    op.head_count = kQueryHeads;
    op.q = reinterpret_cast<const Bf16*>(memory->data() + kv_bytes);
    op.q_stride = int64_t{kQueryHeads} * kDim;
    op.slices = reinterpret_cast<const PrefillSlice*>(small);
    op.slice_count = 1;
    op.row_count_max = kTokens;
    op.length_max = kTokens;
    op.table = reinterpret_cast<const int32_t*>(small + 256);
    op.table_stride = 8;
    op.multiprocessor_count = multiprocessor_count_;
    op.scale = 0.088F;
    op.out = reinterpret_cast<Bf16*>(memory->data() + kv_bytes + kRowsBytes);
    std::array<double, 2> seconds{};
    for (const bool warpgroup : {false, true}) {
      op.warpgroup = warpgroup;
      auto best = best_seconds(op, stream);
      if (!best) return best.error();
      seconds[warpgroup ? 1 : 0] = *best;
    }
    return seconds[1] < seconds[0];
  }

 private:
  static Result<double> best_seconds(const PrefillAttention& op, Stream stream) {
    double best = 0.0;
    for (int round = 0; round < 4; ++round) {  // the first one warms up
      constexpr int kLaunches = 10;
      const int64_t before_ns = monotonic_ns();
      for (int i = 0; i < kLaunches; ++i) {
        if (auto ran = run_prefill_attention(op, stream); !ran) return ran.error();
      }
      if (auto done = wait(stream); !done) return done.error();
      const double seconds = static_cast<double>(monotonic_ns() - before_ns) * 1e-9;
      if (round == 1 || (round > 1 && seconds < best)) best = seconds;
    }
    return best;
  }

  const int32_t multiprocessor_count_;
};

}  // namespace

Result<WarpgroupVerdict> check_warpgroup_attention(Stream stream) {
  for (const Case& one : kCases) {
    for (const bool codes : {true, false}) {
      // Long ones ask where sums are put aside and joined, which one kind tells.
      if (!codes && one.cached_count + one.row_count > kPrefillChunk) continue;
      auto verdict = AttentionCheck(one, codes, stream).run();
      if (!verdict || !verdict->right) return verdict;
    }
  }
  return WarpgroupVerdict{true, ""};
}

Result<WarpgroupUse> ask_for_warpgroups(int32_t multiprocessor_count, Stream stream) {
  WarpgroupUse out;
  const auto products = check_warpgroup_gemm(stream);
  if (!products) return products.error();
  out.products = products->right;
  if (!products->right) out.wrong = "products: " + products->why;
  const auto attention = check_warpgroup_attention(stream);
  if (!attention) return attention.error();
  if (attention->right) {
    const auto faster = PromptTimer(multiprocessor_count).warpgroup_is_faster(stream);
    if (!faster) return faster.error();
    out.attention = *faster;
  } else {
    out.wrong += (out.wrong.empty() ? "attention: " : "; attention: ") + attention->why;
  }
  return out;
}

}  // namespace updraft::cuda
