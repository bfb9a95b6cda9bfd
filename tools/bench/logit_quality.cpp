// The forward pass of the engine with the logits of every row, and what two such runs differ by.
#include "tools/bench/logit_quality.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/base/check.h"
#include "common/engine/forward.h"
#include "common/model/model.h"

namespace updraft {
namespace {

constexpr int32_t kRowsMax = 128;  // of one step: their logits are in memory together

double log_sum_exp(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - top);
  return top + std::log(sum);
}

size_t likeliest(std::span<const float> logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

double kl_divergence(std::span<const float> reference, std::span<const float> other) {
  UPDRAFT_CHECK(reference.size() == other.size() && !reference.empty());
  const double reference_sum = log_sum_exp(reference);
  const double other_sum = log_sum_exp(other);
  double kl = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double log_p = reference[i] - reference_sum;
    kl += std::exp(log_p) * (log_p - (other[i] - other_sum));
  }
  return std::max(kl, 0.0);  // rounding alone can make it negative
}

LogitQuality LogitQuality::of(std::vector<double> divergences, int64_t agreed) {
  LogitQuality quality;
  quality.rows = static_cast<int64_t>(divergences.size());
  if (divergences.empty()) return quality;
  std::sort(divergences.begin(), divergences.end());
  const auto count = static_cast<double>(divergences.size());
  quality.kl_mean = std::accumulate(divergences.begin(), divergences.end(), 0.0) / count;
  const auto rank = static_cast<size_t>(std::ceil(0.99 * count)) - 1;
  quality.kl_p99 = divergences[rank];
  quality.kl_max = divergences.back();
  quality.top1_agreement = static_cast<double>(agreed) / count;
  return quality;
}

void LogitComparison::add(std::span<const float> reference, std::span<const float> other) {
  divergences_.push_back(kl_divergence(reference, other));
  agreed_ += likeliest(reference) == likeliest(other) ? 1 : 0;
}

Result<void> all_logits(const LocalModelConfig& config, std::span<const int32_t> ids,
                        int32_t window_tokens,
                        const std::function<void(int64_t, std::span<const float>)>& take,
                        const Progress& progress) {
  const auto model = open_model(config.model_path);
  if (!model) return model.error();
  const Hyperparameters& h = (*model)->hyperparameters();
  if (window_tokens > h.context_tokens) {
    return fail("windows of " + std::to_string(window_tokens) + " tokens, the model's context is " +
                std::to_string(h.context_tokens));
  }
  for (const int32_t id : ids) {
    if (id < 0 || id >= h.vocab_count)
      return fail("token id " + std::to_string(id) + ", the model has " +
                  std::to_string(h.vocab_count) + " tokens");
  }
  auto backend = open_backend(config);
  if (!backend) return backend.error();
  auto forward = Forward::create(**model, **backend, {kRowsMax, kRowsMax}, progress);
  if (!forward) return forward.error();
  const auto kv_type = parse_kv_type(config.kv_type);
  if (!kv_type) return kv_type.error();
  KvShape shape = Forward::kv_shape(h);
  shape.page_tokens = config.page_tokens;
  shape.page_count = (window_tokens + config.page_tokens - 1) / config.page_tokens;
  shape.type = *kv_type;
  if (auto made = (*backend)->make_kv_pool(shape); !made) return made;
  std::vector<int32_t> pages(static_cast<size_t>(shape.page_count));
  std::iota(pages.begin(), pages.end(), 0);

  std::vector<int32_t> rows(kRowsMax);
  std::iota(rows.begin(), rows.end(), 0);
  const auto total = static_cast<int64_t>(ids.size());
  for (int64_t at = 0; at < total;) {
    const auto cached = static_cast<int32_t>(at % window_tokens);
    const auto count =
        static_cast<int32_t>(std::min<int64_t>({kRowsMax, window_tokens - cached, total - at}));
    std::vector<int32_t> positions(static_cast<size_t>(count));
    std::iota(positions.begin(), positions.end(), cached);
    const SequenceSlice slice{0, count, cached, pages};
    Batch batch;
    batch.token_ids = ids.subspan(static_cast<size_t>(at), static_cast<size_t>(count));
    batch.positions = positions;
    batch.sequences = {&slice, 1};
    batch.logit_rows = std::span(rows).first(static_cast<size_t>(count));
    const std::span<const float> logits = forward->run(**backend, batch);
    const auto vocab = static_cast<size_t>(h.vocab_count);
    for (int32_t r = 0; r < count; ++r)
      take(at + r, logits.subspan(static_cast<size_t>(r) * vocab, vocab));
    at += count;
    if (progress)
      progress("computing logits", static_cast<uint64_t>(at), static_cast<uint64_t>(total));
  }
  return {};
}

}  // namespace updraft
