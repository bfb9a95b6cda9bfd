// Opening the device, the model's memory on it, and what steps will need: all before the first of
// them (cuda_step.cpp).
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/cuda/build_id.h"
#include "kernels/cuda/canary.h"
#include "kernels/cuda/cuda_backend_class.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/gemm_passes.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/step_ops.h"
#include "kernels/cuda/tune.h"
#include "kernels/cuda/warpgroup_check.h"

namespace updraft::cuda {
namespace {

constexpr int64_t kCountLimit = int64_t{1} << 30;
// Partial sums of attention over long contexts: more rows than fit run in several launches.
constexpr size_t kWorkspaceBytesMax = size_t{256} << 20;
constexpr uint8_t kTuneByte =
    0x3C;  // of inputs while tuning: 0.011 in bfloat16, not the cheap zero
constexpr double kTuneLeastMs = 1.0;

// What float weights of layers are kept in.
std::optional<DType> float_format(const CudaConfig& config) {
  if (config.activations == CudaActivations::kInt8) return DType::kI8;
  if (config.activations == CudaActivations::kFp8 || config.fp8_weights) return DType::kF8_E4M3;
  return std::nullopt;
}

Result<KvType> kv_type_of(DType type) {
  switch (type) {
    case DType::kF16:  // the device has its range in bfloat16
    case DType::kBF16:
      return KvType::kBf16;
    case DType::kQ8_0:
      return KvType::kInt8;
    case DType::kF8_E4M3:
      return KvType::kFp8;
    default:
      return fail(std::string("cuda: KV pages of ") + dtype_info(type).name +
                  " (f16, bf16, int8 or fp8)");
  }
}

// Asked once for each device and process: one part of the answer is a time, and two backends on one
// device are to give the same bits.
Result<WarpgroupUse> warpgroups_of(int32_t device, int32_t multiprocessor_count, Stream stream) {
  static std::mutex mutex;
  static std::map<int32_t, WarpgroupUse> answers;
  const std::lock_guard lock(mutex);
  const auto known = answers.find(device);
  if (known != answers.end()) return known->second;
  auto asked = ask_for_warpgroups(multiprocessor_count, stream);
  if (asked) answers[device] = *asked;
  return asked;
}

}  // namespace

CudaBackend::CudaBackend(const CudaConfig& config, DeviceProperties properties, DeviceBudget budget,
                         OwnedStream stream, Uploader uploader,
                         std::unique_ptr<GemmDevice> gemm_device, bool warpgroup_attention,
                         bool captures)
    : config_(config),
      properties_(std::move(properties)),
      budget_(budget),
      stream_(std::move(stream)),
      weights_(std::move(uploader), float_format(config),
               config.activations != CudaActivations::kBf16),
      gemm_device_(std::move(gemm_device)),
      warpgroup_attention_(warpgroup_attention),
      captures_(captures) {}

std::string CudaBackend::description() const {
  return "cuda " + properties_.name + ", compute " + std::to_string(properties_.compute_major) +
         "." + std::to_string(properties_.compute_minor) + ", " +
         std::to_string(properties_.multiprocessor_count) + " multiprocessors" +
         (config_.activations == CudaActivations::kBf16
              ? std::string()
              : std::string(", ") + cuda_activations_name(config_.activations) + " activations") +
         (weights_.streamed_count() == 0
              ? ""
              : ", " + std::to_string(weights_.streamed_count()) +
                    " weight matrices in host memory (" +
                    std::to_string(weights_.streamed_bytes() >> 20) + " MiB)");
}

Result<Mat> CudaBackend::add_matrix(std::span<const WeightView> parts) {
  enter();
  return weights_.add_matrix(parts, false, budget_);
}
Result<Mat> CudaBackend::add_split_matrix(std::span<const WeightView> parts,
                                          const Split& /*split*/) {
  enter();
  return weights_.add_matrix(parts, true, budget_);
}
Result<Vec> CudaBackend::add_vector(std::span<const float> values) {
  enter();
  return weights_.add_vector(values, budget_, stream());
}

bool CudaBackend::never_sample(std::span<const int32_t> ids) {
  enter();
  std::vector<int32_t> known;
  for (const int32_t id : ids) {
    if (id >= 0 && id < vocab_count_) known.push_back(id);
  }
  graphs_.clear();
  banned_count_ = static_cast<int32_t>(known.size());
  if (known.empty()) return true;
  return send_to_device(banned_, known.data(), known.size() * sizeof(int32_t), "banned tokens",
                        budget_, stream())
      .ok();
}

Result<Act> CudaBackend::add_act(int64_t rows_max, int64_t cols, bool residual) {
  enter();
  if (rows_max <= 0 || cols <= 0 || rows_max > kCountLimit || cols > kCountLimit) {
    return fail("activation of " + std::to_string(rows_max) + " x " + std::to_string(cols) +
                ": out of range");
  }
  // A step may be padded to more rows than it can have.
  const int64_t rows =
      rows_max <= kDecodeRowsMax ? decode_bucket(static_cast<int32_t>(rows_max)) : rows_max;
  Activation out;
  out.rows_max = rows_max;
  out.cols = cols;
  out.residual = residual;
  auto memory =
      budget_.take(static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols) * (residual ? 4 : 2),
                   "activation of " + std::to_string(rows_max) + " x " + std::to_string(cols));
  if (!memory) return memory.error();
  out.memory = std::move(*memory);
  activations_.push_back(std::move(out));
  rows_max_ = std::max(rows_max_, rows);
  cols_max_ = std::max(cols_max_, cols);
  return static_cast<Act>(activations_.size() - 1);
}

