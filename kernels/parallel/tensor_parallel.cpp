// See the header. A step's operations are kept until end() and then done by every rank's thread
// from first to last: one hand-over a step, and between the ranks only the sums.
#include "kernels/parallel/tensor_parallel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <variant>

#include "common/base/check.h"
#include "kernels/parallel/rank_threads.h"
#include "kernels/parallel/shares.h"

namespace updraft {
namespace {

// A cut at multiples of this many columns is one between whole blocks of every format.
constexpr int64_t kBlockColsMax = 256;

// What a rank has of a matrix.
struct SplitMatrix {
  Split split;
  std::vector<int64_t> part_rows;           // of the whole
  std::vector<std::vector<Share>> rows_of;  // [rank][part] rows; all of them unless split by rows
  std::vector<Mat> handles;                 // [rank]
};

struct SplitActivation {
  std::vector<Act> handles;  // [rank]
  int64_t cols = 0;          // of the whole
  bool split = false;
};

// The operations of a step, by their group-wide handles.
struct Embed {
  Mat table;
  Act out;
};
struct Matmul {
  Mat weight;
  Vec bias;
  Act in, out;
};
struct GatedMatmul {
  Mat gate_up;
  Act in, out;
};
struct Logits {
  Mat head;
  Act in;
};
struct AllReduce {
  Act act;
};
using Operation = std::variant<Embed, ResidualNorm, Matmul, QkvPrepare, Attention, GatedMatmul,
                               Logits, AllReduce>;

// Whole blocks [first, first + count) of each row's columns, copied.
std::vector<std::byte> copy_cols(const WeightView& view, const Share& cols) {
  const int64_t row = row_bytes(view.type, view.cols);
  const int64_t skip = row_bytes(view.type, cols.first);
  const int64_t width = row_bytes(view.type, cols.count);
  std::vector<std::byte> out(static_cast<size_t>(view.rows * width));
  for (int64_t r = 0; r < view.rows; ++r)
    std::memcpy(out.data() + r * width, view.data + r * row + skip, static_cast<size_t>(width));
  return out;
}

class TensorParallelBackend final : public Backend {
 public:
  TensorParallelBackend(std::vector<std::unique_ptr<Backend>> ranks, std::vector<double> weights)
      : ranks_(std::move(ranks)),
        weights_(std::move(weights)),
        alike_(std::all_of(
            ranks_.begin(), ranks_.end(),
            [&](const auto& rank) { return rank->description() == ranks_[0]->description(); })),
        threads_(static_cast<int32_t>(ranks_.size())) {}

  std::string description() const override {
    std::string out = "tensor parallel, ";
    if (alike_)
      return out + std::to_string(ranks_.size()) + " x (" + ranks_[0]->description() + ")";
    for (size_t i = 0; i < ranks_.size(); ++i)
      out += (i == 0 ? "(" : " + (") + ranks_[i]->description() + ")";
    return out;
  }
  uint64_t memory_used_bytes() const override {
    uint64_t sum = 0;
    for (const auto& rank : ranks_) sum += rank->memory_used_bytes();
    return sum;
  }
  uint64_t memory_total_bytes() const override {
    uint64_t sum = 0;
    for (const auto& rank : ranks_) {
      if (rank->memory_total_bytes() == 0) return 0;  // one does not say
      sum += rank->memory_total_bytes();
    }
    return sum;
  }

  bool has_own_memory() const override {
    return std::all_of(ranks_.begin(), ranks_.end(),
                       [](const auto& rank) { return rank->has_own_memory(); });
  }
  // Of whole heads on each: more than their shares take.
  uint64_t scratch_bytes(const KvShape& shape, int64_t rows_max) const override {
    uint64_t sum = 0;
    for (const auto& rank : ranks_) sum += rank->scratch_bytes(shape, rows_max);
    return sum;
  }

