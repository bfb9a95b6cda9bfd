// The backend: handles to device memory, checks of what the engine passes, and each operation as
// the launch of its kernels. What a step is made of stands in step_metadata.h, how its memory on
// the host is kept from the next step in step_ring.h, when it is captured or replayed in
// graph_cache.h.
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "kernels/cuda/canary.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/device_budget.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/graph_cache.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/step_metadata.h"
#include "kernels/cuda/step_ops.h"
#include "kernels/cuda/step_ring.h"
#include "kernels/cuda/upload.h"
#include "kernels/cuda/warpgroup_check.h"
#include "kernels/cuda/weight_stream.h"
#include "kernels/quant/quant.h"

namespace updraft::cuda {
namespace {

constexpr int32_t kDecodeRowsMax = 256;  // of a step that is padded and captured
constexpr int64_t kCountLimit = int64_t{1} << 30;
constexpr int64_t kProductCols = 32;  // that a product reads at once
// Partial sums of attention over long contexts: more rows than fit run in several launches.
constexpr size_t kWorkspaceBytesMax = size_t{256} << 20;
// What products of many tokens may want beside cuBLASLt: its workspace and a tile of weights.
constexpr uint64_t kProductScratchBytes = uint64_t{192} << 20;

// What the device says in the middle of a step is a bug or a broken machine.
void must(const Result<void>& result) {
  if (!result) check_failed(__FILE__, __LINE__, "the GPU does its work", result.message().c_str());
}
template <typename T>
T must(Result<T> result) {
  if (!result) check_failed(__FILE__, __LINE__, "the GPU does its work", result.message().c_str());
  return std::move(*result);
}

struct MatrixPart {
  PackedLayout layout;
  int64_t row_first = 0;
  DeviceMemory memory;
  int32_t streamed = -1;  // its index in the weight stream, where it lies in host memory
};
struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<int64_t> part_rows;  // as they were given
  std::vector<MatrixPart> parts;   // as they are kept
  bool gated = false;              // one part, gate and up alternating
};
struct Vector {
  int64_t count = 0;
  DeviceMemory memory;
};
struct Activation {
  int64_t rows_max = 0;
  int64_t cols = 0;
  bool residual = false;    // f32
  bool registered = false;  // with the group
  DeviceMemory memory;
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(const CudaConfig& config, DeviceProperties properties, DeviceBudget budget,
              OwnedStream stream, Uploader uploader, std::unique_ptr<GemmDevice> gemm_device,
              bool warpgroup_attention)
      : config_(config),
        properties_(std::move(properties)),
        budget_(budget),
        stream_(std::move(stream)),
        uploader_(std::move(uploader)),
        gemm_device_(std::move(gemm_device)),
        warpgroup_attention_(warpgroup_attention) {}
  ~CudaBackend() override {
    // Nothing uses memory any more when it is given back.
    (void)use_device(config_.device);
    (void)uploader_.wait();
    (void)wait(stream());
  }

  std::string description() const override;
  uint64_t memory_used_bytes() const override { return budget_.used_bytes(); }
  uint64_t memory_total_bytes() const override { return budget_.limit_bytes(); }
  bool has_own_memory() const override { return true; }
  uint64_t scratch_bytes(const KvShape& shape, int64_t rows_max) const override;

  void set_weight_room(uint64_t bytes) override { weight_room_ = bytes; }
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

