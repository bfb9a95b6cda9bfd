// The Backend on the CPU: handles to buffers, checks of what the engine passes, and the work of
// each operation spread over the pool. The loops are in the kernels.
#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kv_pool.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/numa.h"
#include "kernels/cpu/step.h"
#include "kernels/cpu/tile_layout.h"

namespace updraft {
namespace {

// Values that one thread handles in less time than waking another takes.
constexpr int64_t kInlineValues = 8 << 10;

struct Activation {
  HugeBuffer memory;
  int64_t rows_max = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // floats
  float* row(int64_t index) const { return memory.as<float>() + index * stride; }
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(CpuIsa isa, bool exact, uint64_t max_memory_bytes, std::vector<int> numa_nodes,
             std::unique_ptr<ThreadPool> pool, std::shared_ptr<Comm> comm)
      : isa_(isa),
        kernels_(kernels_of(isa)),
        exact_(exact),
        node_count_(numa_nodes.size()),
        budget_(max_memory_bytes, std::move(numa_nodes)),
        pool_(std::move(pool)),
        comm_(std::move(comm)) {}

  std::string description() const override {
    const int threads = pool_->thread_count();
    return std::string("cpu ") + isa_name(isa_) + (exact_ ? " exact, " : ", ") +
           std::to_string(threads) + (threads == 1 ? " thread" : " threads") +
           (node_count_ > 1 ? ", " + std::to_string(node_count_) + " memory nodes" : "");
  }
  uint64_t memory_used_bytes() const override { return budget_.used_bytes(); }
  uint64_t memory_total_bytes() const override { return budget_.limit_bytes(); }
  uint64_t kept_bytes(const WeightView& view, bool of_layer) const override {
    // e4m3 becomes bfloat16 (weights.cpp).
    return (view.type == DType::kF8_E4M3 ? 2 : 1) * Backend::kept_bytes(view, of_layer);
  }

  Result<Mat> add_matrix(std::span<const WeightView> parts) override;
  Result<Vec> add_vector(std::span<const float> values) override;
  Result<Act> add_activation(int64_t rows_max, int64_t cols) override;
  Result<void> reserve_logits(int64_t logit_rows_max, int64_t vocab_count) override;
  Result<void> make_kv_pool(const KvShape& shape) override;
  uint64_t kv_page_bytes(const KvShape& shape) const override { return KvPool::page_bytes(shape); }

  void begin(const Batch& batch) override;
  void embed(Mat table, Act out) override;
  void residual_norm(const ResidualNorm& op) override;
  void matmul(Mat weight, Vec bias, Act in, Act out) override;
  void prepare_qkv(const QkvPrepare& op) override;
  void attention(const Attention& op) override;
  void gated_matmul(Mat gate_up, Act in, Act out) override;
  void logits(Mat head, Act in) override;
  void all_reduce(Act act) override;
  std::span<float> read_logits() override;
  void copy_page(int32_t from, int32_t to) override { kv_.copy_page(from, to); }
  void read_activation(Act act, int64_t rows, std::span<float> out) override;

 private:
  const Matrix& matrix(Mat mat) const {
    const auto index = static_cast<size_t>(mat);
    UPDRAFT_CHECK(index < matrices_.size(), "a matrix of this backend");
    return matrices_[index];
  }
  const std::vector<float>& vector(Vec vec) const {
    const auto index = static_cast<size_t>(vec);
    UPDRAFT_CHECK(index < vectors_.size(), "a vector of this backend");
    return vectors_[index];
  }
  // The values, checked to be `count`; null for kNoVec.
  const float* values(Vec vec, int64_t count) const {
    if (vec == kNoVec) return nullptr;
    UPDRAFT_CHECK(static_cast<int64_t>(vector(vec).size()) == count, "a vector of this length");
    return vector(vec).data();
  }
  // The buffer, checked to hold the step's rows of `cols` values.
  const Activation& activation(Act act, int64_t cols) const {
    const auto index = static_cast<size_t>(act);
    UPDRAFT_CHECK(index < activations_.size(), "an activation of this backend");
    UPDRAFT_CHECK(activations_[index].cols == cols, "an activation of this width");
    UPDRAFT_CHECK(activations_[index].rows_max >= step_.row_count(),
                  "an activation of this many rows");
    return activations_[index];
  }
  int64_t cols_of(Act act) const {
    UPDRAFT_CHECK(static_cast<size_t>(act) < activations_.size(), "an activation of this backend");
    return activations_[static_cast<size_t>(act)].cols;
  }