  uint64_t kept_bytes(const WeightView& view, bool of_layer) const override {
    return ranks_[0]->kept_bytes(view, of_layer);
  }
  std::vector<DeviceNeeds> needs(const ModelBytes& model, const KvShape& shape,
                                 int64_t rows_max) const override;
  void set_weight_rooms(std::span<const uint64_t> bytes) override {
    UPDRAFT_CHECK(bytes.size() == ranks_.size(), "a room for each device");
    for (size_t i = 0; i < bytes.size(); ++i) ranks_[i]->set_weight_rooms(bytes.subspan(i, 1));
  }
  bool keeps_weights_outside() const override {
    return std::all_of(ranks_.begin(), ranks_.end(),
                       [](const auto& rank) { return rank->keeps_weights_outside(); });
  }
  Result<Mat> add_matrix(std::span<const WeightView> parts) override {
    return add_shares(parts, {}, false);
  }
  Result<Mat> add_split_matrix(std::span<const WeightView> parts, const Split& split) override {
    return add_shares(parts, split, true);
  }
  Result<Vec> add_vector(std::span<const float> values) override {
    return add_vectors([&](int32_t) { return values; });
  }
  Result<Vec> add_bias(Mat matrix, std::span<const float> values) override;
  Result<Act> add_activation(int64_t rows_max, int64_t cols) override {
    return add_activations(
        cols, false, [=](int32_t, Backend& rank) { return rank.add_activation(rows_max, cols); });
  }
  Result<Act> add_residual(int64_t rows_max, int64_t cols) override {
    return add_activations(
        cols, false, [=](int32_t, Backend& rank) { return rank.add_residual(rows_max, cols); });
  }
  Result<Act> add_split_activation(int64_t rows_max, int64_t cols, Mat matrix,
                                   int32_t part_count) override;
  Result<void> reserve_logits(int64_t logit_rows_max, int64_t vocab_count) override {
    return each(
        [&](int32_t, Backend& rank) { return rank.reserve_logits(logit_rows_max, vocab_count); });
  }
  Result<void> make_kv_pool(const KvShape& shape) override;
  uint64_t kv_page_bytes(const KvShape& shape) const override;
  Result<void> make_swap_space(int32_t page_count) override {
    return each([&](int32_t, Backend& rank) { return rank.make_swap_space(page_count); });
  }

  bool samples() const override {
    return std::all_of(ranks_.begin(), ranks_.end(), [](const auto& r) { return r->samples(); });
  }
  int32_t steps_in_flight_max() const override {
    if (!alike_) return 1;
    int32_t least = ranks_[0]->steps_in_flight_max();
    for (const auto& rank : ranks_) least = std::min(least, rank->steps_in_flight_max());
    return least;
  }
  bool never_sample(std::span<const int32_t> ids) override {
    std::vector<char> can(ranks_.size());  // not bool: each rank writes its own
    threads_.run([&](int32_t rank) { can[index(rank)] = at(rank).never_sample(ids) ? 1 : 0; });
    return std::all_of(can.begin(), can.end(), [](char c) { return c != 0; });
  }

  void begin(const Batch& batch) override {
    batch_ = batch;
    operations_.clear();
  }
  void embed(Mat table, Act out) override { operations_.emplace_back(Embed{table, out}); }
  void residual_norm(const ResidualNorm& op) override { operations_.emplace_back(op); }
  void matmul(Mat weight, Vec bias, Act in, Act out) override {
    operations_.emplace_back(Matmul{weight, bias, in, out});
  }
  void prepare_qkv(const QkvPrepare& op) override { operations_.emplace_back(op); }
  void attention(const Attention& op) override { operations_.emplace_back(op); }
  void gated_matmul(Mat gate_up, Act in, Act out) override {
    operations_.emplace_back(GatedMatmul{gate_up, in, out});
  }
  void logits(Mat head, Act in) override { operations_.emplace_back(Logits{head, in}); }
  void all_reduce(Act act) override { operations_.emplace_back(AllReduce{act}); }
  void end() override {
    threads_.run([this](int32_t rank) { run_step(rank); });
  }
  std::span<float> read_logits() override {
    std::span<float> first;
    threads_.run([&](int32_t rank) {
      const std::span<float> read = at(rank).read_logits();
      if (rank == 0) first = read;
    });
    return first;
  }
  std::span<const int32_t> read_tokens() override;

