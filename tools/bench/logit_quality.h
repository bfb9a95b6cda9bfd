// How far the fast arithmetic of a quantised model is from exact arithmetic on the same weights:
// Kullback-Leibler divergence of the next-token distributions and agreement of the likeliest token,
// over given token ids.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "common/base/progress.h"
#include "common/base/result.h"
#include "common/serve/local_model.h"

namespace updraft {

// KL(reference || other) in nats of the two softmax distributions, in double precision.
double kl_divergence(std::span<const float> reference, std::span<const float> other);

struct LogitQuality {
  int64_t rows = 0;
  double kl_mean = 0;
  double kl_p99 = 0;
  double kl_max = 0;
  double top1_agreement = 0;  // part of the rows whose largest logit is the same token's

  // From one divergence and one agreement per row.
  static LogitQuality of(std::vector<double> divergences, int64_t agreed);
};

// Collects rows. One thread.
class LogitComparison {
 public:
  // Both [vocab].
  void add(std::span<const float> reference, std::span<const float> other);
  LogitQuality result() const { return LogitQuality::of(divergences_, agreed_); }

 private:
  std::vector<double> divergences_;
  int64_t agreed_ = 0;
};

// Logits of every position of `ids`, cut into sequences of window_tokens that know nothing of each
// other. `take(position, logits)` in order; the logits are valid during the call. Errors: the model
// does not open or fit; ids outside the vocabulary; a window beyond the context.
Result<void> all_logits(const LocalModelConfig& config, std::span<const int32_t> ids,
                        int32_t window_tokens,
                        const std::function<void(int64_t, std::span<const float>)>& take,
                        const Progress& progress);

}  // namespace updraft
