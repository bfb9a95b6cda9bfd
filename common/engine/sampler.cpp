// The sampler. Vocabularies have 150,000 entries and most requests keep a few dozen of them, so
// nothing here sorts the whole row: candidates are cut by a threshold first, and only as many are
// ordered as the nucleus needs.
#include "common/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <unordered_set>

#include "common/engine/random.h"

namespace updraft {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

struct Peak {
  int32_t id = -1;  // of the largest logit, the smallest id among equals; -1: all are -infinity
  float logit = kNever;
  int32_t bad_id = -1;  // a token whose logit is NaN or +infinity
};

Peak find_peak(std::span<const float> logits) {
  Peak peak;
  for (size_t i = 0; i < logits.size(); ++i) {
    const float value = logits[i];
    // One comparison for NaN and +infinity: both fail it.
    if (!(value <= std::numeric_limits<float>::max())) {
      peak.bad_id = static_cast<int32_t>(i);
      return peak;
    }
    if (value > peak.logit) {
      peak.logit = value;
      peak.id = static_cast<int32_t>(i);
    }
  }
  return peak;
}

// Larger probability first, smaller id among equals: one order on every machine.
bool better(const std::pair<float, int32_t>& a, const std::pair<float, int32_t>& b) {
  return a.first != b.first ? a.first > b.first : a.second < b.second;
}

}  // namespace

SampledToken logprobs_of(std::span<const float> logits, int32_t id, int32_t top_count) {
  const Peak peak = find_peak(logits);
  if (peak.bad_id >= 0) return {id, std::numeric_limits<float>::quiet_NaN(), {}};
  double sum = 0.0;
  for (const float value : logits) sum += static_cast<double>(std::exp(value - peak.logit));
  const double log_sum = static_cast<double>(peak.logit) + std::log(sum);
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - log_sum);
  };

  SampledToken out;
  out.id = id;
  out.logprob = logprob(logits[static_cast<size_t>(id)]);
  const size_t wanted = std::min(static_cast<size_t>(std::max(top_count, 0)), logits.size());
  if (wanted == 0) return out;
  // A heap of the best so far, the worst of them on top.
  std::vector<std::pair<float, int32_t>> heap;
  heap.reserve(wanted + 1);
  for (size_t i = 0; i < logits.size(); ++i) {
    const std::pair<float, int32_t> entry{logits[i], static_cast<int32_t>(i)};
    if (heap.size() == wanted && !better(entry, heap.front())) continue;
    heap.push_back(entry);
    std::push_heap(heap.begin(), heap.end(), better);
    if (heap.size() > wanted) {
      std::pop_heap(heap.begin(), heap.end(), better);
      heap.pop_back();
    }
  }
  std::sort(heap.begin(), heap.end(), better);
  for (const auto& [logit, top_id] : heap) out.top.emplace_back(top_id, logprob(logit));
  return out;
}

Sampler::Sampler(const Sampling& sampling, std::span<const int32_t> prompt,
                 std::span<const int32_t> banned_ids, uint64_t seed)
    : sampling_(sampling), banned_ids_(banned_ids.begin(), banned_ids.end()), seed_(seed) {
  if (sampling_.repetition_penalty != 1.0F) {
    const std::unordered_set<int32_t> distinct(prompt.begin(), prompt.end());
    prompt_ids_.assign(distinct.begin(), distinct.end());
    std::erase_if(prompt_ids_, [](int32_t id) { return id < 0; });
    std::sort(prompt_ids_.begin(), prompt_ids_.end());
  }
}

void Sampler::accept(int32_t id) {
  if (sampling_.repetition_penalty != 1.0F || sampling_.frequency_penalty != 0.0F ||
      sampling_.presence_penalty != 0.0F) {
    ++generated_counts_[id];
  }
}

bool Sampler::device_can(std::span<const int32_t> banned_ids) const {
  return sampling_.repetition_penalty == 1.0F && sampling_.frequency_penalty == 0.0F &&
         sampling_.presence_penalty == 0.0F && sampling_.logit_bias.empty() &&
         !sampling_.logprobs && std::ranges::equal(banned_ids_, banned_ids);
}

RowSampling Sampler::row_sampling(int64_t position) const {
  RowSampling row;
  row.temperature = sampling_.temperature;
  row.min_p = sampling_.min_p;
  row.top_p = sampling_.top_p;
  row.top_k = sampling_.top_k;
  row.uniform = uniform_at(seed_, static_cast<uint64_t>(position));
  return row;
}

void Sampler::apply_bans_and_bias(std::span<float> logits) const {
  for (const auto& [id, bias] : sampling_.logit_bias) logits[static_cast<size_t>(id)] += bias;
  // After the bias: no bias brings a banned token back.
  for (const int32_t id : banned_ids_) {
    if (id >= 0 && static_cast<size_t>(id) < logits.size())
      logits[static_cast<size_t>(id)] = kNever;
  }
}