Result<void> CudaBackend::reserve_logits(int64_t logit_rows_max, int64_t vocab_count) {
  enter();
  if (logit_rows_max <= 0 || vocab_count <= 0 || logit_rows_max > kCountLimit ||
      vocab_count > kCountLimit) {
    return fail("logits of " + std::to_string(logit_rows_max) + " x " +
                std::to_string(vocab_count) + ": out of range");
  }
  logit_rows_max_ = logit_rows_max <= kDecodeRowsMax
                        ? decode_bucket(static_cast<int32_t>(logit_rows_max))
                        : logit_rows_max;
  vocab_count_ = vocab_count;
  const uint64_t bytes = static_cast<uint64_t>(logit_rows_max_ * vocab_count) * sizeof(float);
  if (auto grown = budget_.grow(logits_, bytes, "logits"); !grown) return grown;
  auto host = PinnedMemory::allocate(bytes, "logits");
  if (!host) return host.error();
  host_logits_ = std::move(*host);
  return {};
}

uint64_t CudaBackend::kv_page_bytes(const KvShape& shape) const {
  const auto type = kv_type_of(shape.type);
  const auto pages = KvPages::of(type ? *type : KvType::kBf16, shape.layer_count,
                                 shape.kv_head_count, shape.head_dim, shape.page_tokens);
  // A shape that make_kv_pool() will refuse.
  if (!pages) return 1;
  return static_cast<uint64_t>(pages->page_bytes);
}

Result<void> CudaBackend::make_kv_pool(const KvShape& shape) {
  enter();
  const auto type = kv_type_of(shape.type);
  if (!type) return type.error();
  auto pages =
      KvPages::of(*type, shape.layer_count, shape.kv_head_count, shape.head_dim, shape.page_tokens);
  if (!pages) return pages.error();
  if (shape.page_count < 1) return fail("cuda: a KV pool without pages");
  kv_ = shape;
  pages_ = *pages;
  const uint64_t bytes =
      static_cast<uint64_t>(pages_.page_bytes) * static_cast<uint64_t>(shape.page_count);
  if (auto grown = budget_.grow(pool_, bytes, "KV pool"); !grown) return grown;
  pages_.base = pool_.data();
  if (auto taken = take_scratch(); !taken) return taken;
  graphs_.clear();
  if (auto finished = weights_.finish(budget_); !finished) return finished;
  return config_.tune ? tune() : Result<void>();
}

