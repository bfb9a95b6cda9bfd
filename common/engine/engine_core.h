// What the engine does in one step, without its thread: sequences, scheduler, forward pass,
// samplers, sinks. Owned by the engine thread; nothing here locks or waits (but for the device).
//
// A step is started and, later, read. On a device that samples and runs ahead, where every row of a
// step can be sampled there, the next step is planned and started before the tokens of the last are
// read: its rows take their tokens from the device (Batch::token_sources), which so never waits for
// the host. A sequence that turns out to have ended with a token, or was cancelled meanwhile, has
// then a row too many in the step that runs; what that row gives is thrown away. Any other step is
// read before the next one is planned.
#pragma once

#include <array>
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
  std::vector<int32_t> banned_ids = {};  // what most sequences must not say
  double swap_page_ns = 0.0;             // to move a page to the swap space or back; 0: not known
  uint64_t page_bytes = 0;               // of a KV page
};

class EngineCore {
 public:
  EngineCore(const EngineCoreConfig& config, Forward forward, std::unique_ptr<Backend> backend);

  void add(SequenceRequest request, std::shared_ptr<SequenceSink> sink, int64_t now_ns);
  void cancel(uint64_t id) { scheduler_.cancel(id); }
  void pause(uint64_t id) { scheduler_.pause(id); }
  void resume(uint64_t id) { scheduler_.resume(id); }
  // A step is plan(), then run(), which starts it and reads whatever need not run on. Both call
  // sinks and append the ids of the sequences that ended to `ended`.
  void plan(int64_t now_ns, std::vector<uint64_t>& ended);
  void run(std::vector<uint64_t>& ended);
  // Ends everything as cancelled.
  void end_all(std::vector<uint64_t>& ended);

  // No sequence is left, and no step runs.
  bool idle() const { return scheduler_.idle() && in_flight_ == 0; }
  // Nothing can run before somebody calls or a deadline comes (0: none will).
  bool all_paused() const { return scheduler_.all_paused() && in_flight_ == 0; }
  int64_t next_deadline_ns() const { return scheduler_.next_deadline_ns(); }
  // Without what still waits in front of the core.
  EngineLoad load() const;
  const Backend& backend() const { return *backend_; }

 private:
  struct Sequence {
    SequenceRequest request;  // its prompt has moved to tokens
    std::shared_ptr<SequenceSink> sink;
    uint64_t serial = 0;  // of all sequences ever: ids come again
    // Prompt, then the answer so far as it was read. A position that is given has an id below 0
    // that no other has, so it is like nothing: no n-gram with it ever comes again.
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
    bool device_can = false;      // sample for it
    int32_t unread = 0;           // tokens that were sampled and not read
    int32_t source = -1;  // the logit row, in the step that was started last, of the newest of them
  };
  // What a logit row is for: position `position` of the sequence, whose next token it predicts.
  struct LogitUse {
    uint64_t id = 0;
    uint64_t serial = 0;
    int32_t position = 0;
    bool samples = false;  // else the next token is known: a prompt's log-probability
  };
  // A step that was started and not read.
  struct Step {
    bool on_device = false;            // it gives tokens, not logits
    std::vector<LogitUse> logit_uses;  // one per logit row
    int32_t rows = 0;
    int32_t prefill_rows = 0;
    int32_t sequences = 0;
    int64_t started_ns = 0;
  };

  int32_t prefill_tokens_max() const;
  bool should_draft();
  void plan_drafts();
  void offer_drafts(Sequence& sequence, StepSlice* slice);
  int32_t guess(Sequence& sequence) const;
  void look_up(Sequence& sequence, int32_t token_count) const;
  void start(std::vector<uint64_t>& ended);
  void move_pages();
  bool device_can_sample() const;
  Batch build_batch(Step& step);
  void add_tokens(const Sequence& sequence, const StepSlice& slice);
  void add_given_rows(Sequence& sequence, const StepSlice& slice);
  void add_logit_rows(Step& step, const StepSlice& slice, int32_t row_first,
                      const Sequence& sequence);
  void add_samplings(const Step& step);
  void expect_tokens(const Step& step);
  void read_oldest(std::vector<uint64_t>& ended);
  Sequence* find(const LogitUse& use);
  void deliver(const Step& step, std::span<float> logits, std::vector<uint64_t>& ended);
  void deliver_tokens(const Step& step, std::span<const int32_t> tokens,
                      std::vector<uint64_t>& ended);
  void deliver_prompt_token(const LogitUse& use, std::span<const float> row,
                            std::vector<uint64_t>& ended);
  void deliver_samples(const Step& step, size_t use_first, std::span<float> logits,
                       std::vector<uint64_t>& ended);
  bool deliver_sample(const LogitUse& use, int32_t drafts_kept, std::span<float> row,
                      std::vector<uint64_t>& ended);
  bool stops_at(const Sequence& sequence, int32_t token) const;
  bool hand_out(uint64_t id, Sequence& sequence, const SampledToken& token, int32_t drafts_kept,
                std::vector<uint64_t>& ended);
  void end(uint64_t id, SequenceEnd how, std::vector<uint64_t>& ended, int32_t drafts_kept = 0);
  void fail(uint64_t id, const std::string& why, std::vector<uint64_t>& ended,
            SequenceEnd how = SequenceEnd::kFailed);
  void measure(const Step& step, int64_t step_ns, int64_t sampled_count);

  const EngineCoreConfig config_;
  const Forward forward_;
  const std::unique_ptr<Backend> backend_;
  const bool samples_on_device_;
  const bool runs_ahead_;
  std::vector<int32_t> device_banned_ids_;  // what the device never gives
  Scheduler scheduler_;
  std::unordered_map<uint64_t, Sequence> sequences_;
  uint64_t next_serial_ = 1;

  std::array<Step, 2> flight_;  // a ring: in_flight_ of them from flight_first_ on
  size_t flight_first_ = 0;
  size_t in_flight_ = 0;
  int64_t last_read_ns_ = 0;

  StepPlan plan_;  // of the step that is started next
  std::vector<DraftOffer> offers_;
  std::vector<StepSlice*> offered_slices_;  // of the offers
  // The batch of the newest step; the spans of a Batch point into these.
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<SequenceSlice> slices_;
  std::vector<int32_t> logit_rows_;
  std::vector<float> given_rows_;  // [given rows, hidden]; never more than reserved at the start
  std::vector<RowSampling> samplings_;
  std::vector<int32_t> token_sources_;
  bool has_sources_ = false;          // one of them is a logit row
  std::vector<uint64_t> bad_inputs_;  // sequences whose given rows are none

  int64_t steps_ = 0;
  int64_t preemptions_ = 0;
  int64_t pages_swapped_out_ = 0;
  int64_t pages_swapped_in_ = 0;
  int64_t swap_ns_first_ = 0;  // what the backend counted before the first step
  int64_t sampled_ = 0;        // tokens, since the start
  int64_t drafts_ = 0;         // that ran
  int64_t drafts_accepted_ = 0;
  StepCost step_cost_;
  float prefill_tokens_per_s_ = 0.0F;
  float newest_prefill_tokens_per_s_ = 0.0F;  // of the last step that measured it
  float decode_tokens_per_s_ = 0.0F;
};

}  // namespace updraft