  // Calls f(row) for the step's rows, on several threads when `values_per_row` makes that worth it.
  // `unit` rows in a row go to one thread, if there are enough of them for all threads.
  template <typename RowFunction>
  void for_rows(int64_t values_per_row, RowFunction f, int64_t unit = 1);
  Result<void> grow_scratch();
  MatmulCall call_of(const Matrix& weight, Vec bias) const;

  CpuIsa isa_;
  const Kernels& kernels_;
  bool exact_;
  size_t node_count_;
  MemoryBudget budget_;  // before everything that gives memory back to it
  std::unique_ptr<ThreadPool> pool_;
  const std::shared_ptr<Comm> comm_;  // null: alone
  std::vector<Matrix> matrices_;
  std::vector<std::vector<float>> vectors_;
  std::vector<Activation> activations_;
  KvPool kv_;
  Step step_;

  int64_t rows_max_ = 0;
  int64_t blocks_per_row_max_ = 0;  // of the quantised matrices
  HugeBuffer act_blocks_;           // [rows_max, blocks_per_row_max]
  bool has_gated_ = false;          // some matrix can be gate and up
  HugeBuffer gated_scratch_;        // [threads, kGatedScratchFloats]
  AttentionRunner attention_;
  int64_t logit_rows_max_ = 0;
  int64_t vocab_count_ = 0;
  HugeBuffer logits_;     // [logit_rows_max, vocab_count]
  HugeBuffer logits_in_;  // [logit_rows_max, cols_max]
  int64_t cols_max_ = 0;  // widest activation
};

// --- load time ---

Result<Mat> CpuBackend::add_matrix(std::span<const WeightView> parts) {
  Result<Matrix> made = make_matrix(parts, kernels_.tile_rows, exact_, *pool_, budget_);
  if (!made) return made.error();
  if (made->has_quantised)
    blocks_per_row_max_ = std::max(blocks_per_row_max_, made->cols / kBlockCols);
  if (made->parts.size() == 2 && made->parts[0].rows == made->parts[1].rows) has_gated_ = true;
  matrices_.push_back(std::move(*made));
  if (Result<void> grown = grow_scratch(); !grown) {
    matrices_.pop_back();
    return grown.error();
  }
  return static_cast<Mat>(matrices_.size() - 1);
}

Result<Vec> CpuBackend::add_vector(std::span<const float> values) {
  if (values.empty()) return fail("vector: no values given");
  vectors_.emplace_back(values.begin(), values.end());
  return static_cast<Vec>(vectors_.size() - 1);
}

Result<Act> CpuBackend::add_activation(int64_t rows_max, int64_t cols) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  if (rows_max <= 0 || cols <= 0 || rows_max > kLimit || cols > kLimit) {
    return fail("activation of " + std::to_string(rows_max) + " x " + std::to_string(cols) +
                ": out of range");
  }
  Activation activation;
  activation.rows_max = rows_max;
  activation.cols = cols;
  activation.stride = (cols + 15) / 16 * 16;
  Result<HugeBuffer> memory = HugeBuffer::allocate(
      budget_,
      static_cast<uint64_t>(rows_max) * static_cast<uint64_t>(activation.stride) * sizeof(float),
      "activation of " + std::to_string(rows_max) + " x " + std::to_string(cols));
  if (!memory) return memory.error();
  activation.memory = std::move(*memory);
  activations_.push_back(std::move(activation));
  rows_max_ = std::max(rows_max_, rows_max);
  cols_max_ = std::max(cols_max_, cols);
  if (Result<void> grown = grow_scratch(); !grown) {
    activations_.pop_back();
    return grown.error();
  }
  return static_cast<Act>(activations_.size() - 1);
}

Result<void> CpuBackend::reserve_logits(int64_t logit_rows_max, int64_t vocab_count) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  if (logit_rows_max <= 0 || vocab_count <= 0 || logit_rows_max > kLimit || vocab_count > kLimit) {
    return fail("logits of " + std::to_string(logit_rows_max) + " x " +
                std::to_string(vocab_count) + ": out of range");
  }
  Result<HugeBuffer> memory = HugeBuffer::allocate(
      budget_,
      static_cast<uint64_t>(logit_rows_max) * static_cast<uint64_t>(vocab_count) * sizeof(float),
      "logits");
  if (!memory) return memory.error();
  logits_ = std::move(*memory);
  logit_rows_max_ = logit_rows_max;
  vocab_count_ = vocab_count;
  return grow_scratch();
}