// Everything that the largest step needs.
Result<void> CudaBackend::take_scratch() {
  UPDRAFT_CHECK(rows_max_ > 0 && logit_rows_max_ > 0, "activations and logits before the KV pool");
  if (kv_.context_tokens == 0) kv_.context_tokens = kv_.page_count * kv_.page_tokens;
  if (kv_.head_count == 0) kv_.head_count = static_cast<int32_t>(cols_max_ / kv_.head_dim);

  StepShape largest;
  largest.rows_padded = static_cast<int32_t>(rows_max_);
  largest.logit_rows_padded = static_cast<int32_t>(logit_rows_max_);
  largest.prefill_slices = static_cast<int32_t>(std::min(rows_max_, logit_rows_max_));
  const int32_t pages_of_one = (kv_.context_tokens + kv_.page_tokens - 1) / kv_.page_tokens;
  const int64_t entries = std::min(rows_max_, logit_rows_max_) * pages_of_one;
  largest.table_entries = static_cast<int32_t>(std::min(entries, kCountLimit));
  const size_t metadata_bytes = StepLayout::of(largest).bytes;
  if (auto r = budget_.grow(metadata_, metadata_bytes, "step metadata"); !r) return r;
  int64_t dim = 0;
  for (const Activation& act : activations_) {
    if (act.residual) dim = std::max(dim, act.cols);
  }
  auto ring = StepRing::open({metadata_bytes, static_cast<size_t>(rows_max_ * dim) * sizeof(float),
                              static_cast<int32_t>(logit_rows_max_)});
  if (!ring) return ring.error();
  ring_.emplace(std::move(*ring));

  const auto rows = static_cast<uint64_t>(rows_max_);
  const auto logit_rows = static_cast<uint64_t>(logit_rows_max_);
  const auto half_head = static_cast<uint64_t>(kv_.head_dim) / 2;
  if (auto r = budget_.grow(rotations_, rows * half_head * sizeof(Float2), "rotations"); !r)
    return r;
  if (auto r = budget_.grow(
          gated_, rows * static_cast<uint64_t>(weights_.ungated_cols_max()) * sizeof(Bf16),
          "gate and up");
      !r) {
    return r;
  }
  if (auto r = budget_.grow(gathered_, logit_rows * static_cast<uint64_t>(cols_max_) * sizeof(Bf16),
                            "rows for logits");
      !r) {
    return r;
  }
  if (auto r = budget_.grow(tokens_, logit_rows * sizeof(int32_t), "tokens"); !r) return r;
  const int32_t length_max = padded_length(kv_.context_tokens);
  const size_t attention_bytes = workspace_bytes(pages_, kv_.head_count, rows_max_, length_max);
  if (auto r = budget_.grow(workspace_, attention_bytes, "attention's workspace"); !r) return r;
  const auto items =
      static_cast<uint64_t>(decode_work_items_max(static_cast<int32_t>(rows_max_), length_max));
  if (auto r = budget_.grow(work_items_, items * sizeof(DecodeWorkItem), "attention's work"); !r)
    return r;
  if (auto r = budget_.grow(work_counts_, rows * sizeof(int32_t), "attention's work"); !r) return r;
  const size_t counter_bytes =
      decode_attention_counter_bytes(static_cast<int32_t>(rows_max_), kv_.head_count);
  if (auto r = budget_.grow(attention_counters_, counter_bytes, "attention's counters"); !r)
    return r;
  if (auto r = fill(attention_counters_.data(), 0, attention_counters_.bytes(), stream()); !r)
    return r;
  const uint64_t bands = static_cast<uint64_t>(dim) / kTileRows + 1;
  if (auto r = budget_.grow(band_sums_, kSkinnyTokensMax * bands * sizeof(float), "norms"); !r)
    return r;
  if (auto r = budget_.grow(factors_, rows * sizeof(float), "norms"); !r) return r;
  if (auto r = take_quantized(); !r) return r;
  size_t scratch_bytes = 0;
  for (const Matrix& m : weights_.matrices()) {
    for (const MatrixPart& part : m.parts) {
      scratch_bytes = std::max(scratch_bytes, gemm_scratch_bytes(*gemm_device_, part.layout,
                                                                 static_cast<int32_t>(rows_max_)));
    }
  }
  if (auto r = budget_.grow(scratch_, scratch_bytes, "scratch of products"); !r) return r;
  return fill(scratch_.data(), 0, scratch_.bytes(), stream());
}