  const Matrix& matrix(Mat mat) const {
    UPDRAFT_CHECK(static_cast<size_t>(mat) < matrices_.size(), "a matrix of this backend");
    return matrices_[static_cast<size_t>(mat)];
  }
  // The values, checked to be `count`; null for kNoVec.
  const float* values(Vec vec, int64_t count) const {
    if (vec == kNoVec) return nullptr;
    UPDRAFT_CHECK(static_cast<size_t>(vec) < vectors_.size(), "a vector of this backend");
    UPDRAFT_CHECK(vectors_[static_cast<size_t>(vec)].count == count, "a vector of this length");
    return vectors_[static_cast<size_t>(vec)].memory.as<float>();
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
  DType kept_format(DType file_format, bool of_layer) const;
  Result<Mat> add_parts(std::span<const WeightView> parts, bool of_layer);
  Result<void> place(const PackedParts& group, bool of_layer, MatrixPart& part);
  Result<void> send(DeviceMemory& to, const void* from, size_t bytes, const char* what);
  Result<void> take_scratch();
  size_t workspace_bytes(const KvPages& pages, int32_t head_count, int64_t rows,
                         int32_t length_max) const;
  int32_t padded_length(int32_t length) const;
  int32_t attention_rows_at_once(int32_t length_max) const;
  bool names(Op op, std::initializer_list<int64_t> operands);
  void multiply(const Matrix& m, const Bf16* x, int32_t rows, const float* bias, Bf16* y_bf16,
                float* y_f32);

  const CudaConfig config_;
  const DeviceProperties properties_;
  DeviceBudget budget_;
  OwnedStream stream_;
  Uploader uploader_;
  std::unique_ptr<GemmDevice> gemm_device_;
  const bool warpgroup_attention_;  // of all prefills: a row's bits depend on it
  uint64_t weight_room_ = 0;        // 0: whatever is there
  uint64_t weight_bytes_ = 0;
  uint64_t largest_part_bytes_ = 0;
  WeightStream streamed_;
  std::vector<Matrix> matrices_;
  std::vector<Vector> vectors_;
  std::vector<Activation> activations_;
  int64_t rows_max_ = 0;
  int64_t cols_max_ = 0;
  int64_t gated_cols_max_ = 0;  // gate and up side by side
  int64_t logit_rows_max_ = 0;
  int64_t vocab_count_ = 0;

  KvShape kv_;
  KvPages pages_;
  DeviceMemory pool_;
  PinnedMemory swap_;
  int32_t swap_pages_ = 0;

  std::optional<StepRing> ring_;
  DeviceMemory metadata_;   // of the step that runs
  DeviceMemory rotations_;  // [rows, head_dim / 2] Float2
  DeviceMemory gated_;      // [rows, gated_cols_max]
  DeviceMemory gathered_;   // [logit rows, cols_max]
  DeviceMemory logits_;     // [logit rows, vocab]
  DeviceMemory banned_;     // ids that are never chosen
  int32_t banned_count_ = 0;
  DeviceMemory tokens_;       // [logit rows] that the newest step with samplings chose
  DeviceMemory work_counts_;  // attention's lists of work: [rows], of each launch's first row
  DeviceMemory work_items_;
  DeviceMemory workspace_;  // attention's
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
         (streamed_.matrix_count() == 0
              ? ""
              : ", " + std::to_string(streamed_.matrix_count()) +
                    " weight matrices in host memory (" +
                    std::to_string(streamed_.host_bytes() >> 20) + " MiB)");
}

// Of a layer's float weights, where the configuration wants them in fewer bits.
DType CudaBackend::kept_format(DType file_format, bool of_layer) const {
  const bool is_float =
      file_format == DType::kF32 || file_format == DType::kF16 || file_format == DType::kBF16;
  if (of_layer && is_float && config_.fp8_weights) return DType::kF8_E4M3;
  return packed_type(file_format);
}

Result<Mat> CudaBackend::add_matrix(std::span<const WeightView> parts) {
  return add_parts(parts, false);
}
Result<Mat> CudaBackend::add_split_matrix(std::span<const WeightView> parts,
                                          const Split& /*split*/) {
  return add_parts(parts, true);
}

// Neighbours that are kept in one format lie in one packed matrix, as long as bands of rows do not
// cross them; gate and up alternate in it.
Result<Mat> CudaBackend::add_parts(std::span<const WeightView> parts, bool of_layer) {
  enter();
  if (parts.empty()) return fail("matrix: no parts given");
  Matrix out;
  out.cols = parts[0].cols;
  if (out.cols % kProductCols != 0) {
    return fail("matrix of " + std::to_string(out.cols) +
                " columns: the GPU's products take them in " + std::to_string(kProductCols) +
                "s (run this model on the CPU)");
  }
  std::vector<PackedParts> groups;
  for (const WeightView& part : parts) {
    if (part.cols != out.cols || part.rows <= 0) {
      return fail("matrix: a part of " + std::to_string(part.rows) + " x " +
                  std::to_string(part.cols) + " beside " + std::to_string(out.cols) + " columns");
    }
    const DType kept = kept_format(part.type, of_layer);
    const bool joins = !groups.empty() && groups.back().layout.type == kept &&
                       groups.back().layout.rows % kTileRows == 0;
    if (!joins) groups.push_back({{.type = kept}, {}});
    groups.back().parts.push_back(part);
    groups.back().layout.rows += part.rows;
    out.part_rows.push_back(part.rows);
    out.rows += part.rows;
  }
  const bool two_alike = parts.size() == 2 && parts[0].rows == parts[1].rows;
  out.gated = two_alike && groups.size() == 1 && parts[0].type == parts[1].type &&
              parts[0].rows % kTileRows == 0;
  if (two_alike && !out.gated) gated_cols_max_ = std::max(gated_cols_max_, out.rows);
  int64_t row_first = 0;
  for (PackedParts& group : groups) {
    const auto layout = PackedLayout::of(group.layout.type, group.layout.rows, out.cols, out.gated);
    if (!layout) return layout.error();
    group.layout = *layout;
    out.parts.push_back({*layout, row_first, {}, -1});
    if (auto placed = place(group, of_layer, out.parts.back()); !placed) {
      (void)uploader_.wait();  // what was placed before is given back
      return placed.error();
    }
    row_first += layout->rows;
  }
  matrices_.push_back(std::move(out));
  return static_cast<Mat>(matrices_.size() - 1);
}

// On the device, or in host memory where the room for weights ends.
Result<void> CudaBackend::place(const PackedParts& group, bool of_layer, MatrixPart& part) {
  const auto bytes = static_cast<uint64_t>(group.layout.bytes);
  largest_part_bytes_ = std::max(largest_part_bytes_, bytes);
  const uint64_t slots = WeightStream::kSlots * largest_part_bytes_;
  const bool fits = weight_room_ == 0 || weight_bytes_ + bytes + slots <= weight_room_;
  if (of_layer && !fits) {
    auto memory = PinnedMemory::allocate(bytes, "weights in host memory");
    if (!memory) return memory.error();
    if (auto packed = uploader_.to_host(group, {memory->data(), bytes}); !packed) return packed;
    part.streamed = streamed_.add(std::move(*memory));
    return {};
  }
  auto memory = budget_.take(bytes, "weights");
  if (!memory) return memory.error();
  weight_bytes_ += bytes;
  part.memory = std::move(*memory);
  return uploader_.to_device(group, part.memory.data());
}

// A small thing, once: waits for the copy.
Result<void> CudaBackend::send(DeviceMemory& to, const void* from, size_t bytes, const char* what) {
  if (auto grown = budget_.grow(to, bytes, what); !grown) return grown;
  auto staging = PinnedMemory::allocate(bytes, what);
  if (!staging) return staging.error();
  std::memcpy(staging->data(), from, bytes);
  if (auto sent = copy_to_device(to.data(), staging->data(), bytes, stream()); !sent) return sent;
  return wait(stream());
}

Result<Vec> CudaBackend::add_vector(std::span<const float> values) {
  enter();
  if (values.empty()) return fail("vector: no values given");
  Vector out{static_cast<int64_t>(values.size()), {}};
  if (auto sent = send(out.memory, values.data(), values.size_bytes(), "vector"); !sent) {
    return sent.error();
  }
  vectors_.push_back(std::move(out));
  return static_cast<Vec>(vectors_.size() - 1);
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
  return send(banned_, known.data(), known.size() * sizeof(int32_t), "banned tokens").ok();
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
  Activation out{rows_max, cols, residual, {}};
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
  if (auto taken = streamed_.take_slots(budget_); !taken) return taken;
  graphs_.clear();
  return uploader_.wait();
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
  if (auto r = budget_.grow(gated_, rows * static_cast<uint64_t>(gated_cols_max_) * sizeof(Bf16),
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
  size_t scratch_bytes = 0;
  for (const Matrix& m : matrices_) {
    for (const MatrixPart& part : m.parts) {
      scratch_bytes = std::max(scratch_bytes, gemm_scratch_bytes(*gemm_device_, part.layout,
                                                                 static_cast<int32_t>(rows_max_)));
    }
  }
  if (auto r = budget_.grow(scratch_, scratch_bytes, "scratch of products"); !r) return r;
  return fill(scratch_.data(), 0, scratch_.bytes(), stream());
}

Result<void> CudaBackend::make_swap_space(int32_t page_count) {
  enter();
  UPDRAFT_CHECK(pool_.bytes() != 0, "swap space behind the KV pool");
  auto memory = PinnedMemory::allocate(
      static_cast<size_t>(page_count) * static_cast<size_t>(pages_.page_bytes),
      "swap space of " + std::to_string(page_count) + " KV pages");
  if (!memory) return memory.error();
  swap_ = std::move(*memory);
  swap_pages_ = page_count;
  return {};
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
  padded_ = config_.graphs && streamed_.matrix_count() == 0 && shape_.prefill_slices == 0 &&
            shape_.given_rows == 0 && shape_.rows <= kDecodeRowsMax;
  use_ = GraphCache::Use::kName;
  if (padded_) {
    shape_.rows_padded = decode_bucket(shape_.rows);
    shape_.logit_rows_padded = shape_.logit_rows == 0 ? 0 : decode_bucket(shape_.logit_rows);
    shape_.decode_length_max = padded_length(shape_.decode_length_max);
    key_ = {shape_.rows_padded, shape_.decode_length_max, shape_.logit_rows_padded, shape_.samples};
    use_ = graphs_.begin(key_);
  }
  layout_ = StepLayout::of(shape_);
  UPDRAFT_CHECK(layout_.bytes <= metadata_.bytes(), "no more sequences than logit rows");

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
  rotated_.reset();
  has_work_ = false;
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
  const Matrix& m = matrix(table);
  UPDRAFT_CHECK(m.parts.size() == 1, "an embedding table of one part");
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
    run.out = rows_of(op.out, dim);
  }
  must(run_residual_norm(run, stream()));
}

void CudaBackend::multiply(const Matrix& m, const Bf16* x, int32_t rows, const float* bias,
                           Bf16* y_bf16, float* y_f32) {
  const int64_t y_cols = m.gated ? m.rows / 2 : m.rows;
  for (const MatrixPart& part : m.parts) {
    Gemm run;
    run.device = gemm_device_.get();
    run.layout = part.layout;
    run.weight =
        part.streamed < 0 ? part.memory.data() : must(streamed_.use(part.streamed, stream()));
    run.x = x;
    run.x_stride = m.cols;
    run.tokens = rows;
    run.bias = bias == nullptr ? nullptr : bias + part.row_first;
    run.y_bf16 = y_bf16 == nullptr ? nullptr : y_bf16 + part.row_first;
    run.y_f32 = y_f32 == nullptr ? nullptr : y_f32 + part.row_first;
    run.y_stride = y_cols;
    run.scratch = {scratch_.data(), scratch_.bytes()};
    must(run_gemm(run, stream()));
    if (part.streamed >= 0) must(streamed_.release(part.streamed, stream()));
  }
}

void CudaBackend::matmul(Mat weight, Vec bias, Act in, Act out) {
  if (!names(Op::kMatmul, {number(weight), number(bias), number(in), number(out)})) return;
  const Matrix& m = matrix(weight);
  UPDRAFT_CHECK(!m.gated, "a matrix that is no gate and up");
  multiply(m, rows_of(in, m.cols), shape_.rows_padded, values(bias, m.rows), rows_of(out, m.rows),
           nullptr);
}

void CudaBackend::prepare_qkv(const QkvPrepare& op) {
  if (!names(Op::kPrepare,
             {number(op.qkv), op.layer, op.head_count, number(op.q_norm), number(op.k_norm),
              number(op.eps), static_cast<int64_t>(op.rope.style), op.rope.rope_dims,
              number(op.rope.inverse_frequency), number(op.rope.magnitude)})) {
    return;
  }
  const Rope& rope = op.rope;
  const bool rotated = rotated_ && rotated_->inverse_frequency == rope.inverse_frequency &&
                       rotated_->rope_dims == rope.rope_dims &&
                       rotated_->magnitude == rope.magnitude;
  if (!rotated) {
    RopeTable table;
    table.rows = shape_.rows_padded;
    table.pairs = rope.rope_dims / 2;
    table.positions = metadata<int32_t>(layout_.positions);
    table.inverse_frequency = values(rope.inverse_frequency, table.pairs);
    table.magnitude = rope.magnitude;
    table.out = rotations_.as<Float2>();
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
  must(run_prepare_qkv(run, stream()));
}

void CudaBackend::attention(const Attention& op) {
  if (!names(Op::kAttention,
             {number(op.qkv), op.layer, op.head_count, number(op.scale), number(op.out)})) {
    return;
  }
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
    run.out = rows_of(op.out, out_cols);
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
    run.out = rows_of(op.out, out_cols) + first * out_cols;
    run.workspace = workspace_.data();
    must(run_decode_attention(run, stream()));
  }
}

void CudaBackend::gated_matmul(Mat gate_up, Act in, Act out) {
  if (!names(Op::kGated, {number(gate_up), number(in), number(out)})) return;
  const Matrix& m = matrix(gate_up);
  UPDRAFT_CHECK(m.part_rows.size() == 2 && m.part_rows[0] == m.part_rows[1], "gate and up");
  if (m.gated) {
    multiply(m, rows_of(in, m.cols), shape_.rows_padded, nullptr, rows_of(out, m.part_rows[0]),
             nullptr);
    return;
  }
  multiply(m, rows_of(in, m.cols), shape_.rows_padded, nullptr, gated_.as<Bf16>(), nullptr);
  must(run_gated_unit({shape_.rows_padded, static_cast<int32_t>(m.part_rows[0]), gated_.as<Bf16>(),
                       rows_of(out, m.part_rows[0])},
                      stream()));
}

void CudaBackend::logits(Mat head, Act in) {
  if (!names(Op::kLogits, {number(head), number(in)})) return;
  const Matrix& m = matrix(head);
  UPDRAFT_CHECK(m.rows == vocab_count_, "a head of the reserved vocabulary");
  UPDRAFT_CHECK(shape_.logit_rows > 0, "rows whose logits are wanted");
  must(run_gather_rows({shape_.logit_rows_padded, static_cast<int32_t>(m.cols), rows_of(in, m.cols),
                        metadata<int32_t>(layout_.logit_rows), gathered_.as<Bf16>()},
                       stream()));
  multiply(m, gathered_.as<Bf16>(), shape_.logit_rows_padded, nullptr, nullptr,
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
  UPDRAFT_CHECK(page >= 0 && page < kv_.page_count && slot >= 0 && slot < swap_pages_,
                "a page of the pool and a slot of the swap space");
  must(copy_to_host(swap_.data() + slot * pages_.page_bytes,
                    pool_.data() + page * pages_.page_bytes, static_cast<size_t>(pages_.page_bytes),
                    stream()));
}

void CudaBackend::swap_in(int32_t slot, int32_t page) {
  enter();
  UPDRAFT_CHECK(page >= 0 && page < kv_.page_count && slot >= 0 && slot < swap_pages_,
                "a page of the pool and a slot of the swap space");
  must(copy_to_device(pool_.data() + page * pages_.page_bytes,
                      swap_.data() + slot * pages_.page_bytes,
                      static_cast<size_t>(pages_.page_bytes), stream()));
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
