#include "tools/gpu/attention_bench.h"

#include <algorithm>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/median.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/runtime.h"

namespace updraft::gpu {
namespace {

using namespace updraft::cuda;
using Print = std::function<void(const Line&)>;

constexpr int32_t kPageTokens = 64;
constexpr int32_t kHeads = 32;
constexpr int32_t kKvHeads = 2;
constexpr int32_t kHeadDim = 128;

const char* name_of(KvType type) {
  switch (type) {
    case KvType::kBf16:
      return "bf16";
    case KvType::kInt8:
      return "int8";
    case KvType::kFp8:
      return "fp8";
  }
  return "";
}

template <typename T>
Result<DeviceMemory> upload(const std::vector<T>& values, const char* what, Stream stream) {
  auto memory = DeviceMemory::allocate(values.size() * sizeof(T), what);
  if (!memory) return memory.error();
  auto pinned = PinnedMemory::allocate(values.size() * sizeof(T), what);
  if (!pinned) return pinned.error();
  std::copy(values.begin(), values.end(), pinned->template as<T>());
  if (auto done = copy_to_device(memory->data(), pinned->data(), pinned->bytes(), stream); !done)
    return done.error();
  if (auto done = cuda::wait(stream); !done) return done.error();
  return memory;
}

// Pages of `sequences` sequences of `length` positions in one layer, zeros, in a mixed order.
struct Context {
  KvPages pages;
  DeviceMemory memory;
  DeviceMemory table;
  int32_t table_stride = 0;

  static Result<Context> make(KvType type, int32_t sequences, int32_t length, Stream stream) {
    Context out;
    auto pages = KvPages::of(type, 1, kKvHeads, kHeadDim, kPageTokens);
    if (!pages) return pages.error();
    out.pages = *pages;
    out.table_stride = (length + kPageTokens - 1) / kPageTokens;
    const int32_t count = out.table_stride * sequences;
    auto memory = DeviceMemory::allocate(
        static_cast<size_t>(count) * static_cast<size_t>(out.pages.page_bytes), "KV pages");
    if (!memory) return memory.error();
    out.memory = std::move(*memory);
    out.pages.base = out.memory.data();
    if (auto done = fill(out.memory.data(), 0, out.memory.bytes(), stream); !done)
      return done.error();
    std::vector<int32_t> table;
    for (int32_t s = 0; s < sequences; ++s) {
      for (int32_t i = 0; i < out.table_stride; ++i) table.push_back(i * sequences + s);
    }
    auto uploaded = upload(table, "page table", stream);
    if (!uploaded) return uploaded.error();
    out.table = std::move(*uploaded);
    return out;
  }
};

class Bench {
 public:
  Bench(const AttentionBenchConfig& config, const Print& print) : config_(config), print_(print) {}

  Result<void> run() {
    auto stream = OwnedStream::create();
    if (!stream) return stream.error();
    stream_ = stream->get();
    const auto properties = device_properties(0);
    if (!properties) return properties.error();
    multiprocessors_ = properties->multiprocessor_count;
    shared_bytes_ = properties->multiprocessor_shared_bytes;
    struct Case {
      int32_t sequences;
      int32_t length;
    };
    const std::vector<Case> cases =
        config_.smoke ? std::vector<Case>{{2, 300}}
                      : std::vector<Case>{{1, 4096}, {64, 4096}, {1, 32768}, {8, 32768}};
    for (const KvType type : {KvType::kBf16, KvType::kInt8, KvType::kFp8}) {
      for (const Case& one : cases) {
        if (auto done = decode(type, one.sequences, one.length); !done) return done;
      }
    }
    for (const int32_t tokens :
         config_.smoke ? std::vector<int32_t>{100} : std::vector<int32_t>{2048, 8192}) {
      for (const KvType type : {KvType::kBf16, KvType::kInt8, KvType::kFp8}) {
        if (auto done = prefill(type, tokens, false); !done) return done;
      }
      if (config_.warpgroups && properties->compute_major == 9 && properties->compute_minor == 0) {
        if (auto done = prefill(KvType::kBf16, tokens, true); !done) return done;
      }
    }
    return {};
  }

 private:
  // Median seconds of one `launch` among many.
  template <typename Launch>
  Result<double> seconds_of(const Launch& launch) {
    const int count = config_.smoke ? 1 : 50;
    std::vector<double> seconds;
    for (int repetition = 0; repetition < (config_.smoke ? 1 : 6); ++repetition) {
      const int64_t before_ns = monotonic_ns();
      for (int i = 0; i < count; ++i) {
        if (auto done = launch(); !done) return done.error();
      }
      if (auto done = cuda::wait(stream_); !done) return done.error();
      const double each = static_cast<double>(monotonic_ns() - before_ns) * 1e-9 / count;
      if (repetition > 0 || config_.smoke) seconds.push_back(each);  // the first one warms up
    }
    return median(seconds);
  }

