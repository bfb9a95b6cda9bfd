// A Backend in plain double-precision loops: the outside truth for the forward pass and for faster
// backends. Written from the contract in kernels/backend.h and the formulas of the models' papers,
// with no regard for speed. KV in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "kernels/backend.h"
#include "kernels/quant/quant.h"

namespace updraft::testing {

class ReferenceBackend : public Backend {
 public:
  std::string description() const override { return "reference, double precision"; }
  uint64_t memory_used_bytes() const override { return 0; }
  uint64_t memory_total_bytes() const override { return 0; }

  Result<Mat> add_matrix(std::span<const WeightView> parts) override {
    Matrix matrix;
    matrix.cols = parts[0].cols;
    for (const WeightView& part : parts) {
      UPDRAFT_CHECK(part.cols == matrix.cols);
      std::vector<float> row(static_cast<size_t>(part.cols));
      for (int64_t r = 0; r < part.rows; ++r) {
        dequantize_row(part, r, row);
        matrix.values.insert(matrix.values.end(), row.begin(), row.end());
      }
      matrix.rows += part.rows;
    }
    matrices_.push_back(std::move(matrix));
    return Mat{static_cast<int32_t>(matrices_.size()) - 1};
  }
  Result<Vec> add_vector(std::span<const float> values) override {
    vectors_.emplace_back(values.begin(), values.end());
    return Vec{static_cast<int32_t>(vectors_.size()) - 1};
  }
  Result<Act> add_activation(int64_t rows_max, int64_t cols) override {
    activations_.push_back(
        {rows_max, cols, std::vector<double>(static_cast<size_t>(rows_max * cols), 1e30)});
    return Act{static_cast<int32_t>(activations_.size()) - 1};
  }
  Result<void> reserve_logits(int64_t logit_rows_max, int64_t vocab_count) override {
    logits_.resize(static_cast<size_t>(logit_rows_max * vocab_count));
    return {};
  }
  Result<void> make_kv_pool(const KvShape& shape) override {
    kv_ = shape;
    const size_t cells = static_cast<size_t>(shape.layer_count) *
                         static_cast<size_t>(shape.page_count) *
                         static_cast<size_t>(shape.page_tokens) * static_cast<size_t>(kv_cols());
    // A position that was never written poisons whatever reads it.
    keys_.assign(cells, std::nan(""));
    values_.assign(cells, std::nan(""));
    return {};
  }
  uint64_t kv_page_bytes(const KvShape& shape) const override {
    return static_cast<uint64_t>(shape.layer_count) * static_cast<uint64_t>(shape.kv_head_count) *
           static_cast<uint64_t>(shape.head_dim) * static_cast<uint64_t>(shape.page_tokens) * 2 *
           sizeof(double);
  }