Result<void> CpuBackend::make_kv_pool(const KvShape& shape) {
  kv_ = KvPool();  // at most one pool's memory at a time
  Result<KvPool> made = KvPool::make(shape, budget_);
  if (!made) return made.error();
  kv_ = std::move(*made);
  return grow_scratch();
}

// Takes what the largest step can need, so that no step allocates.
Result<void> CpuBackend::grow_scratch() {
  const auto grow = [&](HugeBuffer& buffer, int64_t bytes, const char* what) -> Result<void> {
    if (static_cast<int64_t>(buffer.size_bytes()) >= bytes) return {};
    Result<HugeBuffer> memory = HugeBuffer::allocate(budget_, static_cast<uint64_t>(bytes), what);
    if (!memory) return memory.error();
    buffer = std::move(*memory);
    return {};
  };
  step_.reserve(rows_max_);
  const int64_t block_rows = std::max(rows_max_, logit_rows_max_);
  const int64_t block_bytes =
      block_rows * blocks_per_row_max_ * static_cast<int64_t>(sizeof(ActBlock));
  if (auto r = grow(act_blocks_, block_bytes, "quantised activations"); !r) return r;
  const int64_t gated_bytes =
      has_gated_ ? pool_->thread_count() * kGatedScratchFloats * static_cast<int64_t>(sizeof(float))
                 : 0;
  if (auto r = grow(gated_scratch_, gated_bytes, "scratch of gated products"); !r) return r;
  const int64_t gathered_bytes = logit_rows_max_ * cols_max_ * static_cast<int64_t>(sizeof(float));
  if (auto r = grow(logits_in_, gathered_bytes, "rows for logits"); !r) return r;
  if (kv_.shape().page_count > 0) {
    // A kv head shared by more query heads than a block has still gets one row per block.
    const int queries =
        std::max(kQueriesPerBlock, static_cast<int>(cols_max_ / kv_.shape().head_dim));
    if (auto r = attention_.reserve(queries, kv_.layout(), pool_->thread_count(), budget_); !r)
      return r;
  }
  return {};
}

// --- one step ---

void CpuBackend::begin(const Batch& batch) {
  pool_->pin_caller();
  step_.begin(batch, kv_.shape());
  if (!batch.sequences.empty()) kv_.take_memory(step_.row_pages(), *pool_);
  UPDRAFT_CHECK(step_.row_count() <= rows_max_, "no more rows than the activations hold");
  UPDRAFT_CHECK(static_cast<int64_t>(batch.logit_rows.size()) <= logit_rows_max_,
                "no more logit rows than reserved");
}

template <typename RowFunction>
void CpuBackend::for_rows(int64_t values_per_row, RowFunction f, int64_t unit) {
  const int64_t rows = step_.row_count();
  if (rows * values_per_row <= kInlineValues) {
    for (int64_t row = 0; row < rows; ++row) f(row);
    return;
  }
  int64_t rows_per_item = std::max<int64_t>(1, kInlineValues / values_per_row);
  if (rows >= 2 * unit * pool_->thread_count()) rows_per_item = std::max(rows_per_item, unit);
  pool_->for_each((rows + rows_per_item - 1) / rows_per_item, [&](int64_t item, int) {
    const int64_t last = std::min(rows, (item + 1) * rows_per_item);
    for (int64_t row = item * rows_per_item; row < last; ++row) f(row);
  });
}

void CpuBackend::embed(Mat table, Act out) {
  const Matrix& m = matrix(table);
  const Activation& to = activation(out, m.cols);
  const std::span<const float> given = step_.batch().given_rows;
  UPDRAFT_CHECK(static_cast<int64_t>(given.size()) == step_.given_count() * m.cols,
                "one given row for each id below 0");
  for_rows(m.cols, [&](int64_t row) {
    if (const int64_t index = step_.given_index(row); index >= 0) {
      std::copy_n(given.data() + index * m.cols, m.cols, to.row(row));
      return;
    }
    const int32_t token = step_.batch().token_ids[static_cast<size_t>(row)];
    UPDRAFT_CHECK(token >= 0 && token < m.rows, "a token of the table");
    m.decode_row(token, {to.row(row), static_cast<size_t>(m.cols)});
  });
}