  void copy_page(int32_t from, int32_t to) override {
    threads_.run([&](int32_t rank) { at(rank).copy_page(from, to); });
  }
  void swap_out(int32_t page, int32_t slot) override {
    threads_.run([&](int32_t rank) { at(rank).swap_out(page, slot); });
  }
  void swap_in(int32_t slot, int32_t page) override {
    threads_.run([&](int32_t rank) { at(rank).swap_in(slot, page); });
  }
  void read_activation(Act act, int64_t rows, std::span<float> out) override {
    const SplitActivation& activation = activations_.at(static_cast<size_t>(act));
    UPDRAFT_CHECK(!activation.split, "no device has all of it");
    threads_.run([&](int32_t rank) {
      if (rank == 0) at(rank).read_activation(activation.handles[0], rows, out);
    });
  }

 private:
  static size_t index(int32_t rank) { return static_cast<size_t>(rank); }
  Backend& at(int32_t rank) { return *ranks_[index(rank)]; }

  // work(rank, backend) on each rank's thread; the first error, with the device that it is of.
  template <typename Work>
  Result<void> each(Work work) {
    std::vector<Result<void>> done(ranks_.size());
    threads_.run([&](int32_t rank) { done[index(rank)] = work(rank, at(rank)); });
    for (size_t i = 0; i < done.size(); ++i) {
      if (done[i]) continue;
      return done[i].error("device " + std::to_string(i) + " of " + std::to_string(ranks_.size()) +
                           " (" + ranks_[i]->description() + ")");
    }
    return {};
  }
  // of_layer: as a device's own add_split_matrix() takes it, else add_matrix().
  Result<Mat> add_shares(std::span<const WeightView> parts, const Split& split, bool of_layer);
  template <typename Values>
  Result<Vec> add_vectors(Values values);
  template <typename Add>
  Result<Act> add_activations(int64_t cols, bool split, Add add);
  Result<std::vector<HeadShare>> shares_of(const Split& split, int64_t piece_size) const;

  Mat map(Mat mat, int32_t rank) const {
    return matrices_.at(static_cast<size_t>(mat)).handles[index(rank)];
  }
  Vec map(Vec vec, int32_t rank) const {
    return vec == kNoVec ? kNoVec : vectors_.at(static_cast<size_t>(vec))[index(rank)];
  }
  Act map(Act act, int32_t rank) const {
    return act == kNoAct ? kNoAct : activations_.at(static_cast<size_t>(act)).handles[index(rank)];
  }
  int32_t heads_of(int32_t rank, int32_t all) const {
    const int32_t sum = std::accumulate(
        heads_.begin(), heads_.end(), 0,
        [](int32_t before, const HeadShare& share) { return before + share.heads.count; });
    UPDRAFT_CHECK(sum == all, "the heads of the matrix of q, k and v");
    return heads_[index(rank)].heads.count;
  }
  void run_step(int32_t rank);
  void run(const Embed& op, int32_t rank) {
    at(rank).embed(map(op.table, rank), map(op.out, rank));
  }
  void run(ResidualNorm op, int32_t rank);
  void run(const Matmul& op, int32_t rank) {
    at(rank).matmul(map(op.weight, rank), map(op.bias, rank), map(op.in, rank), map(op.out, rank));
  }
  void run(QkvPrepare op, int32_t rank);
  void run(Attention op, int32_t rank);
  void run(const GatedMatmul& op, int32_t rank) {
    at(rank).gated_matmul(map(op.gate_up, rank), map(op.in, rank), map(op.out, rank));
  }
  void run(const Logits& op, int32_t rank) {
    at(rank).logits(map(op.head, rank), map(op.in, rank));
  }
  void run(const AllReduce& op, int32_t rank) { at(rank).all_reduce(map(op.act, rank)); }