  void begin(const Batch& batch) override {
    batch_ = batch;
    logit_count_ = 0;
    int32_t row = 0;
    for (const SequenceSlice& slice : batch.sequences) {
      UPDRAFT_CHECK(slice.row_first == row && slice.row_count > 0);
      UPDRAFT_CHECK(static_cast<int64_t>(slice.pages.size()) * kv_.page_tokens >=
                    slice.cached_count + slice.row_count);
      row += slice.row_count;
    }
    UPDRAFT_CHECK(row == rows() && batch.positions.size() == batch.token_ids.size());
    UPDRAFT_CHECK(std::is_sorted(batch.logit_rows.begin(), batch.logit_rows.end()));
  }
  void embed(Mat table, Act out) override {
    const Matrix& t = matrix(table);
    auto given = batch_.given_rows.begin();
    for (int64_t r = 0; r < rows(); ++r) {
      const int64_t id = batch_.token_ids[static_cast<size_t>(r)];
      UPDRAFT_CHECK(id < t.rows);
      for (int64_t c = 0; c < t.cols; ++c) at(out, r, c) = id < 0 ? *given++ : t.at(id, c);
    }
    UPDRAFT_CHECK(given == batch_.given_rows.end());
  }
  void residual_norm(const ResidualNorm& op) override {
    const int64_t dim = act(op.hidden).cols;
    for (int64_t r = 0; r < rows(); ++r) {
      if (op.delta != kNoAct) {
        const double scale =
            op.delta_norm != kNoVec ? inverse_rms(&at(op.delta, r, 0), dim, op.eps) : 1.0;
        for (int64_t c = 0; c < dim; ++c) {
          const double weight =
              op.delta_norm != kNoVec ? vec(op.delta_norm)[static_cast<size_t>(c)] : 1.0;
          at(op.hidden, r, c) += at(op.delta, r, c) * scale * weight;
        }
      }
      if (op.out == kNoAct) continue;
      const double scale = inverse_rms(&at(op.hidden, r, 0), dim, op.eps);
      for (int64_t c = 0; c < dim; ++c) {
        at(op.out, r, c) = at(op.hidden, r, c) * scale * vec(op.norm)[static_cast<size_t>(c)];
      }
    }
  }
  void matmul(Mat weight, Vec bias, Act in, Act out) override {
    const Matrix& w = matrix(weight);
    UPDRAFT_CHECK(w.cols == act(in).cols && w.rows == act(out).cols);
    for (int64_t row = 0; row < rows(); ++row) {
      for (int64_t r = 0; r < w.rows; ++r) {
        double sum = bias != kNoVec ? vec(bias)[static_cast<size_t>(r)] : 0.0;
        for (int64_t c = 0; c < w.cols; ++c) sum += at(in, row, c) * w.at(r, c);
        at(out, row, r) = sum;
      }
    }
  }
  void prepare_qkv(const QkvPrepare& op) override {
    const int64_t hd = kv_.head_dim;
    for (const SequenceSlice& slice : batch_.sequences) {
      for (int32_t i = 0; i < slice.row_count; ++i) {
        const int64_t row = slice.row_first + i;
        const double position = batch_.positions[static_cast<size_t>(row)];
        for (int64_t head = 0; head < op.head_count + kv_.kv_head_count; ++head) {
          double* x = &at(op.qkv, row, head * hd);
          const Vec norm = head < op.head_count ? op.q_norm : op.k_norm;
          if (norm != kNoVec) {
            const double scale = inverse_rms(x, hd, op.eps);
            for (int64_t d = 0; d < hd; ++d) x[d] *= scale * vec(norm)[static_cast<size_t>(d)];
          }
          rotate(x, position, op.rope);
        }
        const double* k = &at(op.qkv, row, op.head_count * hd);
        for (int64_t c = 0; c < kv_cols(); ++c) {
          keys_[cell(op.layer, slice, slice.cached_count + i) + static_cast<size_t>(c)] = k[c];
          values_[cell(op.layer, slice, slice.cached_count + i) + static_cast<size_t>(c)] =
              k[kv_cols() + c];
        }
      }
    }
  }
  void attention(const Attention& op) override {
    const int64_t hd = kv_.head_dim;
    for (const SequenceSlice& slice : batch_.sequences) {
      for (int32_t i = 0; i < slice.row_count; ++i) {
        const int64_t row = slice.row_first + i;
        const int32_t length = slice.cached_count + i + 1;
        for (int64_t head = 0; head < op.head_count; ++head) {
          const int64_t kv_head = head / (op.head_count / kv_.kv_head_count);
          std::vector<double> scores(static_cast<size_t>(length));
          double peak = -1e300;
          for (int32_t p = 0; p < length; ++p) {
            const double* k = &keys_[cell(op.layer, slice, p) + static_cast<size_t>(kv_head * hd)];
            double dot = 0.0;
            for (int64_t d = 0; d < hd; ++d) dot += at(op.qkv, row, head * hd + d) * k[d];
            scores[static_cast<size_t>(p)] = dot * static_cast<double>(op.scale);
            peak = std::max(peak, scores[static_cast<size_t>(p)]);
          }
          double sum = 0.0;
          for (double& score : scores) sum += score = std::exp(score - peak);
          for (int64_t d = 0; d < hd; ++d) {
            double value = 0.0;
            for (int32_t p = 0; p < length; ++p) {
              value += scores[static_cast<size_t>(p)] *
                       values_[cell(op.layer, slice, p) + static_cast<size_t>(kv_head * hd + d)];
            }
            at(op.out, row, head * hd + d) = value / sum;
          }
        }
      }
    }
  }
  void gated_matmul(Mat gate_up, Act in, Act out) override {
    const Matrix& w = matrix(gate_up);
    const int64_t dim = act(out).cols;
    UPDRAFT_CHECK(w.cols == act(in).cols && w.rows == 2 * dim);
    for (int64_t row = 0; row < rows(); ++row) {
      for (int64_t r = 0; r < dim; ++r) {
        double gate = 0.0;
        double up = 0.0;
        for (int64_t c = 0; c < w.cols; ++c) {
          gate += at(in, row, c) * w.at(r, c);
          up += at(in, row, c) * w.at(dim + r, c);
        }
        at(out, row, r) = gate / (1.0 + std::exp(-gate)) * up;
      }
    }
  }
  void logits(Mat head, Act in) override {
    const Matrix& w = matrix(head);
    logit_count_ = batch_.logit_rows.size() * static_cast<size_t>(w.rows);
    UPDRAFT_CHECK(logit_count_ <= logits_.size());
    for (size_t i = 0; i < batch_.logit_rows.size(); ++i) {
      for (int64_t r = 0; r < w.rows; ++r) {
        double sum = 0.0;
        for (int64_t c = 0; c < w.cols; ++c) sum += at(in, batch_.logit_rows[i], c) * w.at(r, c);
        logits_[i * static_cast<size_t>(w.rows) + static_cast<size_t>(r)] = static_cast<float>(sum);
      }
    }
  }
  std::span<float> read_logits() override { return {logits_.data(), logit_count_}; }

