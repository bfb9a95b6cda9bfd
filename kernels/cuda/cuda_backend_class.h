// The class behind open_cuda_backend(), for the two files that implement it: cuda_backend.cpp opens
// the device and takes all memory before the first step, cuda_step.cpp runs the steps. What a step
// is made of stands in step_metadata.h, how its memory on the host is kept from the next step in
// step_ring.h, when it is captured or replayed in graph_cache.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_budget.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/graph_cache.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/skinny_gemm.h"
#include "kernels/cuda/step_metadata.h"
#include "kernels/cuda/step_ring.h"
#include "kernels/cuda/swap_space.h"
#include "kernels/cuda/upload.h"
#include "kernels/cuda/weight_store.h"
#include "kernels/quant/quant.h"

namespace updraft::cuda {

inline constexpr int32_t kDecodeRowsMax = 256;  // of a step that is padded and captured

// What the device says in the middle of a step is a bug or a broken machine.
inline void must(const Result<void>& result) {
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
  bool residual = false;  // f32
  DeviceMemory memory;
  // Of those that quantised products read: the same rows as bytes, or for a few rows as e4m3
  // widened to bfloat16, and their scales.
  DeviceMemory quantized;
  DeviceMemory scales;        // [rows_max]
  bool is_quantized = false;  // they hold what the rows hold
};

class CudaBackend final : public Backend {
 public:
  // `warpgroup_attention`: prefill attention by the kernel for capability 9.0, which was found
  // right. `captures`: graphs were seen to work.
  CudaBackend(const CudaConfig& config, DeviceProperties properties, DeviceBudget budget,
              OwnedStream stream, Uploader uploader, std::unique_ptr<GemmDevice> gemm_device,
              bool warpgroup_attention, bool captures);
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
  const bool captures_;             // else steps are padded all the same, see begin()
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

}  // namespace updraft::cuda
