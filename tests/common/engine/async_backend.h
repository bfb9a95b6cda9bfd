// A device that runs behind the host: the operations of a step are kept and done by a thread of its
// own, on a backend inside, in the order of the steps. It samples, by definition in double
// precision, and takes tokens that the step before gave as the next one's input. What the host
// hands over is copied at end() and forgotten, as the contract allows (kernels/backend.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "kernels/backend.h"

namespace updraft::testing {

// RowSampling by its definition. `cut_distance`, when asked for: how far the draw was from choosing
// another token, as a share of the mass, so that a comparison can leave out what rounding decides.
inline int32_t reference_token(std::span<const float> logits, const RowSampling& how,
                               double* cut_distance = nullptr) {
  float peak = -std::numeric_limits<float>::infinity();
  int32_t best = -1;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] <= std::numeric_limits<float>::max())) return -1;
    if (logits[i] > peak) {
      peak = logits[i];
      best = static_cast<int32_t>(i);
    }
  }
  if (cut_distance != nullptr) *cut_distance = 1.0;
  if (best < 0 || how.temperature < 1e-5F) return best;
  std::vector<std::pair<double, int32_t>> kept;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double p = std::exp((static_cast<double>(logits[i]) - static_cast<double>(peak)) /
                              static_cast<double>(how.temperature));
    if (p > 0.0 && p >= static_cast<double>(how.min_p))
      kept.emplace_back(p, static_cast<int32_t>(i));
  }
  std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  if (how.top_k > 0 && kept.size() > static_cast<size_t>(how.top_k))
    kept.resize(static_cast<size_t>(how.top_k));
  const auto mass = [&] {
    return std::accumulate(kept.begin(), kept.end(), 0.0,
                           [](double sum, const auto& entry) { return sum + entry.first; });
  };
  if (how.top_p < 1.0F) {
    const double total = mass();
    const double target = static_cast<double>(how.top_p) * total;
    double sum = 0.0;
    size_t count = 0;
    while (count < kept.size() && (count == 0 || sum < target)) {
      if (cut_distance != nullptr && count > 0)
        *cut_distance = std::min(*cut_distance, std::abs(sum - target) / total);
      sum += kept[count++].first;
    }
    if (cut_distance != nullptr)
      *cut_distance = std::min(*cut_distance, std::abs(sum - target) / total);
    kept.resize(count);
  }
  std::sort(kept.begin(), kept.end(),
            [](const auto& a, const auto& b) { return a.second < b.second; });
  const double total = mass();
  double left = how.uniform * total;
  for (const auto& [p, id] : kept) {
    if (cut_distance != nullptr)
      *cut_distance = std::min(*cut_distance, std::abs(left - p) / total);
    left -= p;
    if (left < 0.0) return id;
  }
  return kept.back().second;
}

class AsyncBackend final : public Backend {
 public:
  enum class Did : uint8_t { kBegin, kReadTokens, kReadLogits };
  struct Call {
    Did did = Did::kBegin;
    int64_t step = 0;  // counted from 0
    bool samples = false;
    int32_t rows = 0;
    friend bool operator==(const Call&, const Call&) = default;
  };

  // On the device's thread, before it runs a step.
  std::function<void(int64_t step)> before_run;
  // On the caller's thread: after end(), before a read returns.
  std::function<void(int64_t step)> on_end;
  std::function<void(int64_t step)> on_read;
  // On the device's thread: what it makes of the logits.
  std::function<void(int64_t step, std::span<float> logits)> change_logits;
  std::vector<Call> calls;  // the caller's thread
  bool can_leave_out = true;
  int32_t matrices_max = 1 << 30;

  explicit AsyncBackend(std::unique_ptr<Backend> inner, int32_t steps_in_flight = 2)
      : inner_(std::move(inner)), steps_in_flight_(steps_in_flight), device_([this] { run(); }) {}
  ~AsyncBackend() override {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
    device_.join();
  }