  void copy_page(int32_t from, int32_t to) override {
    for (const bool of_keys : {true, false}) {
      for (int32_t layer = 0; layer < kv_.layer_count; ++layer) {
        const std::span<double> source = page_cells(of_keys, layer, from);
        std::copy(source.begin(), source.end(), page_cells(of_keys, layer, to).begin());
      }
    }
  }
  Result<void> make_swap_space(int32_t page_count) override {
    swapped_.resize(static_cast<size_t>(page_count));
    return {};
  }
  void swap_out(int32_t page, int32_t slot) override {
    std::vector<double>& into = swapped_.at(static_cast<size_t>(slot));
    into.clear();
    for (const bool of_keys : {true, false}) {
      for (int32_t layer = 0; layer < kv_.layer_count; ++layer) {
        const std::span<double> cells = page_cells(of_keys, layer, page);
        into.insert(into.end(), cells.begin(), cells.end());
      }
    }
  }
  void swap_in(int32_t slot, int32_t page) override {
    const std::vector<double>& from = swapped_.at(static_cast<size_t>(slot));
    auto next = from.begin();
    for (const bool of_keys : {true, false}) {
      for (int32_t layer = 0; layer < kv_.layer_count; ++layer) {
        const std::span<double> cells = page_cells(of_keys, layer, page);
        UPDRAFT_CHECK(from.end() - next >= static_cast<ptrdiff_t>(cells.size()),
                      "nothing was swapped out there");
        std::copy_n(next, cells.size(), cells.begin());
        next += static_cast<ptrdiff_t>(cells.size());
      }
    }
  }
  void read_activation(Act a, int64_t rows, std::span<float> out) override {
    const size_t count = static_cast<size_t>(rows * act(a).cols);
    std::transform(act(a).values.begin(), act(a).values.begin() + static_cast<ptrdiff_t>(count),
                   out.begin(), [](double value) { return static_cast<float>(value); });
  }

 protected:
  struct Matrix {
    int64_t rows = 0, cols = 0;
    std::vector<float> values;
    double at(int64_t r, int64_t c) const {
      return static_cast<double>(values[static_cast<size_t>(r * cols + c)]);
    }
  };
  struct Activation {
    int64_t rows_max, cols;
    std::vector<double> values;
  };

  std::span<double> page_cells(bool of_keys, int32_t layer, int32_t page) {
    UPDRAFT_CHECK(page >= 0 && page < kv_.page_count);
    const size_t count = static_cast<size_t>(kv_.page_tokens) * static_cast<size_t>(kv_cols());
    const size_t index = static_cast<size_t>(layer) * static_cast<size_t>(kv_.page_count) +
                         static_cast<size_t>(page);
    return std::span(of_keys ? keys_ : values_).subspan(index * count, count);
  }
  int64_t rows() const { return static_cast<int64_t>(batch_.token_ids.size()); }
  int64_t kv_cols() const { return int64_t{kv_.kv_head_count} * kv_.head_dim; }
  const Matrix& matrix(Mat m) const { return matrices_[static_cast<size_t>(m)]; }
  std::span<const double> vec(Vec v) const { return vectors_[static_cast<size_t>(v)]; }
  const Activation& act(Act a) const { return activations_[static_cast<size_t>(a)]; }
  double& at(Act a, int64_t row, int64_t col) {
    Activation& activation = activations_[static_cast<size_t>(a)];
    UPDRAFT_CHECK(row < activation.rows_max && col < activation.cols);
    return activation.values[static_cast<size_t>(row * activation.cols + col)];
  }
  size_t cell(int32_t layer, const SequenceSlice& slice, int32_t position) const {
    const int64_t page = slice.pages[static_cast<size_t>(position / kv_.page_tokens)];
    UPDRAFT_CHECK(page >= 0 && page < kv_.page_count);
    const int64_t token =
        (layer * int64_t{kv_.page_count} + page) * kv_.page_tokens + position % kv_.page_tokens;
    return static_cast<size_t>(token * kv_cols());
  }
  static double inverse_rms(const double* x, int64_t dim, float eps) {
    double sum = 0.0;
    for (int64_t i = 0; i < dim; ++i) sum += x[i] * x[i];
    return 1.0 / std::sqrt(sum / static_cast<double>(dim) + static_cast<double>(eps));
  }
  void rotate(double* x, double position, const Rope& rope) const {
    const int32_t pairs = rope.rope_dims / 2;
    for (int32_t i = 0; i < pairs; ++i) {
      const double angle = position * vec(rope.inverse_frequency)[static_cast<size_t>(i)];
      const double c = std::cos(angle) * static_cast<double>(rope.magnitude);
      const double s = std::sin(angle) * static_cast<double>(rope.magnitude);
      const bool half = rope.style == RopeStyle::kHalf;
      double& a = x[half ? i : 2 * i];
      double& b = x[half ? i + pairs : 2 * i + 1];
      const double rotated = a * c - b * s;
      b = a * s + b * c;
      a = rotated;
    }
  }

 private:
  Batch batch_;
  KvShape kv_;
  std::vector<Matrix> matrices_;
  std::vector<std::vector<double>> vectors_;
  std::vector<Activation> activations_;
  std::vector<double> keys_, values_;  // [layer][page][position][kv head][dim]
  std::vector<std::vector<double>> swapped_;
  std::vector<float> logits_;
  size_t logit_count_ = 0;
};

}  // namespace updraft::testing
