// The backend: handles to device memory, checks of what the engine passes, and each operation as
// the launch of its kernels. What a step is made of stands in step_metadata.h, how its memory on
// the host is kept from the next step in step_ring.h, when it is captured or replayed in
// graph_cache.h.
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <bit>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "kernels/cuda/build_id.h"
#include "kernels/cuda/canary.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/device_budget.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_passes.h"
#include "kernels/cuda/graph_cache.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/skinny_gemm.h"
#include "kernels/cuda/step_metadata.h"
#include "kernels/cuda/step_ops.h"
#include "kernels/cuda/step_ring.h"
#include "kernels/cuda/swap_space.h"
#include "kernels/cuda/tune.h"
#include "kernels/cuda/warpgroup_check.h"
#include "kernels/cuda/weight_store.h"
#include "kernels/quant/quant.h"

namespace updraft::cuda {
namespace {

constexpr int32_t kDecodeRowsMax = 256;  // of a step that is padded and captured
constexpr int64_t kCountLimit = int64_t{1} << 30;
// Partial sums of attention over long contexts: more rows than fit run in several launches.
constexpr size_t kWorkspaceBytesMax = size_t{256} << 20;
// What products of many tokens may want beside cuBLASLt: its workspace and a tile of weights.
constexpr uint64_t kProductScratchBytes = uint64_t{192} << 20;

constexpr uint8_t kTuneByte =
    0x3C;  // of inputs while tuning: 0.011 in bfloat16, not the cheap zero
constexpr double kTuneLeastMs = 1.0;

// What the device says in the middle of a step is a bug or a broken machine.
void must(const Result<void>& result) {
  if (!result) check_failed(__FILE__, __LINE__, "the GPU does its work", result.message().c_str());
}
template <typename T>
T must(Result<T> result) {
  if (!result) check_failed(__FILE__, __LINE__, "the GPU does its work", result.message().c_str());
  return std::move(*result);
}

struct Activation {
  int64_t rows_max = 0;
  int64_t cols = 0;
  bool residual = false;    // f32
  bool registered = false;  // with the group
  DeviceMemory memory;
  // Of those that quantised products read: the same rows as bytes, or for a few rows as e4m3
  // widened to bfloat16, and their scales.
  DeviceMemory quantized;
  DeviceMemory scales;        // [rows_max]
  bool is_quantized = false;  // they hold what the rows hold
};

// What float weights of layers are kept in.
std::optional<DType> float_format(const CudaConfig& config) {
  if (config.activations == CudaActivations::kInt8) return DType::kI8;
  if (config.activations == CudaActivations::kFp8 || config.fp8_weights) return DType::kF8_E4M3;
  return std::nullopt;
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(const CudaConfig& config, DeviceProperties properties, DeviceBudget budget,
              OwnedStream stream, Uploader uploader, std::unique_ptr<GemmDevice> gemm_device,
              bool warpgroup_attention)
      : config_(config),
        properties_(std::move(properties)),
        budget_(budget),
        stream_(std::move(stream)),
        weights_(std::move(uploader), float_format(config),
                 config.activations != CudaActivations::kBf16),
        gemm_device_(std::move(gemm_device)),
        warpgroup_attention_(warpgroup_attention) {}
  ~CudaBackend() override {
    // Nothing uses memory any more when it is given back.
    (void)use_device(config_.device);
    (void)weights_.wait();
    (void)wait(stream());
  }

  std::string description() const override;
  uint64_t memory_used_bytes() const override { return budget_.used_bytes(); }
  uint64_t memory_total_bytes() const override { return budget_.limit_bytes(); }
  bool has_own_memory() const override { return true; }
  uint64_t scratch_bytes(const KvShape& shape, int64_t rows_max) const override;

  uint64_t kept_bytes(const WeightView& view, bool of_layer) const override {
    return weights_.kept_bytes(view, of_layer);
  }
  void set_weight_rooms(std::span<const uint64_t> bytes) override {
    UPDRAFT_CHECK(bytes.size() == 1, "a room for the one device");
    weights_.set_room(bytes[0]);
  }
  bool keeps_weights_outside() const override { return true; }
  Result<Mat> add_matrix(std::span<const WeightView> parts) override;
  Result<Mat> add_split_matrix(std::span<const WeightView> parts, const Split& split) override;
  Result<Vec> add_vector(std::span<const float> values) override;
  Result<Act> add_activation(int64_t rows_max, int64_t cols) override {
    return add_act(rows_max, cols, false);
  }
  Result<Act> add_residual(int64_t rows_max, int64_t cols) override {
    return add_act(rows_max, cols, true);
  }
  Result<void> reserve_logits(int64_t logit_rows_max, int64_t vocab_count) override;
  Result<void> make_kv_pool(const KvShape& shape) override;
  uint64_t kv_page_bytes(const KvShape& shape) const override;
  Result<void> make_swap_space(int32_t page_count) override;

  bool samples() const override { return true; }
  int32_t steps_in_flight_max() const override { return StepRing::kSteps; }
  bool never_sample(std::span<const int32_t> ids) override;

  CudaCounters counters() const {
    return {static_cast<int64_t>(graphs_.graph_count()), graphs_.replay_count()};
  }

  void begin(const Batch& batch) override;
  void embed(Mat table, Act out) override;
  void residual_norm(const updraft::ResidualNorm& op) override;
  void matmul(Mat weight, Vec bias, Act in, Act out) override;
  void prepare_qkv(const QkvPrepare& op) override;
  void attention(const Attention& op) override;
  void gated_matmul(Mat gate_up, Act in, Act out) override;
  void logits(Mat head, Act in) override;
  void all_reduce(Act act) override;
  void end() override;
  std::span<float> read_logits() override;
  std::span<const int32_t> read_tokens() override;

  void copy_page(int32_t from, int32_t to) override;
  void swap_out(int32_t page, int32_t slot) override;
  void swap_in(int32_t slot, int32_t page) override;
  int64_t swap_ns() override;
  void read_activation(Act act, int64_t rows, std::span<float> out) override;

 private:
  enum class Op : uint8_t {
    kEmbed,
    kNorm,
    kMatmul,
    kPrepare,
    kAttention,
    kGated,
    kLogits,
    kAllReduce
  };

  Stream stream() const { return stream_.get(); }
  // The calling thread's device is this one: the engine's thread is not the one that loaded.
  void enter() const { must(use_device(config_.device)); }

  // The values, checked to be `count`; null for kNoVec.
  const float* values(Vec vec, int64_t count) const {
    if (vec == kNoVec) return nullptr;
    const Vector& vector = weights_.vector(vec);
    UPDRAFT_CHECK(vector.count == count, "a vector of this length");
    return vector.memory.as<float>();
  }
  const Activation& activation(Act act) const {
    UPDRAFT_CHECK(static_cast<size_t>(act) < activations_.size(), "an activation of this backend");
    return activations_[static_cast<size_t>(act)];
  }
  Bf16* rows_of(Act act, int64_t cols) const {
    const Activation& out = activation(act);
    UPDRAFT_CHECK(!out.residual && out.cols == cols && out.rows_max >= shape_.rows,
                  "an activation of this width and as many rows as the step");
    return out.memory.as<Bf16>();
  }
  // The same for who writes them.
  Bf16* output_of(Act act, int64_t cols) {
    Bf16* rows = rows_of(act, cols);
    activations_[static_cast<size_t>(act)].is_quantized = false;
    return rows;
  }
  float* residual_of(Act act, int64_t cols) const {
    const Activation& out = activation(act);
    UPDRAFT_CHECK(out.residual && out.cols == cols && out.rows_max >= shape_.rows,
                  "a residual stream of this width and as many rows as the step");
    return out.memory.as<float>();
  }
  template <typename T>
  T* metadata(size_t offset) const {
    return reinterpret_cast<T*>(metadata_.data() + offset);
  }

  Result<Act> add_act(int64_t rows_max, int64_t cols, bool residual);
  Result<void> take_scratch();
  Result<void> take_quantized();
  Result<void> tune();
  size_t workspace_bytes(const KvPages& pages, int32_t head_count, int64_t rows,
                         int32_t length_max) const;
  int32_t padded_length(int32_t length) const;
  int32_t attention_rows_at_once(int32_t length_max) const;
  bool names(Op op, std::initializer_list<int64_t> operands);
  void quantize(Activation& act);
  bool few_rows() const { return shape_.rows_padded <= kSkinnyTokensMax; }
  const Activation* quantized_input(const Matrix& m, Act in);
  // A product of all of the step's rows, but the head's.
  struct Product {
    Mat weight{};
    Vec bias = kNoVec;
    Act in = kNoAct;
    Act out = kNoAct;
    NormedInput normed;  // of `in`
  };
  void run_product(const Product& product, const ResidualOutput& residual);
  void run_norm(const updraft::ResidualNorm& op, float* factors);
  PrepareQkv prepare_of(const QkvPrepare& op);
  void multiply(const Matrix& m, const Bf16* x, const Activation* quantized, int32_t rows,
                const float* bias, Bf16* y_bf16, float* y_f32, const NormedInput& normed = {},
                const ResidualOutput& residual = {});
  bool joins(const updraft::ResidualNorm& op) const;
  NormedInput normed_input(const Matrix& m, Act in);
  void make_whole(Act act);
  void run_waiting();

  const CudaConfig config_;
  const DeviceProperties properties_;
  DeviceBudget budget_;
  OwnedStream stream_;
  WeightStore weights_;
  std::unique_ptr<GemmDevice> gemm_device_;
  const bool warpgroup_attention_;  // of all prefills: a row's bits depend on it
  std::vector<Activation> activations_;
  int64_t rows_max_ = 0;
  int64_t cols_max_ = 0;
  int64_t logit_rows_max_ = 0;
  int64_t vocab_count_ = 0;

  KvShape kv_;
  KvPages pages_;
  DeviceMemory pool_;
  SwapSpace swap_;

  std::optional<StepRing> ring_;
  DeviceMemory metadata_;   // of the step that runs
  DeviceMemory rotations_;  // [rows, head_dim / 2] Float2
  DeviceMemory gated_;      // [rows, ungated_cols_max]
  DeviceMemory gathered_;   // [logit rows, cols_max]
  DeviceMemory logits_;     // [logit rows, vocab]
  DeviceMemory banned_;     // ids that are never chosen
  int32_t banned_count_ = 0;
  DeviceMemory tokens_;       // [logit rows] that the newest step with samplings chose
  DeviceMemory work_counts_;  // attention's lists of work: [rows], of each launch's first row
  DeviceMemory work_items_;
  DeviceMemory workspace_;  // attention's
  DeviceMemory attention_counters_;
  DeviceMemory band_sums_;  // [kSkinnyTokensMax, hidden dim / 16]
  DeviceMemory factors_;    // [rows]
  DeviceMemory scratch_;    // the products'
  PinnedMemory host_logits_;

  // The step that was begun.
  StepShape shape_;
  StepLayout layout_;
  GraphKey key_;
  GraphCache::Use use_ = GraphCache::Use::kName;
  bool padded_ = false;  // a step of the graph cache
  uint64_t names_ = 0;
  std::vector<std::pair<int32_t, int32_t>> given_runs_;  // first row and count of rows in a row
  std::optional<Rope> rotated_;                          // what rotations_ holds in this step
  bool has_work_ = false;                                // attention's list was made in this step
  // Named, and run with what follows or before it: at most a product and then a norm of what it
  // made, or the preparation of q, k and v.
  std::optional<Product> product_;
  std::optional<updraft::ResidualNorm> norm_;
  std::optional<QkvPrepare> prepare_;
  // The norm whose output lacks its factors: these are in band_sums_, or of many rows in factors_.
  std::optional<updraft::ResidualNorm> split_;
  GraphCache graphs_;
};

uint64_t mixed(uint64_t digest, uint64_t value) {
  return (std::rotl(digest, 13) ^ value) * 0x9E3779B97F4A7C15ULL;
}

// --- load time ---

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

// --- one step ---

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
         items * sizeof(DecodeWorkItem) +
         (gemm_device_->cublas() != nullptr ? kProductScratchBytes : 0);
}

int32_t CudaBackend::attention_rows_at_once(int32_t length_max) const {
  const size_t row_bytes = decode_attention_workspace_bytes(pages_, 1, kv_.head_count, length_max);
  if (row_bytes == 0) return static_cast<int32_t>(rows_max_);
  return std::max(1, static_cast<int32_t>(workspace_.bytes() / row_bytes));
}

void CudaBackend::begin(const Batch& batch) {
  enter();
  UPDRAFT_CHECK(ring_.has_value(), "a KV pool before the first step");
  shape_ = StepShape::of(batch, kv_.page_tokens, kv_.page_count);
  UPDRAFT_CHECK(shape_.rows <= rows_max_, "no more rows than the activations hold");
  UPDRAFT_CHECK(shape_.logit_rows <= logit_rows_max_, "no more logit rows than reserved");
  // Steps with streamed weights are padded though not captured: the devices of a group add up rows
  // of one number, whichever of them stream.
  padded_ = config_.graphs && shape_.prefill_slices == 0 && shape_.given_rows == 0 &&
            shape_.rows <= kDecodeRowsMax;
  use_ = GraphCache::Use::kName;
  if (padded_) {
    shape_.rows_padded = decode_bucket(shape_.rows);
    shape_.logit_rows_padded = shape_.logit_rows == 0 ? 0 : decode_bucket(shape_.logit_rows);
    shape_.decode_length_max = padded_length(shape_.decode_length_max);
    key_ = {shape_.rows_padded, shape_.decode_length_max, shape_.logit_rows_padded, shape_.samples,
            shape_.sequences_share};
    if (weights_.streamed_count() == 0) use_ = graphs_.begin(key_);
  }
  layout_ = StepLayout::of(shape_);
  UPDRAFT_CHECK(layout_.bytes <= metadata_.bytes(), "no more sequences than logit rows");

  must(swap_.end_moves(stream()));
  must(ring_->begin());
  write_step(batch, shape_, layout_, ring_->metadata());
  must(copy_to_device(metadata_.data(), ring_->metadata().data(), layout_.bytes, stream()));
  given_runs_.clear();
  if (shape_.given_rows > 0) {
    UPDRAFT_CHECK(batch.given_rows.size() <= ring_->given_rows().size(), "room for given rows");
    std::copy(batch.given_rows.begin(), batch.given_rows.end(), ring_->given_rows().begin());
    for (int32_t row = 0; row < shape_.rows; ++row) {
      if (batch.token_ids[static_cast<size_t>(row)] >= 0) continue;
      const bool next =
          !given_runs_.empty() && given_runs_.back().first + given_runs_.back().second == row;
      if (!next) given_runs_.emplace_back(row, 0);
      ++given_runs_.back().second;
    }
    UPDRAFT_CHECK(batch.given_rows.size() % static_cast<size_t>(shape_.given_rows) == 0,
                  "one given row for each id below 0");
  }
  names_ = 0;
  for (Activation& act : activations_) act.is_quantized = false;
  rotated_.reset();
  has_work_ = false;
  split_.reset();
  if (use_ == GraphCache::Use::kCapture) must(begin_capture(stream()));
}

// Notes the operation; false when a replay does it.
bool CudaBackend::names(Op op, std::initializer_list<int64_t> operands) {
  names_ = mixed(names_, static_cast<uint64_t>(op));
  for (const int64_t operand : operands) names_ = mixed(names_, static_cast<uint64_t>(operand));
  return use_ != GraphCache::Use::kReplay;
}

int64_t number(Mat mat) { return static_cast<int64_t>(mat); }
int64_t number(Vec vec) { return static_cast<int64_t>(vec); }
int64_t number(Act act) { return static_cast<int64_t>(act); }
int64_t number(float value) { return std::bit_cast<int32_t>(value); }

void CudaBackend::embed(Mat table, Act out) {
  if (!names(Op::kEmbed, {number(table), number(out)})) return;
  const Matrix& m = weights_.matrix(table);
  UPDRAFT_CHECK(m.parts.size() == 1, "an embedding table of one part");
  run_waiting();
  split_.reset();
  float* hidden = residual_of(out, m.cols);
  // A captured step takes tokens whether this one does or not: its sources are -1 then.
  if (shape_.takes_tokens || padded_) {
    must(run_take_tokens({shape_.rows_padded, metadata<int32_t>(layout_.token_sources),
                          tokens_.as<int32_t>(), metadata<int32_t>(layout_.token_ids)},
                         stream()));
  }
  must(run_embed({m.parts[0].layout, m.parts[0].memory.data(), metadata<int32_t>(layout_.token_ids),
                  shape_.rows_padded, hidden},
                 stream()));
  const float* given = ring_->given_rows().data();
  for (const auto& [row, count] : given_runs_) {
    must(copy_to_device(hidden + row * m.cols, given,
                        static_cast<size_t>(count * m.cols) * sizeof(float), stream()));
    given += count * m.cols;
  }
}

void CudaBackend::residual_norm(const updraft::ResidualNorm& op) {
  if (!names(Op::kNorm, {number(op.hidden), number(op.delta), number(op.delta_norm),
                         number(op.norm), number(op.eps), number(op.out)})) {
    return;
  }
  if (!joins(op)) run_waiting();
  norm_ = op;
}

// The product that waits makes what this norm adds, and in its own kernel it can add that and leave
// the norm's output but for its factors. In a step of any number of rows: how a norm is computed,
// and so a row's bits, is not to depend on what runs beside it.
bool CudaBackend::joins(const updraft::ResidualNorm& op) const {
  if (!product_ || norm_ || product_->out != op.delta || op.delta_norm != kNoVec ||
      op.norm == kNoVec || op.out == kNoAct || op.out == product_->in) {
    return false;
  }
  const Matrix& m = weights_.matrix(product_->weight);
  return m.parts.size() == 1 && m.rows % kTileRows == 0 && m.rows == activation(op.hidden).cols;
}

// `factors`: see ResidualNorm.
void CudaBackend::run_norm(const updraft::ResidualNorm& op, float* factors) {
  split_.reset();
  const int64_t dim = activation(op.hidden).cols;
  ResidualNorm run;
  run.rows = shape_.rows_padded;
  run.dim = static_cast<int32_t>(dim);
  run.hidden = residual_of(op.hidden, dim);
  if (op.delta != kNoAct) run.delta = rows_of(op.delta, dim);
  run.delta_norm = values(op.delta_norm, dim);
  run.norm = values(op.norm, dim);
  run.eps = op.eps;
  if (op.out != kNoAct) {
    UPDRAFT_CHECK(run.norm != nullptr, "an output has a norm");
    run.out = output_of(op.out, dim);
    Activation& out = activations_[static_cast<size_t>(op.out)];
    if (factors != nullptr) {
      run.factors = factors;
    } else if (out.quantized.bytes() != 0) {
      // From the f32 values, which the rows have lost.
      run.out_scale = out.scales.as<float>();
      if (config_.activations == CudaActivations::kInt8) {
        run.out_int8 = out.quantized.as<int8_t>();
      } else if (few_rows()) {
        run.out_widened = out.quantized.as<Bf16>();
      } else {
        run.out_float8 = out.quantized.as<Float8>();
      }
      out.is_quantized = true;
    }
  }
  must(run_residual_norm(run, stream()));
}

// What `in` still lacks for this matrix, when what waits has run: with the norm that makes `in` and
// the product in front of it in one kernel where that can be.
NormedInput CudaBackend::normed_input(const Matrix& m, Act in) {
  const bool takes = std::all_of(m.parts.begin(), m.parts.end(), [&](const MatrixPart& part) {
    return !part.quantized_input &&
           gemm_takes_factors(*gemm_device_, part.layout, shape_.rows_padded);
  });
  if (takes && product_ && norm_ && norm_->out == in) {
    const Product product = *std::exchange(product_, std::nullopt);
    const updraft::ResidualNorm norm = *std::exchange(norm_, std::nullopt);
    if (few_rows()) {
      const int64_t dim = weights_.matrix(product.weight).rows;
      run_product(product, {residual_of(norm.hidden, dim), values(norm.norm, dim),
                            output_of(norm.out, dim), band_sums_.as<float>()});
    } else {
      run_product(product, {});
      run_norm(norm, factors_.as<float>());
    }
    split_ = norm;
  }
  run_waiting();
  if (!split_ || split_->out != in) return {};
  if (!takes) {
    make_whole(in);
    return {};
  }
  if (few_rows()) return {band_sums_.as<float>(), nullptr, split_->eps};
  return {nullptr, factors_.as<float>(), split_->eps};
}

// For a reader that takes no factors.
void CudaBackend::make_whole(Act act) {
  if (!split_ || split_->out != act) return;
  run_norm({split_->hidden, kNoAct, kNoVec, split_->norm, split_->eps, act}, nullptr);
}

void CudaBackend::run_waiting() {
  if (prepare_) must(run_prepare_qkv(prepare_of(*std::exchange(prepare_, std::nullopt)), stream()));
  if (product_) run_product(*std::exchange(product_, std::nullopt), {});
  if (norm_) run_norm(*std::exchange(norm_, std::nullopt), nullptr);
}

// A row's bytes depend on the row alone, however many run beside it; in e4m3 only where they lie
// does, because products of few rows multiply bfloat16.
void CudaBackend::quantize(Activation& act) {
  QuantizeRows run;
  run.in = act.memory.as<Bf16>();
  run.in_stride = act.cols;
  run.rows = shape_.rows_padded;
  run.cols = static_cast<int32_t>(act.cols);
  run.scale = act.scales.as<float>();
  if (config_.activations == CudaActivations::kInt8) {
    run.out_int8 = act.quantized.as<int8_t>();
  } else if (few_rows()) {
    run.out_widened = act.quantized.as<Bf16>();
  } else {
    run.out_float8 = act.quantized.as<Float8>();
  }
  must(run_quantize_rows(run, stream()));
  act.is_quantized = true;
}

// Null: the matrix reads bfloat16 alone.
const Activation* CudaBackend::quantized_input(const Matrix& m, Act in) {
  const bool reads = std::any_of(m.parts.begin(), m.parts.end(),
                                 [](const MatrixPart& part) { return part.quantized_input; });
  if (!reads) return nullptr;
  Activation& act = activations_[static_cast<size_t>(in)];
  if (!act.is_quantized) quantize(act);
  return &act;
}

// `quantized`: what parts with quantised inputs read, in place of x.
void CudaBackend::multiply(const Matrix& m, const Bf16* x, const Activation* quantized,
                           int32_t rows, const float* bias, Bf16* y_bf16, float* y_f32,
                           const NormedInput& normed, const ResidualOutput& residual) {
  const int64_t y_cols = m.gated ? m.rows / 2 : m.rows;
  for (const MatrixPart& part : m.parts) {
    Gemm run;
    run.device = gemm_device_.get();
    run.layout = part.layout;
    run.weight = must(weights_.use(part, stream()));
    if (!part.quantized_input) {
      run.x = x;
    } else if (config_.activations == CudaActivations::kInt8) {
      run.x_int8 = {quantized->quantized.as<int8_t>(), quantized->scales.as<float>()};
    } else if (few_rows()) {
      run.x_float8.widened = quantized->quantized.as<Bf16>();
      run.x_float8.scale = quantized->scales.as<float>();
    } else {
      run.x_float8.x = quantized->quantized.as<Float8>();
      run.x_float8.scale = quantized->scales.as<float>();
    }
    run.x_stride = m.cols;
    run.tokens = rows;
    run.bias = bias == nullptr ? nullptr : bias + part.row_first;
    run.y_bf16 = y_bf16 == nullptr ? nullptr : y_bf16 + part.row_first;
    run.y_f32 = y_f32 == nullptr ? nullptr : y_f32 + part.row_first;
    run.y_stride = y_cols;
    run.normed = normed;
    run.residual = residual;
    run.scratch = {scratch_.data(), scratch_.bytes()};
    must(run_gemm(run, stream()));
    must(weights_.release(part, stream()));
  }
}

void CudaBackend::matmul(Mat weight, Vec bias, Act in, Act out) {
  if (!names(Op::kMatmul, {number(weight), number(bias), number(in), number(out)})) return;
  const Matrix& m = weights_.matrix(weight);
  UPDRAFT_CHECK(!m.gated, "a matrix that is no gate and up");
  const NormedInput normed = normed_input(m, in);
  product_ = {weight, bias, in, out, normed};
}

void CudaBackend::run_product(const Product& product, const ResidualOutput& residual) {
  const Matrix& m = weights_.matrix(product.weight);
  const Bf16* x = rows_of(product.in, m.cols);
  Bf16* y = residual.hidden == nullptr ? output_of(product.out, m.rows) : nullptr;
  if (split_ && split_->out == product.out) split_.reset();
  multiply(m, x, quantized_input(m, product.in), shape_.rows_padded, values(product.bias, m.rows),
           y, nullptr, product.normed, residual);
}

void CudaBackend::prepare_qkv(const QkvPrepare& op) {
  if (!names(Op::kPrepare,
             {number(op.qkv), op.layer, op.head_count, number(op.q_norm), number(op.k_norm),
              number(op.eps), static_cast<int64_t>(op.rope.style), op.rope.rope_dims,
              number(op.rope.inverse_frequency), number(op.rope.magnitude), op.rope.sections[0],
              op.rope.sections[1], op.rope.sections[2]})) {
    return;
  }
  run_waiting();
  prepare_ = op;
}

PrepareQkv CudaBackend::prepare_of(const QkvPrepare& op) {
  const Rope& rope = op.rope;
  const bool rotated = rotated_ && rotated_->inverse_frequency == rope.inverse_frequency &&
                       rotated_->rope_dims == rope.rope_dims &&
                       rotated_->magnitude == rope.magnitude && rotated_->sections == rope.sections;
  if (!rotated) {
    RopeTable table;
    table.rows = shape_.rows_padded;
    table.pairs = rope.rope_dims / 2;
    table.positions = metadata<int32_t>(layout_.positions);
    table.inverse_frequency = values(rope.inverse_frequency, table.pairs);
    table.magnitude = rope.magnitude;
    table.out = rotations_.as<Float2>();
    std::copy(rope.sections.begin(), rope.sections.end(), table.sections);
    must(run_rope_table(table, stream()));
    rotated_ = rope;
  }
  const int64_t heads = op.head_count + 2 * int64_t{kv_.kv_head_count};
  PrepareQkv run;
  run.pages = pages_;
  run.layer = op.layer;
  run.rows = shape_.rows_padded;
  run.head_count = op.head_count;
  run.qkv = rows_of(op.qkv, heads * kv_.head_dim);
  run.q_norm = values(op.q_norm, kv_.head_dim);
  run.k_norm = values(op.k_norm, kv_.head_dim);
  run.eps = op.eps;
  run.rotations = rotations_.as<Float2>();
  run.rope_dims = rope.rope_dims;
  run.interleaved = rope.style == RopeStyle::kInterleaved;
  run.kv_positions = metadata<int32_t>(layout_.kv_positions);
  run.lines = metadata<int32_t>(layout_.lines);
  run.table = metadata<int32_t>(layout_.table);
  run.table_stride = 1;
  return run;
}

void CudaBackend::attention(const Attention& op) {
  if (!names(Op::kAttention,
             {number(op.qkv), op.layer, op.head_count, number(op.scale), number(op.out)})) {
    return;
  }
  // Its kernel prepares what it reads, where no row waits for the key of another.
  std::optional<PrepareQkv> prepare;
  if (prepare_ && prepare_->qkv == op.qkv && prepare_->layer == op.layer &&
      prepare_->head_count == op.head_count && shape_.prefill_slices == 0 &&
      !shape_.sequences_share) {
    prepare = prepare_of(*std::exchange(prepare_, std::nullopt));
  }
  run_waiting();
  const int64_t heads = op.head_count + 2 * int64_t{kv_.kv_head_count};
  const int64_t q_stride = heads * kv_.head_dim;
  const int64_t out_cols = op.head_count * int64_t{kv_.head_dim};
  if (shape_.prefill_slices > 0) {
    PrefillAttention run;
    run.pages = pages_;
    run.layer = op.layer;
    run.head_count = op.head_count;
    run.q = rows_of(op.qkv, q_stride);
    run.q_stride = q_stride;
    run.slices = metadata<PrefillSlice>(layout_.slices);
    run.slice_count = shape_.prefill_slices;
    run.row_count_max = shape_.prefill_rows_max;
    run.length_max = shape_.prefill_length_max;
    run.table = metadata<int32_t>(layout_.table);
    run.table_stride = 1;
    run.multiprocessor_count = properties_.multiprocessor_count;
    run.scale = op.scale;
    run.out = output_of(op.out, out_cols);
    run.warpgroup = warpgroup_attention_;
    run.workspace = workspace_.data();
    must(run_prefill_attention(run, stream()));
    if (shape_.decode_rows == 0) return;
  }
  const int32_t length_max = shape_.decode_length_max;
  const int32_t rows_at_once = attention_rows_at_once(length_max);
  const int64_t items_per_row = decode_work_items_max(1, length_max);
  const bool has_work = std::exchange(has_work_, true);
  for (int32_t first = 0; first < shape_.rows_padded; first += rows_at_once) {
    const int32_t rows = std::min(rows_at_once, shape_.rows_padded - first);
    const int32_t* lengths = metadata<int32_t>(layout_.lengths) + first;
    int32_t* item_count = work_counts_.as<int32_t>() + first;
    auto* items = work_items_.as<DecodeWorkItem>() + first * items_per_row;
    if (!has_work) {
      must(run_decode_work(
          {rows, lengths, metadata<int32_t>(layout_.lines) + first, length_max, item_count, items},
          stream()));
    }
    DecodeAttention run;
    run.pages = pages_;
    run.layer = op.layer;
    run.rows = rows;
    run.head_count = op.head_count;
    run.q_stride = q_stride;
    run.q = rows_of(op.qkv, q_stride) + first * q_stride;
    run.lengths = lengths;
    run.length_max = length_max;
    run.item_count = item_count;
    run.items = items;
    run.table = metadata<int32_t>(layout_.table);
    run.table_stride = 1;
    run.multiprocessor_count = properties_.multiprocessor_count;
    run.scale = op.scale;
    run.out = output_of(op.out, out_cols) + first * out_cols;
    run.workspace = workspace_.data();
    run.counters = attention_counters_.as<uint32_t>();
    std::optional<PrepareQkv> prepare_rows = prepare;
    if (prepare_rows) {
      prepare_rows->rows = rows;
      prepare_rows->qkv += first * q_stride;
      prepare_rows->rotations += first * (prepare_rows->rope_dims / 2);
      prepare_rows->kv_positions += first;
      prepare_rows->lines += first;
      run.prepare = &*prepare_rows;
    }
    must(run_decode_attention(run, stream()));
  }
}

void CudaBackend::gated_matmul(Mat gate_up, Act in, Act out) {
  if (!names(Op::kGated, {number(gate_up), number(in), number(out)})) return;
  const Matrix& m = weights_.matrix(gate_up);
  UPDRAFT_CHECK(m.part_rows.size() == 2 && m.part_rows[0] == m.part_rows[1], "gate and up");
  const NormedInput normed = normed_input(m, in);
  const Bf16* x = rows_of(in, m.cols);
  const Activation* quantized = quantized_input(m, in);
  if (m.gated) {
    multiply(m, x, quantized, shape_.rows_padded, nullptr, output_of(out, m.part_rows[0]), nullptr,
             normed);
    return;
  }
  multiply(m, x, quantized, shape_.rows_padded, nullptr, gated_.as<Bf16>(), nullptr, normed);
  must(run_gated_unit({shape_.rows_padded, static_cast<int32_t>(m.part_rows[0]), gated_.as<Bf16>(),
                       output_of(out, m.part_rows[0])},
                      stream()));
}

void CudaBackend::logits(Mat head, Act in) {
  if (!names(Op::kLogits, {number(head), number(in)})) return;
  run_waiting();
  make_whole(in);
  const Matrix& m = weights_.matrix(head);
  UPDRAFT_CHECK(m.rows == vocab_count_, "a head of the reserved vocabulary");
  UPDRAFT_CHECK(shape_.logit_rows > 0, "rows whose logits are wanted");
  must(run_gather_rows({shape_.logit_rows_padded, static_cast<int32_t>(m.cols), rows_of(in, m.cols),
                        metadata<int32_t>(layout_.logit_rows), gathered_.as<Bf16>()},
                       stream()));
  multiply(m, gathered_.as<Bf16>(), nullptr, shape_.logit_rows_padded, nullptr, nullptr,
           logits_.as<float>());
  if (!shape_.samples) return;
  if (banned_count_ > 0) {
    must(run_ban_tokens({shape_.logit_rows_padded, static_cast<int32_t>(vocab_count_),
                         banned_.as<int32_t>(), banned_count_, logits_.as<float>()},
                        stream()));
  }
  must(
      run_sample({shape_.logit_rows_padded, static_cast<int32_t>(vocab_count_), logits_.as<float>(),
                  metadata<SampleRow>(layout_.samplings), tokens_.as<int32_t>()},
                 stream()));
}

// The partial sums are bf16 as all rows are; the group adds them up in f32 or better.
void CudaBackend::all_reduce(Act act) {
  if (config_.comm == nullptr || !names(Op::kAllReduce, {number(act)})) return;
  run_waiting();
  make_whole(act);
  Activation& sum = activations_[static_cast<size_t>(act)];
  Bf16* rows = rows_of(act, sum.cols);
  // The first step that sums is not captured. All devices of the group are here now, as they are
  // not while weights are loaded, when one of them may fail alone.
  if (!std::exchange(sum.registered, true))
    must(config_.comm->register_memory(sum.memory.data(), sum.memory.bytes()));
  must(
      config_.comm->all_reduce(rows, shape_.rows_padded * sum.cols, Comm::Values::kBF16, stream()));
}

void CudaBackend::end() {
  run_waiting();
  if (use_ == GraphCache::Use::kCapture) {
    graphs_.keep(key_, must(end_capture(stream())), names_);
    must(graphs_.replay(key_, names_).launch(stream()));
  } else if (use_ == GraphCache::Use::kReplay) {
    must(graphs_.replay(key_, names_).launch(stream()));
  }
  const auto logit_rows = static_cast<size_t>(shape_.logit_rows);
  if (shape_.samples) {
    must(copy_to_host(ring_->tokens(), tokens_.data(), logit_rows * sizeof(int32_t), stream()));
  } else if (logit_rows > 0) {
    must(copy_to_host(host_logits_.data(), logits_.data(),
                      logit_rows * static_cast<size_t>(vocab_count_) * sizeof(float), stream()));
  }
  must(ring_->end(stream(), shape_.samples ? shape_.logit_rows : 0));
}

std::span<float> CudaBackend::read_logits() {
  enter();
  must(ring_->wait_newest());
  if (shape_.samples) return {};
  return {host_logits_.as<float>(),
          static_cast<size_t>(shape_.logit_rows) * static_cast<size_t>(vocab_count_)};
}

std::span<const int32_t> CudaBackend::read_tokens() {
  enter();
  return must(ring_->read_tokens());
}

// --- pages and debugging ---

void CudaBackend::copy_page(int32_t from, int32_t to) {
  enter();
  UPDRAFT_CHECK(from >= 0 && from < kv_.page_count && to >= 0 && to < kv_.page_count,
                "pages of the pool");
  must(copy_on_device(pool_.data() + to * pages_.page_bytes,
                      pool_.data() + from * pages_.page_bytes,
                      static_cast<size_t>(pages_.page_bytes), stream()));
}

void CudaBackend::swap_out(int32_t page, int32_t slot) {
  enter();
  UPDRAFT_CHECK(page >= 0 && page < kv_.page_count && slot >= 0 && slot < swap_.page_count(),
                "a page of the pool and a slot of the swap space");
  must(swap_.out(pool_.data() + page * pages_.page_bytes, slot, stream()));
}

void CudaBackend::swap_in(int32_t slot, int32_t page) {
  enter();
  UPDRAFT_CHECK(page >= 0 && page < kv_.page_count && slot >= 0 && slot < swap_.page_count(),
                "a page of the pool and a slot of the swap space");
  must(swap_.in(slot, pool_.data() + page * pages_.page_bytes, stream()));
}

int64_t CudaBackend::swap_ns() {
  enter();
  must(swap_.end_moves(stream()));
  return must(swap_.elapsed_ns());
}

void CudaBackend::read_activation(Act act, int64_t rows, std::span<float> out) {
  enter();
  const Activation& from = activation(act);
  UPDRAFT_CHECK(rows <= from.rows_max && static_cast<int64_t>(out.size()) == rows * from.cols,
                "rows of the activation");
  const size_t bytes = out.size() * (from.residual ? sizeof(float) : sizeof(Bf16));
  const PinnedMemory host = must(PinnedMemory::allocate(bytes, "activation"));
  must(copy_to_host(host.data(), from.memory.data(), bytes, stream()));
  must(wait(stream()));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = from.residual ? host.as<float>()[i] : bf16_to_float(host.as<Bf16>()[i].bits);
  }
}

}  // namespace

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
  const bool by_setting =
      config.max_memory_bytes != 0 && config.max_memory_bytes < memory->free_bytes;
  auto stream = OwnedStream::create();
  if (!stream) return stream.error();
  auto uploader = Uploader::open(config.pack_threads);
  if (!uploader) return uploader.error();
  auto cublas = Cublas::open();
  if (!cublas) return cublas.error();
  auto gemm_device = GemmDevice::open({properties->multiprocessor_count,
                                       10 * properties->compute_major + properties->compute_minor},
                                      std::move(*cublas));
  if (!gemm_device) return gemm_device.error();
  if (auto checked = run_canaries(**gemm_device, stream->get()); !checked) return checked.error();
  // Written for this one capability; the emulator's tests ask by themselves.
  WarpgroupUse use;
  if (config.warpgroups && properties->compute_major == 9 && properties->compute_minor == 0 &&
      !properties->emulated) {
    const auto asked = ask_for_warpgroups(properties->multiprocessor_count, stream->get());
    if (!asked) return asked.error();
    use = *asked;
  }
  (*gemm_device)->set_warpgroup(use.products);
  return std::unique_ptr<Backend>(new CudaBackend(
      config, std::move(*properties),
      DeviceBudget(by_setting ? config.max_memory_bytes : memory->free_bytes, by_setting),
      std::move(*stream), std::move(*uploader), std::move(*gemm_device), use.attention));
}

}  // namespace updraft::cuda