// With the activations as input and output: no step has begun. What streams is bound by its copies,
// whichever way it is multiplied. In a group each device measures for itself what it alone
// computes; what all of them compute alike (the head) must have the same bits on each, so nothing
// is chosen for it.
Result<void> CudaBackend::tune() {
  std::vector<TunedProduct> products;
  TuneRoom room;
  const auto widest = [](std::span<std::byte>& at, const DeviceMemory& memory) {
    if (memory.bytes() > at.size()) at = {memory.data(), memory.bytes()};
  };
  for (const Activation& act : activations_) {
    if (!act.residual) widest(room.in, act.memory);
  }
  room.out = room.in;
  for (const Matrix& m : weights_.matrices()) {
    if (!m.of_layer && config_.comm != nullptr) continue;
    for (const MatrixPart& part : m.parts) {
      if (part.streamed >= 0) continue;
      const int64_t tokens = m.of_layer ? rows_max_ : logit_rows_max_;
      products.push_back({part.layout, part.memory.data(), static_cast<int32_t>(tokens),
                          !m.of_layer, part.quantized_input});
    }
  }
  // The head writes f32.
  widest(room.in, gathered_);
  for (const Activation& act : activations_) {
    if (act.scales.bytes() != 0)
      room.in_scales = {act.scales.as<float>(), static_cast<size_t>(rows_max_)};
  }
  widest(room.out, logits_);
  widest(room.out, gated_);
  room.scratch = {scratch_.data(), scratch_.bytes()};
  const std::span<std::byte> scales = std::as_writable_bytes(room.in_scales);
  for (const std::span<std::byte> one : {room.in, room.out, scales}) {
    if (one.empty()) continue;
    if (auto filled = fill(one.data(), kTuneByte, one.size(), stream()); !filled) return filled;
  }
  std::optional<TuneCache> cache;
  if (!config_.tune_folder.empty()) {
    cache = {config_.tune_folder,
             {properties_.name,
              std::to_string(properties_.compute_major) + "." +
                  std::to_string(properties_.compute_minor),
              properties_.driver,
              gemm_device_->cublas() == nullptr ? "none" : gemm_device_->cublas()->version(),
              build_id(), cuda_activations_name(config_.activations)}};
  }
  const auto tuned =
      tune_products(*gemm_device_, products, room, cache, host_timer(stream(), kTuneLeastMs),
                    stream(), config_.note, config_.progress);
  return tuned ? wait(stream()) : tuned.error();
}

// Beside each activation as wide as what a quantised product reads.
Result<void> CudaBackend::take_quantized() {
  for (Activation& act : activations_) {
    const auto reads = [&](const Matrix& m) {
      return m.cols == act.cols &&
             std::any_of(m.parts.begin(), m.parts.end(),
                         [](const MatrixPart& part) { return part.quantized_input; });
    };
    const std::span<const Matrix> all = weights_.matrices();
    if (act.residual || std::none_of(all.begin(), all.end(), reads)) continue;
    const auto rows = static_cast<uint64_t>(rows_max_);
    const uint64_t row_bytes_sum =
        std::max(rows, sizeof(Bf16) * std::min<uint64_t>(rows, kSkinnyTokensMax));
    if (auto r = budget_.grow(act.quantized, row_bytes_sum * static_cast<uint64_t>(act.cols),
                              "quantised activations");
        !r) {
      return r;
    }
    if (auto r = budget_.grow(act.scales, rows * sizeof(float), "scales of activations"); !r)
      return r;
  }
  return {};
}

Result<void> CudaBackend::make_swap_space(int32_t page_count) {
  enter();
  UPDRAFT_CHECK(pool_.bytes() != 0, "swap space behind the KV pool");
  return swap_.open(page_count, pages_.page_bytes);
}

// Of the lengths that a graph is captured for.
int32_t CudaBackend::padded_length(int32_t length) const {
  int32_t padded = kAttentionChunk;
  while (padded < length) padded *= 2;
  return padded;
}

// Of decode attention, as far as the limit allows, and of prefill attention; they take turns.
size_t CudaBackend::workspace_bytes(const KvPages& pages, int32_t head_count, int64_t rows,
                                    int32_t length_max) const {
  const size_t one = decode_attention_workspace_bytes(pages, 1, head_count, length_max);
  const size_t all =
      decode_attention_workspace_bytes(pages, static_cast<int32_t>(rows), head_count, length_max);
  return std::max(
      {one, std::min(kWorkspaceBytesMax, all),
       prefill_attention_workspace_bytes(pages, properties_.multiprocessor_count, length_max)});
}

