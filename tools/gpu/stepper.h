// Steps of a model without an engine around them: any number of sequences at any depth, so that a
// decode step at context 4,096 needs no 4,096 tokens computed first. What stands in the KV memory
// before is whatever the device left there after zero-filling; the time does not depend on it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/base/result.h"
#include "common/engine/forward.h"
#include "common/model/model.h"
#include "kernels/backend.h"

namespace updraft::gpu {

struct StepperConfig {
  int32_t rows_max = 0;       // of one step
  int32_t sequences_max = 0;  // of one step
  int32_t page_tokens = 64;
  int64_t kv_tokens = 0;  // pages for so many, at least
  DType kv_type = DType::kBF16;
};

class Stepper {
 public:
  // Loads the model. Errors: those of the backend.
  static Result<std::unique_ptr<Stepper>> open(std::shared_ptr<const Model> model,
                                               std::unique_ptr<Backend> backend,
                                               const StepperConfig& config);

  // Seconds of one decode step of `sequences` sequences that have `context` positions each: `steps`
  // of them in a row, each fed with the tokens of the one before, as many in flight as the backend
  // takes. Greedy.
  double decode(int32_t sequences, int32_t context, int32_t steps);
  // Seconds from the first of `tokens` prompt tokens to the token that follows them, in chunks of
  // rows_max.
  double prefill(int32_t tokens);
  // All logits of `tokens`, [tokens, vocab], `chunk` rows a step, as if they were a prompt or an
  // answer; for comparisons.
  enum class As : uint8_t { kPrompt, kAnswer };
  std::vector<float> logits(std::span<const int32_t> tokens, int32_t chunk, As as);

  Backend& backend() { return *backend_; }

 private:
  Stepper(std::shared_ptr<const Model> model, std::unique_ptr<Backend> backend, Forward forward,
          const StepperConfig& config, int32_t page_count);
  void start_decode(int32_t sequences, int32_t context, bool first);
  std::vector<int32_t> pages_of(int32_t sequence, int32_t tokens) const;

  const std::shared_ptr<const Model> model_;
  const std::unique_ptr<Backend> backend_;
  const Forward forward_;
  const StepperConfig config_;
  const int32_t page_count_;
  // Of the newest step.
  std::vector<int32_t> ids_;
  std::vector<int32_t> positions_;
  std::vector<int32_t> logit_rows_;
  std::vector<int32_t> sources_;
  std::vector<RowSampling> samplings_;
  std::vector<std::vector<int32_t>> pages_;
  std::vector<SequenceSlice> slices_;
};

}  // namespace updraft::gpu
