// One step of the engine: plan -> batch -> forward pass -> samplers -> sinks.
#include "common/engine/engine_core.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "common/base/check.h"
#include "common/base/clock.h"

namespace updraft {
namespace {

constexpr float kAverageWeight = 0.1F;          // of the newest value in the moving averages
constexpr int32_t kPrefillRowsMeasured = 16;    // fewer say more about fixed costs than about speed
constexpr int32_t kMixedPrefillRowsMin = 16;    // beside decodes, however slow the machine
constexpr int32_t kMixedPrefillRowsFirst = 64;  // before anything was measured

void average(float& into, float value) {
  into = into == 0.0F ? value : into + kAverageWeight * (value - into);
}

}  // namespace

EngineCore::EngineCore(const EngineCoreConfig& config, Forward forward,
                       std::unique_ptr<Backend> backend)
    : config_(config),
      forward_(std::move(forward)),
      backend_(std::move(backend)),
      samples_on_device_(backend_->samples()),
      runs_ahead_(samples_on_device_ && backend_->steps_in_flight_max() > 1),
      scheduler_(config.scheduler) {
  if (config.scheduler.swap_slots > 0) swap_ns_first_ = backend_->swap_ns();
  if (samples_on_device_ && backend_->never_sample(config.banned_ids))
    device_banned_ids_ = config.banned_ids;
  // Touched, and so taken, only as far as clients give rows.
  given_rows_.reserve(static_cast<size_t>(config.scheduler.step_tokens_max) *
                      static_cast<size_t>(config.hidden_dim));
}

void EngineCore::add(SequenceRequest request, std::shared_ptr<SequenceSink> sink, int64_t now_ns) {
  const auto prompt_count = static_cast<int32_t>(request.prompt.size());
  const int32_t room = config_.context_tokens - prompt_count;
  const int32_t answer = std::min(room, request.sampling.max_tokens.value_or(room));
  ScheduledSequence scheduled;
  scheduled.id = request.id;
  scheduled.token_count = prompt_count;
  scheduled.token_limit = prompt_count + answer;
  scheduled.priority = request.priority;
  scheduled.deadline_ns = request.deadline_ns;
  // The last prompt token's logits are the first sample's.
  scheduled.logit_tokens = request.prompt_logprobs ? prompt_count - 1 : 0;
  scheduled.salt = request.tenant;
  if (!request.inputs.empty()) scheduled.shared_tokens_max = request.inputs.front().first;
  Sampler sampler(request.sampling, request.prompt, request.banned_ids, request.seed);
  std::vector<int32_t> tokens = std::move(request.prompt);
  for (const InputRows& input : request.inputs) {
    for (int32_t i = input.first; i < input.end(); ++i) tokens[static_cast<size_t>(i)] = -1 - i;
  }
  tokens.reserve(static_cast<size_t>(scheduled.token_limit));
  const uint64_t id = request.id;
  const bool device_can =
      samples_on_device_ && !request.prompt_logprobs && sampler.device_can(device_banned_ids_);
  const auto added = sequences_.emplace(id, Sequence{.request = std::move(request),
                                                     .sink = std::move(sink),
                                                     .serial = next_serial_++,
                                                     .tokens = std::move(tokens),
                                                     .prompt_count = prompt_count,
                                                     .token_limit = scheduled.token_limit,
                                                     .sampler = std::move(sampler),
                                                     .lookup = {},
                                                     .guesses = {},
                                                     .drafts = {},
                                                     .bad_input = {},
                                                     .device_can = device_can});
  scheduled.ids = &added.first->second.tokens;
  scheduler_.add(scheduled, now_ns);
}

void EngineCore::plan(int64_t now_ns, std::vector<uint64_t>& ended) {
  if (in_flight_ > 0 && config_.draft_tokens_max > 0 && should_draft()) read_oldest(ended);
  const auto speed = static_cast<double>(prefill_tokens_per_s_);
  scheduler_.set_swap_costs(config_.swap_page_ns, speed > 0.0 ? 1e9 / speed : 0.0);
  scheduler_.plan(now_ns, prefill_tokens_max(), plan_);
  move_pages();
  preemptions_ += static_cast<int64_t>(plan_.preempted.size());
  for (const StepPlan::Ended& over : plan_.ended) {
    auto node = sequences_.extract(over.id);
    node.mapped().sink->on_end(over.end, over.found_count);
    ended.push_back(over.id);
  }
  if (config_.draft_tokens_max > 0) plan_drafts();
}

// Behind every step that was started: what that writes is there, and what it reads was.
void EngineCore::move_pages() {
  for (const StepPlan::Swap& swap : plan_.swaps) {
    if (swap.out) {
      backend_->swap_out(swap.page, swap.slot);
      ++pages_swapped_out_;
    } else {
      backend_->swap_in(swap.slot, swap.page);
      ++pages_swapped_in_;
    }
  }
}

// Whether guesses behind the tokens that are not read yet look worth more than running ahead: then
// these are read first, because a guess needs to know what it stands behind.
bool EngineCore::should_draft() {
  const Step& step = flight_[flight_first_];
  offers_.clear();
  offered_slices_.clear();
  int32_t tokens = 0;
  for (const LogitUse& use : step.logit_uses) {
    Sequence* sequence = find(use);
    if (sequence == nullptr) continue;
    ++tokens;
    look_up(*sequence, static_cast<int32_t>(sequence->tokens.size()));
    offer_drafts(*sequence, nullptr);
  }
  if (offers_.empty()) return false;
  share_drafts(offers_, step_cost_, tokens, tokens, config_.draft_tokens_max);
  // The first of them stands for the token that is about to be read.
  return std::any_of(offers_.begin(), offers_.end(),
                     [](const DraftOffer& offer) { return offer.drafts > 1; });
}

// Behind the rows that decode, as many guesses as are worth their time.
void EngineCore::plan_drafts() {
  offers_.clear();
  offered_slices_.clear();
  int32_t rows = 0;
  int32_t tokens = 0;
  for (StepSlice& slice : plan_.slices) {
    rows += slice.count;
    tokens += slice.samples ? 1 : 0;
    Sequence& sequence = sequences_.at(slice.id);
    const auto known = static_cast<int32_t>(sequence.tokens.size());
    look_up(sequence, std::min(slice.first + slice.count, known));
    if (!slice.samples || slice.count != 1 || in_flight_ > 0) continue;
    offer_drafts(sequence, &slice);
  }
  if (offers_.empty()) return;
  share_drafts(offers_, step_cost_, rows, tokens, plan_.draft_rows_max);
  for (size_t i = 0; i < offers_.size(); ++i) {
    drafts_ += scheduler_.add_drafts(plan_, *offered_slices_[i], offers_[i].drafts);
  }
}

void EngineCore::offer_drafts(Sequence& sequence, StepSlice* slice) {
  const int32_t count = guess(sequence);
  if (count == 0) return;
  offers_.push_back({&sequence.guesses, sequence.lookup.match_tokens(), count, 0});
  offered_slices_.push_back(slice);
}

// Fills its drafts; how many there are. None behind one that ends the answer, and none from where
// the place that is followed runs into given rows.
int32_t EngineCore::guess(Sequence& sequence) const {
  sequence.drafts.clear();
  const int32_t room = sequence.token_limit - static_cast<int32_t>(sequence.tokens.size()) - 1;
  const int32_t count = std::min(config_.draft_tokens_max, room);
  if (count <= 0 || sequence.lookup.match_tokens() == 0) return 0;
  sequence.lookup.guess(sequence.tokens, count, sequence.drafts);
  const std::vector<int32_t>& stops = sequence.request.stop_ids;
  const auto last =
      std::find_if(sequence.drafts.begin(), sequence.drafts.end(), [&](const int32_t id) {
        return id < 0 || std::find(stops.begin(), stops.end(), id) != stops.end();
      });
  sequence.drafts.erase(last, sequence.drafts.end());
  return static_cast<int32_t>(sequence.drafts.size());
}

// Takes in its first token_count tokens, and remembers of those of the answer how they were
// guessed.
void EngineCore::look_up(Sequence& sequence, int32_t token_count) const {
  while (sequence.lookup.seen() < token_count) {
    const bool answer = sequence.lookup.seen() >= sequence.prompt_count;
    const PromptLookup::Guess guess = sequence.lookup.take(sequence.tokens);
    if (answer) sequence.guesses.observe(guess);
  }
}

void EngineCore::run(std::vector<uint64_t>& ended) {
  size_t ahead = 0;  // steps that need not be read yet
  if (!plan_.slices.empty()) {
    start(ended);
    const Step& newest = flight_[(flight_first_ + in_flight_ - 1) % flight_.size()];
    ahead = runs_ahead_ && newest.on_device ? 1 : 0;
  }
  while (in_flight_ > ahead) read_oldest(ended);
}

void EngineCore::start(std::vector<uint64_t>& ended) {
  for (const StepSlice& slice : plan_.slices) {
    Sequence& sequence = sequences_.at(slice.id);
    if (!std::exchange(sequence.started, true)) sequence.sink->on_start();
  }
  UPDRAFT_CHECK(in_flight_ < flight_.size());
  Step& step = flight_[(flight_first_ + in_flight_) % flight_.size()];
  const Batch batch = build_batch(step);
  ++in_flight_;
  step.started_ns = config_.step_clock();
  forward_.start(*backend_, batch);
  scheduler_.commit(plan_);
  if (step.on_device) expect_tokens(step);
  for (const uint64_t id : bad_inputs_)
    fail(id, sequences_.at(id).bad_input, ended, SequenceEnd::kBadInput);
}

// Its tokens are part of the sequences from here on, whatever they are.
void EngineCore::expect_tokens(const Step& step) {
  for (size_t i = 0; i < step.logit_uses.size(); ++i) {
    const uint64_t id = step.logit_uses[i].id;
    Sequence& sequence = sequences_.at(id);
    scheduler_.append_unread(id);
    ++sequence.unread;
    sequence.source = static_cast<int32_t>(i);
  }
}

void EngineCore::read_oldest(std::vector<uint64_t>& ended) {
  const Step& step = flight_[flight_first_];
  std::span<float> logits;
  std::span<const int32_t> tokens;
  if (step.on_device) {
    tokens = backend_->read_tokens();
  } else {
    logits = backend_->read_logits();
  }
  const int64_t now_ns = config_.step_clock();
  // It began to run when the one before it was over, if that was later.
  const int64_t step_ns = now_ns - std::max(step.started_ns, last_read_ns_);
  last_read_ns_ = now_ns;
  const int64_t sampled_before = sampled_;
  if (step.on_device) {
    deliver_tokens(step, tokens, ended);
  } else {
    deliver(step, logits, ended);
  }
  measure(step, step_ns, sampled_ - sampled_before);
  ++steps_;
  flight_first_ = (flight_first_ + 1) % flight_.size();
  --in_flight_;
}

void EngineCore::end_all(std::vector<uint64_t>& ended) {
  while (!sequences_.empty()) end(sequences_.begin()->first, SequenceEnd::kCancelled, ended);
  while (in_flight_ > 0) read_oldest(ended);
}

// Null: it ended while the step ran.
EngineCore::Sequence* EngineCore::find(const LogitUse& use) {
  const auto found = sequences_.find(use.id);
  const bool same = found != sequences_.end() && found->second.serial == use.serial;
  return same ? &found->second : nullptr;
}

// A prompt's chunk beside running answers is as long as mixed_step_ms allows at the measured speed:
// the average, or that of the newest chunk if it was slower, because each chunk looks back on more
// tokens than the one before.
int32_t EngineCore::prefill_tokens_max() const {
  if (config_.mixed_step_ms <= 0 || scheduler_.decoding_count() == 0) return 0;
  if (prefill_tokens_per_s_ == 0.0F) return kMixedPrefillRowsFirst;
  const float speed = std::min(prefill_tokens_per_s_, newest_prefill_tokens_per_s_);
  const float rows = speed * static_cast<float>(config_.mixed_step_ms) / 1000.0F;
  const auto rows_max =
      static_cast<float>(std::max(config_.scheduler.step_tokens_max, kMixedPrefillRowsMin));
  return static_cast<int32_t>(std::clamp(rows, static_cast<float>(kMixedPrefillRowsMin), rows_max));
}

// Every row of the plan that samples can be sampled there; drafts are compared with what the
// sampler says, so they need the logits.
bool EngineCore::device_can_sample() const {
  return samples_on_device_ &&
         std::all_of(plan_.slices.begin(), plan_.slices.end(), [&](const StepSlice& slice) {
           return slice.drafts == 0 && sequences_.at(slice.id).device_can;
         });
}

Batch EngineCore::build_batch(Step& step) {
  token_ids_.clear();
  positions_.clear();
  slices_.clear();
  logit_rows_.clear();
  given_rows_.clear();
  samplings_.clear();
  token_sources_.clear();
  has_sources_ = false;
  bad_inputs_.clear();
  step.logit_uses.clear();
  step.prefill_rows = 0;
  for (const StepSlice& slice : plan_.slices) {
    Sequence& sequence = sequences_.at(slice.id);
    const auto row_first = static_cast<int32_t>(token_ids_.size());
    add_tokens(sequence, slice);
    const int32_t answer = slice.first + slice.count - sequence.prompt_count;
    slices_.push_back({row_first, slice.count, slice.first, scheduler_.pages(slice.id),
                       std::clamp(answer, 0, slice.count)});
    add_given_rows(sequence, slice);
    add_logit_rows(step, slice, row_first, sequence);
    const int32_t rows = slice.count - slice.drafts;
    step.prefill_rows += rows > 1 ? rows : 0;
  }
  UPDRAFT_CHECK(static_cast<int32_t>(logit_rows_.size()) <= config_.scheduler.logit_rows_max);
  step.rows = static_cast<int32_t>(token_ids_.size());
  step.sequences = static_cast<int32_t>(slices_.size());
  step.on_device = !logit_rows_.empty() && device_can_sample();
  if (step.on_device) add_samplings(step);
  Batch batch{token_ids_, positions_, slices_, logit_rows_, given_rows_};
  batch.samplings = samplings_;
  if (has_sources_) batch.token_sources = token_sources_;
  return batch;
}

void EngineCore::add_tokens(const Sequence& sequence, const StepSlice& slice) {
  const auto read = static_cast<int32_t>(sequence.tokens.size());
  const int32_t known = slice.first + slice.count - slice.drafts;
  for (int32_t position = slice.first; position < slice.first + slice.count; ++position) {
    int32_t id = 0;
    int32_t source = -1;
    if (position >= known) {
      id = sequence.drafts[static_cast<size_t>(position - known)];
    } else if (position < read) {
      id = sequence.tokens[static_cast<size_t>(position)];
    } else {
      // All steps but the last one are read, so there is one such token and the last step gave it.
      UPDRAFT_CHECK(sequence.unread == 1 && in_flight_ == 1);
      source = sequence.source;
      has_sources_ = true;
    }
    token_ids_.push_back(id);
    token_sources_.push_back(source);
    positions_.push_back(position);
  }
}

void EngineCore::add_samplings(const Step& step) {
  for (const LogitUse& use : step.logit_uses)
    samplings_.push_back(sequences_.at(use.id).sampler.row_sampling(use.position + 1));
}

// The step's copy of the rows that stand in the slice. Where they are no numbers the step runs on
// zeros, for nothing, and the sequence ends behind it: its pages from there on are its own.
void EngineCore::add_given_rows(Sequence& sequence, const StepSlice& slice) {
  const auto dim = static_cast<size_t>(config_.hidden_dim);
  for (const InputRows& input : sequence.request.inputs) {
    const int32_t first = std::max(slice.first, input.first);
    const int32_t count = std::min(slice.first + slice.count, input.end()) - first;
    if (count <= 0) continue;
    const size_t at = given_rows_.size();
    given_rows_.resize(at + static_cast<size_t>(count) * dim);
    const auto bad =
        copy_rows(input.rows, first - input.first, count, std::span(given_rows_).subspan(at));
    if (!bad || !sequence.bad_input.empty()) continue;
    sequence.bad_input = "an input embedding is no finite number: row " + std::to_string(bad->row) +
                         ", column " + std::to_string(bad->column) +
                         " of the rows that stand at position " + std::to_string(input.first);
    bad_inputs_.push_back(slice.id);
  }
}

void EngineCore::add_logit_rows(Step& step, const StepSlice& slice, int32_t row_first,
                                const Sequence& sequence) {
  if (sequence.request.prompt_logprobs) {
    const int32_t from = std::max(slice.first, sequence.prompt_logits_done);
    const int32_t to = std::min(slice.first + slice.count, sequence.prompt_count - 1);
    for (int32_t position = from; position < to; ++position) {
      logit_rows_.push_back(row_first + position - slice.first);
      step.logit_uses.push_back({slice.id, sequence.serial, position, false});
    }
  }
  if (!slice.samples) return;
  for (int32_t row = slice.count - 1 - slice.drafts; row < slice.count; ++row) {
    logit_rows_.push_back(row_first + row);
    step.logit_uses.push_back({slice.id, sequence.serial, slice.first + row, true});
  }
}

// What the device chose. A sequence that ends with it has a row too many in the step behind, if
// that runs already: find() does not find it any more when that one is read.
void EngineCore::deliver_tokens(const Step& step, std::span<const int32_t> tokens,
                                std::vector<uint64_t>& ended) {
  UPDRAFT_CHECK(tokens.size() >= step.logit_uses.size());
  for (size_t i = 0; i < step.logit_uses.size(); ++i) {
    const LogitUse& use = step.logit_uses[i];
    Sequence* sequence = find(use);
    if (sequence == nullptr) continue;
    const int32_t token = tokens[i];
    if (token < 0) {
      fail(use.id,
           "the model gave logits for position " + std::to_string(use.position + 1) +
               " that are no numbers, or leave no token to choose: its weights are damaged or "
               "overflow",
           ended);
      continue;
    }
    UPDRAFT_CHECK(token < config_.vocab_count, "a device chose a token that there is not");
    ++sampled_;
    if (stops_at(*sequence, token)) {
      end(use.id, SequenceEnd::kStop, ended);
      continue;
    }
    sequence->tokens.push_back(token);
    --sequence->unread;
    scheduler_.read(use.id);
    hand_out(use.id, *sequence, {token, 0.0F, {}}, 0, ended);
  }
}

void EngineCore::deliver(const Step& step, std::span<float> logits, std::vector<uint64_t>& ended) {
  const auto vocab = static_cast<size_t>(config_.vocab_count);
  const std::vector<LogitUse>& uses = step.logit_uses;
  UPDRAFT_CHECK(logits.size() >= uses.size() * vocab);
  for (size_t i = 0; i < uses.size(); ++i) {
    const LogitUse& use = uses[i];
    const bool first = i == 0 || !uses[i - 1].samples || uses[i - 1].id != use.id;
    if (use.samples && !first) continue;  // a draft's: deliver_samples() had it
    if (find(use) == nullptr) continue;   // an earlier row, or the step before, ended it
    if (use.samples) {
      deliver_samples(step, i, logits, ended);
    } else {
      deliver_prompt_token(use, logits.subspan(i * vocab, vocab), ended);
    }
  }
}

// The newest token's row and then each draft's, as long as the draft is the token that the row
// before it gave: so every token comes from the logits, and the sampler's state, of a run without
// drafts.
void EngineCore::deliver_samples(const Step& step, size_t use_first, std::span<float> logits,
                                 std::vector<uint64_t>& ended) {
  const auto vocab = static_cast<size_t>(config_.vocab_count);
  const std::vector<LogitUse>& uses = step.logit_uses;
  const uint64_t id = uses[use_first].id;
  int32_t count = 0;
  for (size_t i = use_first; i < uses.size() && uses[i].id == id; ++i) {
    if (count > 0) {
      // The step's rows are those of the newest batch: no other is begun behind one with logits.
      if (token_ids_[static_cast<size_t>(logit_rows_[i])] != sequences_.at(id).tokens.back()) break;
      ++drafts_accepted_;
    }
    if (!deliver_sample(uses[i], count, logits.subspan(i * vocab, vocab), ended)) return;
    ++count;
  }
  scheduler_.append(id, count);
}

void EngineCore::deliver_prompt_token(const LogitUse& use, std::span<const float> row,
                                      std::vector<uint64_t>& ended) {
  Sequence& sequence = sequences_.at(use.id);
  const int32_t id = sequence.tokens[static_cast<size_t>(use.position) + 1];
  const SampledToken token = logprobs_of(row, id, sequence.request.sampling.top_logprobs);
  if (std::isnan(token.logprob)) {
    fail(use.id,
         "the model gave logits that are no numbers at prompt position " +
             std::to_string(use.position) + ": its weights are damaged or overflow",
         ended);
    return;
  }
  sequence.prompt_logits_done = use.position + 1;
  sequence.sink->on_prompt_token(token);
}

// False when the sequence ended with it. drafts_kept: of this step, before it.
bool EngineCore::deliver_sample(const LogitUse& use, int32_t drafts_kept, std::span<float> row,
                                std::vector<uint64_t>& ended) {
  Sequence& sequence = sequences_.at(use.id);
  const auto sampled = sequence.sampler.sample(row, use.position + 1);
  if (!sampled) {
    fail(use.id, sampled.message(), ended);
    return false;
  }
  ++sampled_;
  if (stops_at(sequence, sampled->id)) {
    end(use.id, SequenceEnd::kStop, ended, drafts_kept);
    return false;
  }
  sequence.tokens.push_back(sampled->id);
  return hand_out(use.id, sequence, *sampled, drafts_kept, ended);
}

bool EngineCore::stops_at(const Sequence& sequence, int32_t token) const {
  const std::vector<int32_t>& stop_ids = sequence.request.stop_ids;
  return std::find(stop_ids.begin(), stop_ids.end(), token) != stop_ids.end();
}

// The newest of its tokens. False when the sequence ended with it.
bool EngineCore::hand_out(uint64_t id, Sequence& sequence, const SampledToken& token,
                          int32_t drafts_kept, std::vector<uint64_t>& ended) {
  sequence.sampler.accept(token.id);
  if (!sequence.sink->on_token(token)) {
    end(id, SequenceEnd::kStop, ended, drafts_kept);
    return false;
  }
  if (static_cast<int32_t>(sequence.tokens.size()) >= sequence.token_limit) {
    end(id, SequenceEnd::kLength, ended, drafts_kept);
    return false;
  }
  return true;
}

void EngineCore::end(uint64_t id, SequenceEnd how, std::vector<uint64_t>& ended,
                     int32_t drafts_kept) {
  const int32_t cached_tokens = scheduler_.found_count(id);
  scheduler_.finish(id, drafts_kept);
  auto node = sequences_.extract(id);
  node.mapped().sink->on_end(how, cached_tokens);
  ended.push_back(id);
}

void EngineCore::fail(uint64_t id, const std::string& why, std::vector<uint64_t>& ended,
                      SequenceEnd how) {
  sequences_.at(id).sink->on_failure(why);
  end(id, how, ended);
}

// A step with prompt rows measures prefill, any other decoding; the few decode rows beside a chunk
// do not matter.
void EngineCore::measure(const Step& step, int64_t step_ns, int64_t sampled_count) {
  const float seconds = static_cast<float>(std::max<int64_t>(step_ns, 1)) * 1e-9F;
  if (step.prefill_rows >= kPrefillRowsMeasured) {
    newest_prefill_tokens_per_s_ = static_cast<float>(step.prefill_rows) / seconds;
    average(prefill_tokens_per_s_, newest_prefill_tokens_per_s_);
  } else if (step.prefill_rows == 0) {
    const auto sequences = static_cast<float>(step.sequences);
    average(decode_tokens_per_s_, static_cast<float>(sampled_count) / sequences / seconds);
    step_cost_.observe(step.rows, seconds);
  }
}

EngineLoad EngineCore::load() const {
  EngineLoad load;
  load.slots_total = config_.scheduler.slots;
  load.running = scheduler_.running_count();
  load.waiting = scheduler_.waiting_count();
  load.kv_pages_total = scheduler_.page_count();
  load.kv_pages_free = scheduler_.pages_free();
  load.kv_pages_cached = scheduler_.pages_cached();
  load.prefill_tokens_queued = scheduler_.prefill_tokens_queued();
  load.decode_tokens_reserved = scheduler_.decode_tokens_reserved();
  load.prefill_tokens_per_s = prefill_tokens_per_s_;
  load.decode_tokens_per_s = decode_tokens_per_s_;
  load.steps = steps_;
  load.preemptions = preemptions_;
  load.pages_swapped_out = pages_swapped_out_;
  load.pages_swapped_in = pages_swapped_in_;
  load.page_bytes = static_cast<int64_t>(config_.page_bytes);
  // Nobody asks a device that never moved a page.
  if (pages_swapped_out_ > 0) load.swap_ns = backend_->swap_ns() - swap_ns_first_;
  load.prefix_cache = scheduler_.prefix_stats();
  load.draft_tokens = drafts_;
  load.draft_tokens_accepted = drafts_accepted_;
  return load;
}

}  // namespace updraft