void CpuBackend::residual_norm(const ResidualNorm& op) {
  const int64_t dim = cols_of(op.hidden);
  const Activation& hidden = activation(op.hidden, dim);
  const Activation* delta = op.delta != kNoAct ? &activation(op.delta, dim) : nullptr;
  const Activation* out = op.out != kNoAct ? &activation(op.out, dim) : nullptr;
  const float* delta_norm = values(op.delta_norm, dim);
  const float* norm = values(op.norm, dim);
  UPDRAFT_CHECK(out == nullptr || norm != nullptr, "an output has a norm");
  for_rows(2 * dim, [&](int64_t row) {
    kernels_.residual_norm(hidden.row(row), delta != nullptr ? delta->row(row) : nullptr,
                           delta_norm, norm, op.eps, out != nullptr ? out->row(row) : nullptr, dim);
  });
}

MatmulCall CpuBackend::call_of(const Matrix& weight, Vec bias) const {
  MatmulCall call;
  call.weight = &weight;
  call.bias = values(bias, weight.rows);
  call.blocks = act_blocks_.as<ActBlock>();
  return call;
}

void CpuBackend::matmul(Mat weight, Vec bias, Act in, Act out) {
  const Matrix& m = matrix(weight);
  const Activation& from = activation(in, m.cols);
  const Activation& to = activation(out, m.rows);
  MatmulCall call = call_of(m, bias);
  call.in = from.row(0);
  call.in_stride = from.stride;
  call.rows = step_.row_count();
  call.out = to.row(0);
  call.out_stride = to.stride;
  run_matmul(call, kernels_, *pool_);
}

void CpuBackend::prepare_qkv(const QkvPrepare& op) {
  const KvShape& shape = kv_.shape();
  const int64_t head_dim = shape.head_dim;
  const Activation& qkv = activation(op.qkv, (op.head_count + 2 * shape.kv_head_count) * head_dim);
  const float* q_norm = values(op.q_norm, head_dim);
  const float* k_norm = values(op.k_norm, head_dim);
  const std::vector<float>& frequencies = vector(op.rope.inverse_frequency);
  UPDRAFT_CHECK(op.layer >= 0 && op.layer < shape.layer_count, "a layer of the pool");
  UPDRAFT_CHECK(op.rope.rope_dims % 2 == 0 && op.rope.rope_dims <= head_dim,
                "rotary dimensions of a head");
  UPDRAFT_CHECK(static_cast<int64_t>(frequencies.size()) * 2 == op.rope.rope_dims,
                "one frequency per pair");
  step_.prepare_angles(op.rope, frequencies);
  // A cache line of K holds a few dimensions of kKeyGroup positions: two threads that write
  // neighbours would take it from each other again and again.
  const auto prepare = [&](int64_t row) {
    const RopeRow angles = step_.angles_of(row);
    float* head = qkv.row(row);
    for (int h = 0; h < op.head_count; ++h, head += head_dim) {
      kernels_.prepare_head(head, static_cast<int>(head_dim), q_norm, op.eps, angles);
    }
    const int64_t page_offset = step_.row_page(row) * kv_.layout().page_stride;
    for (int h = 0; h < shape.kv_head_count; ++h, head += head_dim) {
      kernels_.prepare_head(head, static_cast<int>(head_dim), k_norm, op.eps, angles);
      kernels_.store_kv(kv_.layout(), kv_.pages(op.layer, h) + page_offset, step_.row_slot(row),
                        head, head + shape.kv_head_count * head_dim);
    }
  };
  for_rows(2 * qkv.cols, prepare, kKeyGroup);
}

void CpuBackend::attention(const Attention& op) {
  const KvShape& shape = kv_.shape();
  UPDRAFT_CHECK(op.head_count > 0 && op.head_count % shape.kv_head_count == 0,
                "whole groups of query heads");
  UPDRAFT_CHECK(op.layer >= 0 && op.layer < shape.layer_count, "a layer of the pool");
  const int64_t head_dim = shape.head_dim;
  const Activation& qkv = activation(op.qkv, (op.head_count + 2 * shape.kv_head_count) * head_dim);
  const Activation& out = activation(op.out, op.head_count * head_dim);
  AttentionCall call;
  call.qkv = qkv.row(0);
  call.qkv_stride = qkv.stride;
  call.out = out.row(0);
  call.out_stride = out.stride;
  call.layer = op.layer;
  call.group = op.head_count / shape.kv_head_count;
  call.scale = op.scale;
  attention_.run(call, kv_, step_, kernels_, *pool_);
}

