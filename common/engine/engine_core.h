// What the engine does in one step, without its thread: sequences, scheduler, forward pass,
// samplers, sinks. Owned by the engine thread; nothing here locks or waits (but for the device).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/base/clock.h"
#include "common/engine/draft_control.h"
#include "common/engine/engine.h"
#include "common/engine/forward.h"
#include "common/engine/prompt_lookup.h"
#include "common/engine/sampler.h"
#include "common/engine/scheduler.h"

namespace updraft {

struct EngineCoreConfig {
  SchedulerConfig scheduler;
  int32_t context_tokens = 0;
  int32_t vocab_count = 0;
  int32_t hidden_dim = 0;
  int32_t mixed_step_ms = 0;
  int32_t draft_tokens_max = 0;
  std::function<int64_t()> step_clock = monotonic_ns;
};

class EngineCore {
 public:
  EngineCore(const EngineCoreConfig& config, Forward forward, std::unique_ptr<Backend> backend);

  void add(SequenceRequest request, std::shared_ptr<SequenceSink> sink, int64_t now_ns);
  void cancel(uint64_t id) { scheduler_.cancel(id); }
  void pause(uint64_t id) { scheduler_.pause(id); }
  void resume(uint64_t id) { scheduler_.resume(id); }
  // A step is plan(), then run(). Both call sinks and append the ids of the sequences that ended to
  // `ended`.
  void plan(int64_t now_ns, std::vector<uint64_t>& ended);
  void run(std::vector<uint64_t>& ended);
  // Ends everything as cancelled.
  void end_all(std::vector<uint64_t>& ended);

  bool idle() const { return scheduler_.idle(); }
  // Nothing can run before somebody calls or a deadline comes (0: none will).
  bool all_paused() const { return scheduler_.all_paused(); }
  int64_t next_deadline_ns() const { return scheduler_.next_deadline_ns(); }
  // Without what still waits in front of the core.
  EngineLoad load() const;
  const Backend& backend() const { return *backend_; }

 private:
  struct Sequence {
    SequenceRequest request;  // its prompt has moved to tokens
    std::shared_ptr<SequenceSink> sink;
    // Prompt, then the answer so far. A position that is given has an id below 0 that no other has,
    // so it is like nothing: no n-gram with it ever comes again.
    std::vector<int32_t> tokens;
    int32_t prompt_count = 0;
    int32_t token_limit = 0;
    int32_t prompt_logits_done = 0;  // positions whose logits went to on_prompt_token()
    bool started = false;
    Sampler sampler;
    PromptLookup lookup;
    GuessRecord guesses;
    std::vector<int32_t> drafts;  // of the current step
    std::string bad_input;        // why it cannot go on after the current step
  };
  // What a logit row is for: position `position` of the sequence, whose next token it predicts.
  struct LogitUse {
    uint64_t id = 0;
    int32_t position = 0;
    bool samples = false;  // else the next token is known: a prompt's log-probability
  };

  int32_t prefill_tokens_max() const;
  void plan_drafts();
  int32_t guess(Sequence& sequence) const;
  void look_up(Sequence& sequence, int32_t token_count) const;
  Batch build_batch();
  void add_given_rows(Sequence& sequence, const StepSlice& slice);
  void add_logit_rows(const StepSlice& slice, int32_t row_first, const Sequence& sequence);
  void deliver(std::span<float> logits, std::vector<uint64_t>& ended);
  void deliver_prompt_token(const LogitUse& use, std::span<const float> row,
                            std::vector<uint64_t>& ended);
  void deliver_samples(size_t use_first, std::span<float> logits, std::vector<uint64_t>& ended);
  bool deliver_sample(const LogitUse& use, int32_t drafts_kept, std::span<float> row,
                      std::vector<uint64_t>& ended);
  void end(uint64_t id, SequenceEnd how, std::vector<uint64_t>& ended, int32_t drafts_kept = 0);
  void fail(uint64_t id, const std::string& why, std::vector<uint64_t>& ended,
            SequenceEnd how = SequenceEnd::kFailed);
  void measure(int64_t step_ns, int64_t sampled_count);

  const EngineCoreConfig config_;
  const Forward forward_;
  const std::unique_ptr<Backend> backend_;
  Scheduler scheduler_;
  std::unordered_map<uint64_t, Sequence> sequences_;

  StepPlan plan_;  // of the current step
  // The batch of the current step; the spans of a Batch point into these.
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<SequenceSlice> slices_;
  std::vector<int32_t> logit_rows_;
  std::vector<float> given_rows_;     // [given rows, hidden]; never more than reserved at the start
  std::vector<uint64_t> bad_inputs_;  // sequences whose given rows are none
  std::vector<LogitUse> logit_uses_;  // one per logit row

  int64_t steps_ = 0;
  int64_t preemptions_ = 0;
  int64_t sampled_ = 0;  // tokens, since the start
  int64_t drafts_ = 0;   // that ran
  int64_t drafts_accepted_ = 0;
  StepCost step_cost_;
  float prefill_tokens_per_s_ = 0.0F;
  float newest_prefill_tokens_per_s_ = 0.0F;  // of the last step that measured it
  float decode_tokens_per_s_ = 0.0F;
};

}  // namespace updraft