  std::string description() const override { return "behind " + inner_->description(); }
  uint64_t memory_used_bytes() const override { return inner_->memory_used_bytes(); }
  uint64_t memory_total_bytes() const override { return inner_->memory_total_bytes(); }
  Result<Mat> add_matrix(std::span<const WeightView> parts) override {
    if (matrices_max-- == 0) return fail("no memory is left");
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
  Result<void> make_swap_space(int32_t page_count) override {
    return inner_->make_swap_space(page_count);
  }

  bool samples() const override { return true; }
  int32_t steps_in_flight_max() const override { return steps_in_flight_; }
  bool never_sample(std::span<const int32_t> ids) override {
    if (!can_leave_out) return false;
    never_.assign(ids.begin(), ids.end());
    return true;
  }

  void begin(const Batch& batch) override {
    UPDRAFT_CHECK(static_cast<int32_t>(unread_.size()) < steps_in_flight_);
    UPDRAFT_CHECK(logits_step_ == nullptr, "a step was begun behind one whose logits are wanted");
    UPDRAFT_CHECK(batch.samplings.empty() || batch.samplings.size() == batch.logit_rows.size());
    UPDRAFT_CHECK(batch.token_sources.empty() ||
                  batch.token_sources.size() == batch.token_ids.size());
    batch_ = batch;
    step_ = std::make_shared<Step>();
    step_->index = next_step_++;
    calls.push_back({Did::kBegin, step_->index, !batch.samplings.empty(),
                     static_cast<int32_t>(batch.token_ids.size())});
  }
  void embed(Mat table, Act out) override {
    add([=](Backend& b) { b.embed(table, out); });
  }
  void residual_norm(const ResidualNorm& op) override {
    add([=](Backend& b) { b.residual_norm(op); });
  }
  void matmul(Mat weight, Vec bias, Act in, Act out) override {
    add([=](Backend& b) { b.matmul(weight, bias, in, out); });
  }
  void prepare_qkv(const QkvPrepare& op) override {
    add([=](Backend& b) { b.prepare_qkv(op); });
  }
  void attention(const Attention& op) override {
    add([=](Backend& b) { b.attention(op); });
  }
  void gated_matmul(Mat gate_up, Act in, Act out) override {
    add([=](Backend& b) { b.gated_matmul(gate_up, in, out); });
  }
  void logits(Mat head, Act in) override {
    add([=](Backend& b) { b.logits(head, in); });
  }
  void all_reduce(Act act) override {
    add([=](Backend& b) { b.all_reduce(act); });
  }
  void end() override {
    step_->take(batch_);
    const std::shared_ptr<Step> step = std::exchange(step_, nullptr);
    if (step->samplings.empty()) {
      logits_step_ = step;
    } else {
      unread_.push_back(step);
    }
    push([this, step] { run_step(*step); });
    if (on_end) on_end(step->index);
  }
  std::span<float> read_logits() override {
    UPDRAFT_CHECK(logits_step_ != nullptr && unread_.empty());
    read_ = std::exchange(logits_step_, nullptr);
    wait(*read_);
    calls.push_back({Did::kReadLogits, read_->index, false, 0});
    if (on_read) on_read(read_->index);
    return read_->logits;
  }
  std::span<const int32_t> read_tokens() override {
    UPDRAFT_CHECK(!unread_.empty());
    read_ = unread_.front();
    unread_.pop_front();
    wait(*read_);
    calls.push_back({Did::kReadTokens, read_->index, true, 0});
    if (on_read) on_read(read_->index);
    return read_->tokens;
  }

  void copy_page(int32_t from, int32_t to) override {
    push([this, from, to] { inner_->copy_page(from, to); });
  }
  void swap_out(int32_t page, int32_t slot) override {
    ++swaps_out;
    push([this, page, slot] { inner_->swap_out(page, slot); });
  }
  void swap_in(int32_t slot, int32_t page) override {
    ++swaps_in;
    push([this, page, slot] { inner_->swap_in(slot, page); });
  }
  void read_activation(Act act, int64_t rows, std::span<float> out) override {
    bool done = false;
    push([&] {
      inner_->read_activation(act, rows, out);
      const std::lock_guard lock(mutex_);
      done = true;
      changed_.notify_all();
    });
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done; });
  }

  int64_t swaps_out = 0;
  int64_t swaps_in = 0;

 private:
  struct Step {
    int64_t index = 0;
    std::vector<std::function<void(Backend&)>> operations;
    std::vector<int32_t> token_ids, positions, logit_rows, token_sources;
    std::vector<SequenceSlice> sequences;
    std::vector<std::vector<int32_t>> pages;
    std::vector<float> given_rows;
    std::vector<RowSampling> samplings;
    std::vector<float> logits;
    std::vector<int32_t> tokens;
    bool done = false;  // under the mutex

    void take(const Batch& batch) {
      token_ids.assign(batch.token_ids.begin(), batch.token_ids.end());
      positions.assign(batch.positions.begin(), batch.positions.end());
      logit_rows.assign(batch.logit_rows.begin(), batch.logit_rows.end());
      token_sources.assign(batch.token_sources.begin(), batch.token_sources.end());
      given_rows.assign(batch.given_rows.begin(), batch.given_rows.end());
      samplings.assign(batch.samplings.begin(), batch.samplings.end());
      sequences.assign(batch.sequences.begin(), batch.sequences.end());
      for (SequenceSlice& slice : sequences) {
        pages.emplace_back(slice.pages.begin(), slice.pages.end());
        slice.pages = pages.back();
      }
    }
  };

  void add(std::function<void(Backend&)> operation) {
    step_->operations.push_back(std::move(operation));
  }
  void push(std::function<void()> job) {
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    changed_.notify_all();
  }
  void wait(const Step& step) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return step.done; });
  }

  // --- the device's thread ---
  void run() {
    while (true) {
      std::function<void()> job;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return over_ || !jobs_.empty(); });
        if (jobs_.empty()) return;
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      job();
    }
  }
  void run_step(Step& step) {
    if (before_run) before_run(step.index);
    for (size_t row = 0; row < step.token_sources.size(); ++row) {
      const int32_t source = step.token_sources[row];
      if (source < 0) continue;
      UPDRAFT_CHECK(step.token_ids[row] == 0 && tokens_of_step_ == step.index - 1);
      step.token_ids[row] = std::max(newest_tokens_.at(static_cast<size_t>(source)), 0);
    }
    inner_->begin(
        {step.token_ids, step.positions, step.sequences, step.logit_rows, step.given_rows});
    for (const auto& operation : step.operations) operation(*inner_);
    inner_->end();
    const std::span<float> logits = inner_->read_logits();
    step.logits.assign(logits.begin(), logits.end());
    if (change_logits) change_logits(step.index, step.logits);
    for (size_t i = 0; i < step.samplings.size(); ++i) {
      const std::span<float> row = std::span(step.logits).subspan(i * vocab_count_, vocab_count_);
      for (const int32_t id : never_) {
        if (id >= 0 && static_cast<size_t>(id) < row.size())
          row[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
      }
      step.tokens.push_back(reference_token(row, step.samplings[i]));
    }
    newest_tokens_ = step.tokens;
    tokens_of_step_ = step.index;
    const std::lock_guard lock(mutex_);
    step.done = true;
    changed_.notify_all();
  }

  const std::unique_ptr<Backend> inner_;
  const int32_t steps_in_flight_;
  size_t vocab_count_ = 0;
  std::vector<int32_t> never_;  // set at load time

  // The caller's thread.
  Batch batch_;
  std::shared_ptr<Step> step_;
  int64_t next_step_ = 0;
  std::deque<std::shared_ptr<Step>> unread_;  // with samplings
  std::shared_ptr<Step> logits_step_;
  std::shared_ptr<Step> read_;

  // The device's thread.
  std::vector<int32_t> newest_tokens_;
  int64_t tokens_of_step_ = -1;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  bool over_ = false;
  std::thread device_;
};

}  // namespace updraft::testing