  Result<void> decode(KvType type, int32_t sequences, int32_t length) {
    auto context = Context::make(type, sequences, length, stream_);
    if (!context) return context.error();
    std::vector<int32_t> lines(static_cast<size_t>(sequences));
    for (int32_t s = 0; s < sequences; ++s) lines[static_cast<size_t>(s)] = s;
    auto line_memory = upload(lines, "lines", stream_);
    auto lengths = upload(std::vector<int32_t>(lines.size(), length), "lengths", stream_);
    auto q =
        upload(std::vector<Bf16>(lines.size() * kHeads * kHeadDim, Bf16{0x3C00}), "q", stream_);
    auto out = DeviceMemory::allocate(q ? q->bytes() : 1, "out");
    auto items = DeviceMemory::allocate(
        static_cast<size_t>(decode_work_items_max(sequences, length)) * sizeof(DecodeWorkItem),
        "work");
    auto count = DeviceMemory::allocate(sizeof(int32_t), "work count");
    auto workspace = DeviceMemory::allocate(
        std::max<size_t>(
            256, decode_attention_workspace_bytes(context->pages, sequences, kHeads, length)),
        "workspace");
    for (const auto* memory : {&line_memory, &lengths, &q, &out, &items, &count, &workspace}) {
      if (!*memory) return memory->error();
    }
    DecodeWork work;
    work.rows = sequences;
    work.lengths = lengths->as<int32_t>();
    work.lines = line_memory->as<int32_t>();
    work.length_max = length;
    work.item_count = count->as<int32_t>();
    work.items = items->as<DecodeWorkItem>();
    if (auto done = run_decode_work(work, stream_); !done) return done;
    DecodeAttention op;
    op.pages = context->pages;
    op.rows = sequences;
    op.head_count = kHeads;
    op.q = q->as<Bf16>();
    op.q_stride = kHeads * kHeadDim;
    op.lengths = work.lengths;
    op.length_max = length;
    op.item_count = work.item_count;
    op.items = work.items;
    op.table = context->table.as<int32_t>();
    op.table_stride = context->table_stride;
    op.multiprocessor_count = multiprocessors_;
    op.multiprocessor_shared_bytes = shared_bytes_;
    op.scale = 0.088F;
    op.out = out->as<Bf16>();
    op.workspace = workspace->data();
    const auto seconds = seconds_of([&] { return run_decode_attention(op, stream_); });
    if (!seconds) return seconds.error();
    const double bytes = static_cast<double>(sequences) * length *
                         static_cast<double>(context->pages.layer_bytes) / kPageTokens;
    Line line;
    line.group = "attention";
    line.name = std::string("decode, ") + name_of(type) + " KV, " + std::to_string(sequences) +
                " x " + std::to_string(length);
    line.value = bytes / *seconds * 1e-9;
    line.unit = "GB/s";
    if (config_.ceilings.copy_bytes_per_s > 0.0) {
      line.share = bytes / *seconds / config_.ceilings.copy_bytes_per_s;
      line.of = "copy";
      // What 4 MiB or less hold comes from the caches: not the memory's figure.
      if (sequences > 1) {
        line.target = 0.65;
        line.moonshot = 0.85;
      }
    }
    print_(line);
    return {};
  }

  Result<void> prefill(KvType type, int32_t tokens, bool warpgroup) {
    auto context = Context::make(type, 1, tokens, stream_);
    if (!context) return context.error();
    auto slices = upload(std::vector<PrefillSlice>{{0, tokens, 0, 0}}, "slices", stream_);
    auto q =
        upload(std::vector<Bf16>(static_cast<size_t>(tokens) * kHeads * kHeadDim, Bf16{0x3C00}),
               "q", stream_);
    auto out = DeviceMemory::allocate(q ? q->bytes() : 1, "out");
    auto workspace = DeviceMemory::allocate(
        std::max<size_t>(
            256, prefill_attention_workspace_bytes(context->pages, multiprocessors_, tokens)),
        "workspace");
    for (const auto* memory : {&slices, &q, &out, &workspace}) {
      if (!*memory) return memory->error();
    }
    PrefillAttention op;
    op.pages = context->pages;
    op.head_count = kHeads;
    op.q = q->as<Bf16>();
    op.q_stride = kHeads * kHeadDim;
    op.slices = slices->as<PrefillSlice>();
    op.slice_count = 1;
    op.row_count_max = tokens;
    op.length_max = tokens;
    op.table = context->table.as<int32_t>();
    op.table_stride = context->table_stride;
    op.multiprocessor_count = multiprocessors_;
    op.scale = 0.088F;
    op.out = out->as<Bf16>();
    op.warpgroup = warpgroup;
    op.workspace = workspace->data();
    const auto seconds = seconds_of([&] { return run_prefill_attention(op, stream_); });
    if (!seconds) return seconds.error();
    // Causal: half of the square, two products.
    const double operations = 2.0 * tokens * tokens * kHeads * kHeadDim;
    Line line;
    line.group = "attention";
    line.name = std::string("prefill, ") + name_of(type) + " KV, " + std::to_string(tokens) +
                (warpgroup ? ", warpgroups" : "");
    line.value = operations / *seconds * 1e-12;
    line.unit = "T/s";
    if (config_.ceilings.bf16_per_s > 0.0) {
      line.share = operations / *seconds / config_.ceilings.bf16_per_s;
      line.of = "bf16";
    }
    print_(line);
    return {};
  }

  const AttentionBenchConfig& config_;
  const Print& print_;
  Stream stream_ = nullptr;
  int32_t multiprocessors_ = 0;
  int32_t shared_bytes_ = 0;
};

}  // namespace

Result<void> run_attention_bench(const AttentionBenchConfig& config, const Print& print) {
  return Bench(config, print).run();
}

}  // namespace updraft::gpu