void Sampler::apply_penalties(std::span<float> logits) const {
  const float repetition = sampling_.repetition_penalty;
  if (repetition != 1.0F) {
    const auto repeat = [&](int32_t id) {
      float& logit = logits[static_cast<size_t>(id)];
      logit = logit > 0.0F ? logit / repetition : logit * repetition;
    };
    for (const int32_t id : prompt_ids_) repeat(id);
    for (const auto& [id, count] : generated_counts_) {
      if (!std::binary_search(prompt_ids_.begin(), prompt_ids_.end(), id)) repeat(id);
    }
  }
  if (sampling_.frequency_penalty == 0.0F && sampling_.presence_penalty == 0.0F) return;
  for (const auto& [id, count] : generated_counts_) {
    logits[static_cast<size_t>(id)] -=
        sampling_.frequency_penalty * static_cast<float>(count) + sampling_.presence_penalty;
  }
}

Result<SampledToken> Sampler::sample(std::span<float> logits, int64_t position) {
  const Peak raw = find_peak(logits);
  if (raw.bad_id >= 0) {
    return fail("the model gave the logit " +
                std::to_string(logits[static_cast<size_t>(raw.bad_id)]) + " for token " +
                std::to_string(raw.bad_id) + " at position " + std::to_string(position) +
                ": its weights are damaged or overflow");
  }
  // The alternatives come from the raw distribution, which the steps below overwrite.
  std::vector<float> raw_logits;
  if (sampling_.logprobs) raw_logits.assign(logits.begin(), logits.end());

  apply_bans_and_bias(logits);
  apply_penalties(logits);
  const Peak peak = find_peak(logits);
  if (peak.id < 0 || peak.bad_id >= 0) {
    return fail("no token is left to choose from at position " + std::to_string(position) +
                ": all are banned or have no finite logit");
  }
  const int32_t id =
      sampling_.temperature < kGreedyTemperature
          ? peak.id
          : draw(logits, peak.logit, uniform_at(seed_, static_cast<uint64_t>(position)));
  if (sampling_.logprobs) return logprobs_of(raw_logits, id, sampling_.top_logprobs);
  SampledToken out;
  out.id = id;
  return out;
}

// Probabilities are relative to the likeliest token's (its own is 1), so min_p is a plain threshold
// on them.
int32_t Sampler::draw(std::span<const float> logits, float max_logit, double uniform) {
  const float scale = 1.0F / sampling_.temperature;
  // Beyond e^-40 of the peak a token's share is below the generator's 53 bits even times a whole
  // vocabulary.
  const float floor = std::max(sampling_.min_p, 4e-18F);
  const float logit_floor = max_logit + std::log(floor) * sampling_.temperature;
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] < logit_floor) continue;
    candidates_.emplace_back(std::exp((logits[i] - max_logit) * scale), static_cast<int32_t>(i));
  }

  const bool cut = sampling_.top_k > 0 && static_cast<size_t>(sampling_.top_k) < candidates_.size();
  if (cut) {
    std::nth_element(candidates_.begin(), candidates_.begin() + (sampling_.top_k - 1),
                     candidates_.end(), better);
    candidates_.resize(static_cast<size_t>(sampling_.top_k));
  }
  double sum = 0.0;
  const bool nucleus = sampling_.top_p < 1.0F;
  if (nucleus) {
    double total = 0.0;
    for (const auto& [probability, id] : candidates_) total += static_cast<double>(probability);
    // The smallest set of best tokens that reaches top_p; ordered in growing pieces until it does.
    const double target = static_cast<double>(sampling_.top_p) * total;
    size_t ordered = 0;
    size_t kept = 0;
    for (size_t piece = 64; kept < candidates_.size() && (kept == 0 || sum < target); piece *= 4) {
      if (kept == ordered) {
        const size_t end = std::min(candidates_.size(), ordered + piece);
        std::partial_sort(candidates_.begin() + static_cast<ptrdiff_t>(ordered),
                          candidates_.begin() + static_cast<ptrdiff_t>(end), candidates_.end(),
                          better);
        ordered = end;
      }
      while (kept < ordered && (kept == 0 || sum < target)) {
        sum += static_cast<double>(candidates_[kept++].first);
      }
    }
    candidates_.resize(kept);
  }
  // One order on every machine and device, where nth_element leaves one that the standard does not
  // fix.
  const auto by_id = [](const auto& a, const auto& b) { return a.second < b.second; };
  if (cut || nucleus) std::sort(candidates_.begin(), candidates_.end(), by_id);
  sum = 0.0;
  for (const auto& [probability, id] : candidates_) sum += static_cast<double>(probability);
  double left = uniform * sum;
  for (const auto& [probability, id] : candidates_) {
    left -= static_cast<double>(probability);
    if (left < 0.0) return id;
  }
  return candidates_.back().second;  // rounding used up the interval
}

}  // namespace updraft
