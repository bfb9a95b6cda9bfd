// A backend whose model says what a script says: every operation is done by a real backend, and
// then the logits of each row are made to point at the script's next token. Lets a test choose the
// text that "the model" writes, and so how well it can be guessed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace updraft::testing {

class ScriptedBackend final : public Backend {
 public:
  // Sees each step before it runs; on the engine thread.
  std::function<void(const Batch&)> on_begin;

  // script[p] is the token at position p, of every sequence; behind its end the model speaks for
  // itself.
  ScriptedBackend(std::unique_ptr<Backend> inner, std::vector<int32_t> script)
      : inner_(std::move(inner)), script_(std::move(script)) {}

  std::string description() const override { return "scripted " + inner_->description(); }
  uint64_t memory_used_bytes() const override { return inner_->memory_used_bytes(); }
  uint64_t memory_total_bytes() const override { return inner_->memory_total_bytes(); }
  Result<Mat> add_matrix(std::span<const WeightView> parts) override {
    return inner_->add_matrix(parts);
  }
  Result<Vec> add_vector(std::span<const float> values) override {
    return inner_->add_vector(values);
  }
  Result<Act> add_activation(int64_t rows_max, int64_t cols) override {
    return inner_->add_activation(rows_max, cols);
  }
  Result<void> reserve_logits(int64_t logit_rows_max, int64_t vocab_count) override {
    vocab_count_ = static_cast<size_t>(vocab_count);
    return inner_->reserve_logits(logit_rows_max, vocab_count);
  }
  Result<void> make_kv_pool(const KvShape& shape) override { return inner_->make_kv_pool(shape); }
  uint64_t kv_page_bytes(const KvShape& shape) const override {
    return inner_->kv_page_bytes(shape);
  }
  void begin(const Batch& batch) override {
    if (on_begin) on_begin(batch);
    next_positions_.clear();
    for (const int32_t row : batch.logit_rows) {
      next_positions_.push_back(batch.positions[static_cast<size_t>(row)] + 1);
    }
    inner_->begin(batch);
  }
  void embed(Mat table, Act out) override { inner_->embed(table, out); }
  void residual_norm(const ResidualNorm& op) override { inner_->residual_norm(op); }
  void matmul(Mat weight, Vec bias, Act in, Act out) override {
    inner_->matmul(weight, bias, in, out);
  }
  void prepare_qkv(const QkvPrepare& op) override { inner_->prepare_qkv(op); }
  void attention(const Attention& op) override { inner_->attention(op); }
  void gated_matmul(Mat gate_up, Act in, Act out) override {
    inner_->gated_matmul(gate_up, in, out);
  }
  void logits(Mat head, Act in) override { inner_->logits(head, in); }
  std::span<float> read_logits() override {
    const std::span<float> all = inner_->read_logits();
    for (size_t i = 0; i < next_positions_.size(); ++i) {
      const auto position = static_cast<size_t>(next_positions_[i]);
      if (position >= script_.size()) continue;
      const std::span<float> row = all.subspan(i * vocab_count_, vocab_count_);
      row[static_cast<size_t>(script_[position])] = *std::max_element(row.begin(), row.end()) + 20;
    }
    return all;
  }
  void copy_page(int32_t from, int32_t to) override { inner_->copy_page(from, to); }
  void read_activation(Act act, int64_t rows, std::span<float> out) override {
    inner_->read_activation(act, rows, out);
  }

 private:
  const std::unique_ptr<Backend> inner_;
  const std::vector<int32_t> script_;
  size_t vocab_count_ = 0;
  std::vector<int32_t> next_positions_;  // of each logit row's next token
};

}  // namespace updraft::testing
