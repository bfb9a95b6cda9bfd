#include "tools/gpu/stepper.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "common/base/check.h"
#include "common/base/clock.h"

namespace updraft::gpu {

Stepper::Stepper(std::shared_ptr<const Model> model, std::unique_ptr<Backend> backend,
                 Forward forward, const StepperConfig& config, int32_t page_count)
    : model_(std::move(model)),
      backend_(std::move(backend)),
      forward_(std::move(forward)),
      config_(config),
      page_count_(page_count) {}

Result<std::unique_ptr<Stepper>> Stepper::open(std::shared_ptr<const Model> model,
                                               std::unique_ptr<Backend> backend,
                                               const StepperConfig& config) {
  auto forward =
      Forward::create(*model, *backend, {config.rows_max, std::max(config.sequences_max, 1)}, {});
  if (!forward) return forward.error();
  KvShape shape = Forward::kv_shape(model->hyperparameters());
  shape.page_tokens = config.page_tokens;
  shape.page_count =
      static_cast<int32_t>((config.kv_tokens + config.page_tokens - 1) / config.page_tokens) +
      config.sequences_max;  // the last page of each is begun
  shape.type = config.kv_type;
  if (const auto made = backend->make_kv_pool(shape); !made) return made.error("KV pool");
  return std::unique_ptr<Stepper>(new Stepper(std::move(model), std::move(backend),
                                              std::move(*forward), config, shape.page_count));
}

// Pages of different sequences lie between each other, as they do after a while of serving.
std::vector<int32_t> Stepper::pages_of(int32_t sequence, int32_t tokens) const {
  const int32_t count = (tokens + config_.page_tokens - 1) / config_.page_tokens;
  std::vector<int32_t> out(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i)
    out[static_cast<size_t>(i)] = (sequence + i * config_.sequences_max) % page_count_;
  return out;
}

void Stepper::start_decode(int32_t sequences, int32_t context, bool first) {
  const auto count = static_cast<size_t>(sequences);
  ids_.assign(count, first ? 1 : 0);
  positions_.assign(count, context);
  logit_rows_.resize(count);
  std::iota(logit_rows_.begin(), logit_rows_.end(), 0);
  samplings_.assign(count, RowSampling{});
  sources_.assign(count, -1);
  if (!first) sources_ = logit_rows_;
  pages_.resize(count);
  slices_.resize(count);
  for (int32_t i = 0; i < sequences; ++i) {
    const auto index = static_cast<size_t>(i);
    pages_[index] = pages_of(i, context + 1);
    slices_[index] = {i, 1, context, pages_[index], 1};
  }
  forward_.start(*backend_, {ids_, positions_, slices_, logit_rows_, {}, samplings_, sources_});
}

double Stepper::decode(int32_t sequences, int32_t context, int32_t steps) {
  UPDRAFT_CHECK(backend_->samples(), "a backend that chooses tokens");
  UPDRAFT_CHECK(sequences <= config_.sequences_max);
  const int32_t ahead = backend_->steps_in_flight_max();
  const int64_t before_ns = monotonic_ns();
  int32_t started = 0;
  for (int32_t read = 0; read < steps; ++read) {
    for (; started < steps && started - read < ahead; ++started)
      start_decode(sequences, context + started, started == 0);
    (void)backend_->read_tokens();
  }
  return static_cast<double>(monotonic_ns() - before_ns) * 1e-9 / steps;
}

double Stepper::prefill(int32_t tokens) {
  const int64_t before_ns = monotonic_ns();
  for (int32_t at = 0; at < tokens; at += config_.rows_max) {
    const int32_t rows = std::min(config_.rows_max, tokens - at);
    const bool last = at + rows == tokens;
    ids_.resize(static_cast<size_t>(rows));
    for (int32_t i = 0; i < rows; ++i)
      ids_[static_cast<size_t>(i)] = (at + i) % model_->hyperparameters().vocab_count;
    positions_.resize(ids_.size());
    std::iota(positions_.begin(), positions_.end(), at);
    logit_rows_.assign(last ? 1 : 0, rows - 1);
    samplings_.assign(logit_rows_.size(), RowSampling{});
    pages_.assign(1, pages_of(0, at + rows));
    slices_.assign(1, {0, rows, at, pages_[0]});
    forward_.start(*backend_, {ids_, positions_, slices_, logit_rows_, {}, samplings_, {}});
    // Without a token to read the next chunk's begin waits where it must.
    if (last) (void)backend_->read_tokens();
  }
  return static_cast<double>(monotonic_ns() - before_ns) * 1e-9;
}

std::vector<float> Stepper::logits(std::span<const int32_t> tokens, int32_t chunk, As as) {
  const auto count = static_cast<int32_t>(tokens.size());
  UPDRAFT_CHECK(chunk <= config_.rows_max && chunk <= config_.sequences_max);
  std::vector<float> out;
  pages_.assign(1, pages_of(0, count));
  for (int32_t at = 0; at < count; at += chunk) {
    const int32_t rows = std::min(chunk, count - at);
    positions_.resize(static_cast<size_t>(rows));
    std::iota(positions_.begin(), positions_.end(), at);
    logit_rows_.resize(static_cast<size_t>(rows));
    std::iota(logit_rows_.begin(), logit_rows_.end(), 0);
    slices_.assign(1, {0, rows, at, pages_[0], as == As::kAnswer ? rows : 0});
    const auto part = tokens.subspan(static_cast<size_t>(at), static_cast<size_t>(rows));
    forward_.start(*backend_, {part, positions_, slices_, logit_rows_});
    const std::span<float> got = backend_->read_logits();
    out.insert(out.end(), got.begin(), got.end());
  }
  return out;
}

}  // namespace updraft::gpu