void CpuBackend::gated_matmul(Mat gate_up, Act in, Act out) {
  const Matrix& m = matrix(gate_up);
  UPDRAFT_CHECK(m.parts.size() == 2 && m.parts[0].rows == m.parts[1].rows, "gate and up");
  const Activation& from = activation(in, m.cols);
  const Activation& to = activation(out, m.parts[0].rows);
  MatmulCall call = call_of(m, kNoVec);
  call.in = from.row(0);
  call.in_stride = from.stride;
  call.rows = step_.row_count();
  call.out = to.row(0);
  call.out_stride = to.stride;
  call.gated = true;
  call.scratch = gated_scratch_.as<float>();
  run_matmul(call, kernels_, *pool_);
}

void CpuBackend::logits(Mat head, Act in) {
  const Matrix& m = matrix(head);
  const Activation& from = activation(in, m.cols);
  UPDRAFT_CHECK(m.rows == vocab_count_, "a head of the reserved vocabulary");
  const std::span<const int32_t> rows = step_.batch().logit_rows;
  float* gathered = logits_in_.as<float>();
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(from.row(rows[i]), m.cols, gathered + static_cast<int64_t>(i) * m.cols);
  }
  MatmulCall call = call_of(m, kNoVec);
  call.in = gathered;
  call.in_stride = m.cols;
  call.rows = static_cast<int64_t>(rows.size());
  call.out = logits_.as<float>();
  call.out_stride = vocab_count_;
  run_matmul(call, kernels_, *pool_);
}

void CpuBackend::all_reduce(Act act) {
  if (comm_ == nullptr) return;
  const Activation& sum = activation(act, cols_of(act));
  const auto reduce = [&](float* values, int64_t count) {
    const Result<void> reduced = comm_->all_reduce(values, count, Comm::Values::kF32, nullptr);
    if (!reduced) check_failed(__FILE__, __LINE__, "a sum of all ranks", reduced.message().c_str());
  };
  // What pads a row stays out of the sums.
  if (sum.stride == sum.cols) {
    reduce(sum.row(0), step_.row_count() * sum.cols);
  } else {
    for (int64_t row = 0; row < step_.row_count(); ++row) reduce(sum.row(row), sum.cols);
  }
}

std::span<float> CpuBackend::read_logits() {
  return {logits_.as<float>(), step_.batch().logit_rows.size() * static_cast<size_t>(vocab_count_)};
}

void CpuBackend::read_activation(Act act, int64_t rows, std::span<float> out) {
  const int64_t cols = cols_of(act);
  const Activation& from = activations_[static_cast<size_t>(act)];
  UPDRAFT_CHECK(rows <= from.rows_max && static_cast<int64_t>(out.size()) == rows * cols,
                "rows of the activation");
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(from.row(row), cols, out.data() + row * cols);
}

// The threads' cores: as configured, else the process's own when there is one for each thread.
Result<ThreadPool::Config> pool_config(const CpuConfig& config) {
  constexpr int kThreadsMax = 1024;
  if (config.thread_count < 0 || config.thread_count > kThreadsMax) {
    return fail("cpu: thread_count is " + std::to_string(config.thread_count) + ", must be 0.." +
                std::to_string(kThreadsMax));
  }
  const std::vector<int> own = process_cores();
  ThreadPool::Config pool;
  const size_t cores = config.cores.empty() ? std::max<size_t>(1, own.size()) : config.cores.size();
  pool.thread_count = config.thread_count != 0 ? config.thread_count : static_cast<int>(cores);
  if (!config.pin) return pool;
  pool.cores = config.cores;
  pool.pin_caller = !config.cores.empty();
  if (config.cores.empty() && static_cast<size_t>(pool.thread_count) <= own.size())
    pool.cores = own;
  return pool;
}

}  // namespace

Result<std::unique_ptr<Backend>> open_cpu_backend(const CpuConfig& config) {
  const std::vector<CpuIsa> isas = available_isas();
  const CpuIsa isa = config.isa.value_or(isas.back());
  if (std::find(isas.begin(), isas.end(), isa) == isas.end()) {
    return fail(std::string("cpu: this machine has no ") + isa_name(isa) + ", its best is " +
                isa_name(isas.back()));
  }
  const Result<ThreadPool::Config> threads = pool_config(config);
  if (!threads) return threads.error();
  Result<std::unique_ptr<ThreadPool>> pool = ThreadPool::open(threads.value());
  if (!pool) return pool.error("cpu");
  std::vector<int> nodes = numa_nodes_of(threads->cores.empty() ? process_cores() : threads->cores);
  return std::unique_ptr<Backend>(new CpuBackend(isa, config.exact, config.max_memory_bytes,
                                                 std::move(nodes), std::move(*pool), config.comm));
}

}  // namespace updraft