uint64_t CudaBackend::scratch_bytes(const KvShape& shape, int64_t rows_max) const {
  const auto type = kv_type_of(shape.type);
  const auto pages = KvPages::of(type ? *type : KvType::kBf16, shape.layer_count,
                                 shape.kv_head_count, shape.head_dim, shape.page_tokens);
  if (!pages) return 0;  // a shape that make_kv_pool() will refuse
  const int32_t length_max = padded_length(shape.context_tokens);
  const auto rows = static_cast<uint64_t>(rows_max);
  const uint64_t table = rows * static_cast<uint64_t>(shape.context_tokens / shape.page_tokens + 1);
  const auto items =
      static_cast<uint64_t>(decode_work_items_max(static_cast<int32_t>(rows_max), length_max));
  return workspace_bytes(*pages, shape.head_count, rows_max, length_max) + table * sizeof(int32_t) +
         items * sizeof(DecodeWorkItem) + gemm_library_bytes_max(*gemm_device_, rows);
}

int32_t decode_bucket(int32_t rows) {
  if (rows > kDecodeRowsMax) return 0;
  if (rows <= 8) return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(rows)));
  return (rows + 7) / 8 * 8;
}

CudaCounters cuda_counters(const Backend& backend) {
  const auto* cuda = dynamic_cast<const CudaBackend*>(&backend);
  UPDRAFT_CHECK(cuda != nullptr, "a CUDA backend");
  return cuda->counters();
}

Result<std::unique_ptr<Backend>> open_cuda_backend(const CudaConfig& config) {
  const auto count = device_count();
  if (!count) return count.error();
  if (config.device < 0 || config.device >= *count) {
    return fail("cuda: GPU " + std::to_string(config.device) + " of " + std::to_string(*count));
  }
  if (auto used = use_device(config.device); !used) return used.error();
  auto properties = device_properties(config.device);
  if (!properties) return properties.error();
  if (properties->compute_major < 8) {
    return fail("cuda: " + properties->name + " has compute capability " +
                std::to_string(properties->compute_major) + "." +
                std::to_string(properties->compute_minor) + "; 8.0 (A100) is the least");
  }
  if (config.activations == CudaActivations::kFp8 && properties->compute_major < 9) {
    return fail("cuda: activations = fp8: " + properties->name + " has compute capability " +
                std::to_string(properties->compute_major) + "." +
                std::to_string(properties->compute_minor) +
                "; its tensor cores take e4m3 from 9.0 on (H100); int8 would do");
  }
  const bool both = config.fp8_weights && config.activations == CudaActivations::kInt8;
  if (both) return fail("cuda: weights = fp8 with activations = int8: one format multiplies");
  const auto memory = memory_figures();
  if (!memory) return memory.error();
  const uint64_t plannable = plannable_bytes(memory->free_bytes);
  const bool by_setting = config.max_memory_bytes != 0 && config.max_memory_bytes < plannable;
  auto stream = OwnedStream::create();
  if (!stream) return stream.error();
  auto uploader = Uploader::open(config.pack_threads);
  if (!uploader) return uploader.error();
  auto cublas = Cublas::open();
  if (!cublas) return cublas.error();
  if (*cublas == nullptr && config.note && !properties->emulated)
    config.note(
        "cuda: no libcublasLt.so.13 is found: products of many tokens take our own kernels");
  auto gemm_device = GemmDevice::open({properties->multiprocessor_count,
                                       10 * properties->compute_major + properties->compute_minor},
                                      std::move(*cublas));
  if (!gemm_device) return gemm_device.error();
  if (auto checked = run_canaries(**gemm_device, stream->get(), false); !checked)
    return checked.error();
  bool captures = config.graphs;
  if (captures) {
    const auto captured = run_canaries(**gemm_device, stream->get(), true);
    captures = captured.ok();
    if (!captured && config.note)
      config.note("cuda: steps are not captured, graphs do not work here: " + captured.message());
  }
  // Written for this one capability; the emulator's tests ask by themselves.
  WarpgroupUse use;
  if (config.warpgroups && properties->compute_major == 9 && properties->compute_minor == 0 &&
      !properties->emulated) {
    const auto asked =
        warpgroups_of(config.device, properties->multiprocessor_count, stream->get());
    if (!asked) return asked.error();
    use = *asked;
    if (!use.wrong.empty() && config.note)
      config.note("cuda: kernels for capability 9.0 are left alone, they are not right here: " +
                  use.wrong);
  }
  (*gemm_device)->set_warpgroup(use.products);
  return std::unique_ptr<Backend>(new CudaBackend(
      config, std::move(*properties),
      DeviceBudget(by_setting ? config.max_memory_bytes : plannable, by_setting),
      std::move(*stream), std::move(*uploader), std::move(*gemm_device), use.attention, captures));
}

}  // namespace updraft::cuda