  const std::vector<std::unique_ptr<Backend>> ranks_;
  const std::vector<double> weights_;
  const bool alike_;
  std::vector<SplitMatrix> matrices_;
  std::vector<std::vector<Vec>> vectors_;  // [handle][rank]
  std::vector<SplitActivation> activations_;
  std::vector<HeadShare> heads_;  // [rank], of the last matrix of q, k and v
  Batch batch_;
  std::vector<Operation> operations_;
  std::vector<std::span<const int32_t>> tokens_;  // [rank], as read
  RankThreads threads_;                           // last: they use all of the above
};

// --- load time ---

// piece_size: rows, or columns, of a piece.
Result<std::vector<HeadShare>> TensorParallelBackend::shares_of(const Split& split,
                                                                int64_t piece_size) const {
  const auto unit = static_cast<int32_t>(kBlockColsMax / std::gcd(kBlockColsMax, piece_size));
  return share_heads(split.pieces, split.group, unit, weights_);
}

Result<Mat> TensorParallelBackend::add_shares(std::span<const WeightView> parts, const Split& split,
                                              bool of_layer) {
  UPDRAFT_CHECK(!parts.empty());
  const auto count = static_cast<int32_t>(ranks_.size());
  SplitMatrix matrix;
  matrix.split = split;
  matrix.handles.resize(ranks_.size(), Mat{-1});
  for (const WeightView& part : parts) matrix.part_rows.push_back(part.rows);
  std::vector<Share> all;
  for (const WeightView& part : parts) all.push_back({0, static_cast<int32_t>(part.rows)});
  matrix.rows_of.assign(ranks_.size(), all);
  std::vector<Share> cols(ranks_.size(), {0, static_cast<int32_t>(parts[0].cols)});

  const std::string name = "a matrix of " + std::to_string(parts[0].rows) + " x " +
                           std::to_string(parts[0].cols) + " in " + dtype_info(parts[0].type).name;
  if (split.by == Split::By::kRows) {
    const auto piece_rows = static_cast<int32_t>(parts[0].rows / split.pieces);
    const auto shares = shares_of(split, piece_rows);
    if (!shares) return shares.error(name);
    for (size_t p = 0; p < parts.size(); ++p) {
      const int32_t pieces = p == 0 ? split.pieces : split.pieces / split.group;
      if (parts[p].rows != int64_t{piece_rows} * pieces) {
        return fail(name + ": part " + std::to_string(p) + " of " + std::to_string(parts[p].rows) +
                    " rows is not " + std::to_string(pieces) + " pieces of " +
                    std::to_string(piece_rows));
      }
      for (int32_t rank = 0; rank < count; ++rank) {
        const HeadShare& share = (*shares)[index(rank)];
        const Share& own = p == 0 ? share.heads : share.kv_heads;
        matrix.rows_of[index(rank)][p] = {own.first * piece_rows, own.count * piece_rows};
      }
    }
    if (parts.size() == 3) heads_ = *shares;
  } else if (split.by == Split::By::kCols) {
    const auto piece_cols = static_cast<int32_t>(parts[0].cols / split.pieces);
    const auto shares = shares_of(split, piece_cols);
    if (!shares) return shares.error(name);
    const int64_t block = dtype_info(parts[0].type).block_elems;
    for (int32_t rank = 0; rank < count; ++rank) {
      const Share& own = (*shares)[index(rank)].heads;
      cols[index(rank)] = {own.first * piece_cols, own.count * piece_cols};
      if (cols[index(rank)].first % block != 0 || cols[index(rank)].count % block != 0) {
        return fail(name + " cannot be cut at column " + std::to_string(cols[index(rank)].end()) +
                    ", inside a block of " + std::to_string(block) +
                    ": use another number of devices or another quantisation");
      }
    }
    UPDRAFT_CHECK(parts.size() == 1 && int64_t{piece_cols} * split.pieces == parts[0].cols,
                  "one part, of whole pieces");
  }

  const auto added = each([&](int32_t rank, Backend& backend) -> Result<void> {
    std::vector<WeightView> own(parts.begin(), parts.end());
    std::vector<std::byte> copied;
    for (size_t p = 0; p < own.size(); ++p)
      own[p] = row_range(parts[p], matrix.rows_of[index(rank)][p].first,
                         matrix.rows_of[index(rank)][p].count);
    if (split.by == Split::By::kCols) {
      copied = copy_cols(parts[0], cols[index(rank)]);
      own[0].data = copied.data();
      own[0].cols = cols[index(rank)].count;
    }
    const Result<Mat> made =
        of_layer ? backend.add_split_matrix(own, split) : backend.add_matrix(own);
    if (!made) return made.error();
    matrix.handles[index(rank)] = *made;
    return {};
  });
  if (!added) return added.error();
  matrices_.push_back(std::move(matrix));
  return static_cast<Mat>(matrices_.size() - 1);
}

template <typename Values>
Result<Vec> TensorParallelBackend::add_vectors(Values values) {
  std::vector<Vec> handles(ranks_.size(), kNoVec);
  const auto added = each([&](int32_t rank, Backend& backend) -> Result<void> {
    const auto own = values(rank);
    const Result<Vec> made = backend.add_vector(own);
    if (!made) return made.error();
    handles[index(rank)] = *made;
    return {};
  });
  if (!added) return added.error();
  vectors_.push_back(std::move(handles));
  return static_cast<Vec>(vectors_.size() - 1);
}

Result<Vec> TensorParallelBackend::add_bias(Mat mat, std::span<const float> values) {
  const SplitMatrix& matrix = matrices_.at(static_cast<size_t>(mat));
  const int64_t rows =
      std::accumulate(matrix.part_rows.begin(), matrix.part_rows.end(), int64_t{0});
  UPDRAFT_CHECK(static_cast<int64_t>(values.size()) == rows, "a value for each row");
  return add_vectors([&](int32_t rank) {
    // To partial sums it is added once.
    if (matrix.split.by == Split::By::kCols && rank != 0)
      return std::vector<float>(values.size(), 0.0F);
    std::vector<float> own;
    int64_t part_first = 0;
    for (size_t p = 0; p < matrix.part_rows.size(); ++p) {
      const Share& share = matrix.rows_of[index(rank)][p];
      const auto from = values.subspan(static_cast<size_t>(part_first + share.first),
                                       static_cast<size_t>(share.count));
      own.insert(own.end(), from.begin(), from.end());
      part_first += matrix.part_rows[p];
    }
    return own;
  });
}

template <typename Add>
Result<Act> TensorParallelBackend::add_activations(int64_t cols, bool split, Add add) {
  SplitActivation activation;
  activation.handles.resize(ranks_.size(), kNoAct);
  activation.cols = cols;
  activation.split = split;
  const auto added = each([&](int32_t rank, Backend& backend) -> Result<void> {
    const Result<Act> made = add(rank, backend);
    if (!made) return made.error();
    activation.handles[index(rank)] = *made;
    return {};
  });
  if (!added) return added.error();
  activations_.push_back(std::move(activation));
  return static_cast<Act>(activations_.size() - 1);
}

Result<Act> TensorParallelBackend::add_split_activation(int64_t rows_max, int64_t cols, Mat mat,
                                                        int32_t part_count) {
  const SplitMatrix& matrix = matrices_.at(static_cast<size_t>(mat));
  const auto parts = static_cast<size_t>(part_count);
  UPDRAFT_CHECK(parts <= matrix.part_rows.size());
  const auto end = matrix.part_rows.begin() + part_count;
  UPDRAFT_CHECK(std::accumulate(matrix.part_rows.begin(), end, int64_t{0}) == cols,
                "the width of what those parts make");
  return add_activations(cols, matrix.split.by == Split::By::kRows,
                         [&](int32_t rank, Backend& backend) {
                           int64_t own = 0;
                           for (size_t p = 0; p < parts; ++p)
                             own += matrix.rows_of[index(rank)][p].count;
                           return backend.add_activation(rows_max, own);
                         });
}

Result<void> TensorParallelBackend::make_kv_pool(const KvShape& shape) {
  UPDRAFT_CHECK(!heads_.empty(), "a KV pool follows the matrices of q, k and v");
  return each([&](int32_t rank, Backend& backend) {
    KvShape own = shape;
    own.kv_head_count = heads_[index(rank)].kv_heads.count;
    return backend.make_kv_pool(own);
  });
}

// Before the matrices are there, of shares that are whole KV heads: their sum is the same however
// they are cut, unless each device has a copy of one.
uint64_t TensorParallelBackend::kv_page_bytes(const KvShape& shape) const {
  const auto devices = static_cast<int32_t>(ranks_.size());
  if (shape.kv_head_count >= devices) return ranks_[0]->kv_page_bytes(shape);
  KvShape one = shape;
  one.kv_head_count = 1;
  return ranks_[0]->kv_page_bytes(one) * static_cast<uint64_t>(devices);
}

// Of a layer each has its weight's part, up to a piece; heads are cut as the matrix of q, k and v
// will be, up to a unit.
std::vector<DeviceNeeds> TensorParallelBackend::needs(const ModelBytes& model, const KvShape& shape,
                                                      int64_t rows_max) const {
  const double all = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  const auto heads =
      shape.head_count > 0 && shape.kv_head_count > 0
          ? share_heads(shape.head_count, shape.head_count / shape.kv_head_count, 1, weights_)
          : Result<std::vector<HeadShare>>(fail("no heads"));
  std::vector<DeviceNeeds> out;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    KvShape own = shape;
    // Too few heads: an error when the matrix comes.
    if (heads) own.kv_head_count = (*heads)[i].kv_heads.count;
    ModelBytes bytes = model;
    bytes.layers =
        static_cast<uint64_t>(std::ceil(static_cast<double>(model.layers) * (weights_[i] / all)));
    const std::vector<DeviceNeeds> one = ranks_[i]->needs(bytes, own, rows_max);
    UPDRAFT_CHECK(one.size() == 1, "a rank is one device");
    out.push_back(one[0]);
  }
  return out;
}

// --- one step; a rank's thread ---

void TensorParallelBackend::run_step(int32_t rank) {
  at(rank).begin(batch_);
  for (const Operation& operation : operations_)
    std::visit([&](const auto& op) { run(op, rank); }, operation);
  at(rank).end();
}

void TensorParallelBackend::run(ResidualNorm op, int32_t rank) {
  op.hidden = map(op.hidden, rank);
  op.delta = map(op.delta, rank);
  op.delta_norm = map(op.delta_norm, rank);
  op.norm = map(op.norm, rank);
  op.out = map(op.out, rank);
  at(rank).residual_norm(op);
}

void TensorParallelBackend::run(QkvPrepare op, int32_t rank) {
  op.qkv = map(op.qkv, rank);
  op.head_count = heads_of(rank, op.head_count);
  op.q_norm = map(op.q_norm, rank);
  op.k_norm = map(op.k_norm, rank);
  op.rope.inverse_frequency = map(op.rope.inverse_frequency, rank);
  at(rank).prepare_qkv(op);
}

void TensorParallelBackend::run(Attention op, int32_t rank) {
  op.qkv = map(op.qkv, rank);
  op.out = map(op.out, rank);
  op.head_count = heads_of(rank, op.head_count);
  at(rank).attention(op);
}

// Devices that go on from tokens which the host has not read go on from their own: all must have
// chosen the same.
std::span<const int32_t> TensorParallelBackend::read_tokens() {
  tokens_.resize(ranks_.size());
  threads_.run([&](int32_t rank) { tokens_[index(rank)] = at(rank).read_tokens(); });
  if (!alike_) return tokens_[0];
  for (size_t i = 1; i < tokens_.size(); ++i) {
    UPDRAFT_CHECK(std::ranges::equal(tokens_[i], tokens_[0]),
                  "the devices of a group chose different tokens: one of them computes wrong");
  }
  return tokens_[0];
}

}  // namespace

Result<std::unique_ptr<Backend>> open_tensor_parallel(std::vector<std::unique_ptr<Backend>> ranks,
                                                      std::vector<double> weights) {
  UPDRAFT_CHECK(ranks.size() > 1, "a group has at least two devices");
  if (weights.empty()) {
    for (const auto& rank : ranks) {
      const uint64_t total = rank->memory_total_bytes();
      const uint64_t used = rank->memory_used_bytes();
      weights.push_back(total > used ? static_cast<double>(total - used) : 0.0);
    }
    if (std::any_of(weights.begin(), weights.end(), [](double w) { return w <= 0.0; }))
      weights.assign(ranks.size(), 1.0);
  }
  if (weights.size() != ranks.size()) {
    return fail("tensor parallel: " + std::to_string(weights.size()) + " weights for " +
                std::to_string(ranks.size()) + " devices");
  }
  for (const double weight : weights) {
    if (!(weight > 0.0)) {
      return fail("tensor parallel: a device's weight is " + std::to_string(weight) +
                  ", must be above 0");
    }
  }
  return std::unique_ptr<Backend>(
      std::make_unique<TensorParallelBackend>(std::move(ranks), std::move(weights)));
}

}  // namespace updraft
