// See the header. The order of one step is EngineCore's: plan, run, commit, samples.
#include "tools/sim/sim_engine.h"

#include <algorithm>
#include <set>
#include <utility>

#include "common/base/check.h"
#include "common/base/clock.h"

namespace updraft::sim {
namespace {

constexpr double kTokenizeBytesPerS = 10e6;
constexpr size_t kPreparedAtOnceBytes = 1024;
constexpr int32_t kMixedRowsMin = 16;
constexpr int32_t kMixedRowsFirst = 64;
constexpr int32_t kRowsMeasuredMin = 16;
constexpr int32_t kDraftsMax = 4;

void average(float& into, double value) {
  into =
      into == 0.0F ? static_cast<float>(value) : into + 0.1F * (static_cast<float>(value) - into);
}

SchedulerConfig scheduler_config(const EngineSpec& spec) {
  SchedulerConfig config;
  config.slots = spec.slots;
  config.page_tokens = spec.page_tokens;
  const int32_t tokens = std::max(spec.kv_tokens, spec.context_tokens);
  config.page_count = (tokens + spec.page_tokens - 1) / spec.page_tokens;
  config.step_tokens_max = spec.step_tokens_max;
  config.swap_slots = spec.kv_swap_tokens / spec.page_tokens;
  config.logit_rows_max = std::max(spec.slots * (1 + kDraftsMax), spec.slots);
  return config;
}

}  // namespace

SimEngine::SimEngine(World& world, const EngineSpec& spec, const SimModel& model,
                     std::string node_id, Tier tier)
    : world_(world),
      spec_(spec),
      model_(model),
      node_id_(std::move(node_id)),
      tier_(tier),
      scheduler_(scheduler_config(spec)) {
  next_generation_ = 1 + static_cast<int32_t>(world.random.below(kGenerations - 1));
}

void SimEngine::submit(Request request, Sink sink) {
  const int32_t choices = std::max(1, total_choices(request));
  const char* why_not = nullptr;
  if (draining_) why_not = " is draining and takes no new requests";
  if (sequences_live_ >= spec_.slots + spec_.queue_max) why_not = " is busy";
  if (spec_.refuse > 0.0 && world_.random.chance(spec_.refuse)) why_not = " has no room after all";
  if (why_not != nullptr) {
    ++requests_failed_;
    sink(error_of(ErrorCode::kOverloaded, node_id_ + why_not, 1000));
    return;
  }
  auto job = std::make_shared<Job>();
  job->sink = std::move(sink);
  job->received_ns = world_.now_ns();
  if (request.hints.deadline_ms > 0)
    job->deadline_ns = job->received_ns + request.hints.deadline_ms * kNsPerMs;
  job->open_choices = choices;
  job->request = std::move(request);
  sequences_live_ += choices;
  jobs_.emplace(job->request.id, job);
  const int64_t bytes = prompt_text_bytes(job->request);
  if (bytes <= static_cast<int64_t>(kPreparedAtOnceBytes)) return prepare(job);
  const auto wait_ns = static_cast<int64_t>(static_cast<double>(bytes) / kTokenizeBytesPerS * 1e9);
  world_.after(wait_ns, [self = weak_from_this(), job] {
    if (const auto engine = self.lock()) engine->prepare(job);
  });
}

void SimEngine::cancel(const RequestId& id) {
  const auto [begin, end] = jobs_.equal_range(id);
  for (auto at = begin; at != end; ++at) {
    at->second->cancelled = true;
    for (const uint64_t sequence : at->second->sequences) scheduler_.cancel(sequence);
  }
  kick();
}

// The checks and refusals of LocalModel's preparation.
void SimEngine::prepare(const JobPtr& job) {
  job->preparing = false;
  const Request& request = job->request;
  if (job->cancelled)
    return fail_job(job, error_of(ErrorCode::kCancelled, "the request was cancelled"));
  if (job->deadline_ns != 0 && job->deadline_ns <= world_.now_ns())
    return fail_job(job, error_of(ErrorCode::kDeadline, "the deadline passed before work began"));
  if (request.model != model_.id) {
    return fail_job(
        job, error_of(ErrorCode::kModelNotFound, node_id_ + " does not serve " + request.model));
  }
  job->prompt_tokens = count_tokens(request, model_);
  const int32_t wanted = request.sampling.max_tokens.value_or(0);
  const int64_t total = int64_t{job->prompt_tokens} + wanted;
  if (job->prompt_tokens >= spec_.context_tokens || total > spec_.context_tokens) {
    RequestError error = error_of(ErrorCode::kContextLength, "too long for " + node_id_);
    error.prompt_tokens = static_cast<int32_t>(total);
    error.limit_tokens = spec_.context_tokens;
    return fail_job(job, std::move(error));
  }
  start(job);
}

void SimEngine::start(const JobPtr& job) {
  const Request& request = job->request;
  job->content = content_hash(request);
  if (!request.sampling.seed) {
    job->generation = next_generation_;
    next_generation_ = 1 + next_generation_ % (kGenerations - 1);
  }
  if (spec_.fail_first > 0.0 && world_.random.chance(spec_.fail_first)) {
    job->fail_after = 0;
  } else if (spec_.fail_midway > 0.0 && world_.random.chance(spec_.fail_midway)) {
    job->fail_after = 1 + static_cast<int32_t>(world_.random.below(8));
  }
  if (const int64_t bytes = prompt_text_bytes(request); bytes > 0)
    average(bytes_per_token_, static_cast<double>(bytes) / job->prompt_tokens);
  const std::vector<int32_t> prompt = tokenize(request, model_);
  const int32_t room = spec_.context_tokens - job->prompt_tokens;
  const int32_t wanted = std::min(room, request.sampling.max_tokens.value_or(room));
  for (int32_t choice = 0; choice < job->open_choices; ++choice) {
    const uint64_t id = next_sequence_++;
    Sequence& sequence = sequences_[id];
    sequence.job = job;
    sequence.choice = choice;
    sequence.tokens = prompt;
    sequence.prompt_count = job->prompt_tokens;
    sequence.limit = job->prompt_tokens + wanted;
    const int32_t natural = natural_tokens(job->content, choice, model_);
    sequence.stops = !request.sampling.ignore_eos && natural <= wanted;
    sequence.answer = sequence.stops ? natural : wanted;
    sequence.tokens.reserve(static_cast<size_t>(sequence.limit));
    job->sequences.push_back(id);
    ScheduledSequence scheduled;
    scheduled.id = id;
    scheduled.token_count = sequence.prompt_count;
    scheduled.token_limit = sequence.limit;
    scheduled.priority = request.hints.priority;
    scheduled.deadline_ns = job->deadline_ns;
    scheduled.ids = &sequence.tokens;
    scheduled.salt = request.tenant;
    scheduler_.add(scheduled, world_.now_ns());
  }
  kick();
}

// Steps follow each other as long as there are sequences.
void SimEngine::kick() {
  if (stepping_ || scheduler_.idle()) return;
  stepping_ = true;
  // Through the clock, not at once: a sink may be at work further up.
  world_.after(0, [self = weak_from_this()] {
    if (const auto engine = self.lock()) engine->begin_step();
  });
}

void SimEngine::begin_step() {
  if (paused_) {
    step_waits_ = true;
    return;
  }
  stepping_ = false;
  int32_t prefill_max = 0;
  if (scheduler_.decoding_count() > 0) {
    const float rows = prefill_tokens_per_s_ * static_cast<float>(spec_.mixed_step_ms) / 1000.0F;
    prefill_max = prefill_tokens_per_s_ == 0.0F
                      ? kMixedRowsFirst
                      : std::clamp(static_cast<int32_t>(rows), kMixedRowsMin,
                                   std::max(spec_.step_tokens_max, kMixedRowsMin));
  }
  scheduler_.set_swap_costs(1e9 * spec_.page_tokens / spec_.swap_tokens_per_s,
                            1e9 / spec_.prefill_tokens_per_s);
  scheduler_.plan(world_.now_ns(), prefill_max, plan_);
  pages_swapped_ += static_cast<int64_t>(plan_.swaps.size());
  for (const StepPlan::Ended& ended : plan_.ended) {
    const auto node = sequences_.extract(ended.id);
    const bool late = ended.end == SequenceEnd::kDeadline;
    fail_job(node.mapped().job, late
                                    ? error_of(ErrorCode::kDeadline, "the deadline is over")
                                    : error_of(ErrorCode::kCancelled, "the request was cancelled"));
  }
  if (plan_.slices.empty()) return kick();
  for (StepSlice& slice : plan_.slices) {
    Sequence& sequence = sequences_.at(slice.id);
    Job& job = *sequence.job;
    if (job.first_step_ns == 0) {
      job.first_step_ns = world_.now_ns();
      Started started;
      started.node_id = node_id_;
      started.tier = tier_;
      started.model = model_.id;
      started.prompt_tokens = job.prompt_tokens;
      send(sequence.job, std::move(started));
    }
    sequence.drafts = 0;
    if (slice.samples && slice.count == 1 && spec_.draft_share > 0.0 &&
        world_.random.chance(spec_.draft_share)) {
      const int32_t drafts = scheduler_.add_drafts(
          plan_, slice, static_cast<int32_t>(world_.random.between(1, kDraftsMax)));
      sequence.drafts = static_cast<int32_t>(world_.random.between(0, drafts));
    }
  }
  stepping_ = true;
  current_step_s_ = step_s() * slowness_;
  longest_step_ns_ = std::max(longest_step_ns_, static_cast<int64_t>(current_step_s_ * 1e9));
  world_.after(static_cast<int64_t>(current_step_s_ * 1e9) + 1, [self = weak_from_this()] {
    if (const auto engine = self.lock()) engine->end_step();
  });
}

// Prompt rows and swapped pages at their rates; the decoding rows of a batch between the time of
// one answer alone and that of all slots.
double SimEngine::step_s() const {
  int32_t prompt_rows = 0;
  int32_t decoding = 0;
  for (const StepSlice& slice : plan_.slices) {
    if (slice.count - slice.drafts > 1) {
      prompt_rows += slice.count;
    } else {
      ++decoding;
    }
  }
  double seconds = prompt_rows / spec_.prefill_tokens_per_s;
  seconds += static_cast<double>(plan_.swaps.size()) * spec_.page_tokens / spec_.swap_tokens_per_s;
  if (decoding > 0) {
    const double alone = 1.0 / spec_.decode_tokens_per_s;
    const double full = std::max(alone, spec_.slots / spec_.decode_tokens_per_s_full);
    const double share = spec_.slots > 1 ? (decoding - 1.0) / (spec_.slots - 1.0) : 0.0;
    seconds += alone + (full - alone) * share;
  }
  return seconds;
}

void SimEngine::end_step() {
  if (paused_) {
    step_waits_ = true;
    return;
  }
  stepping_ = false;
  busy_s_ += current_step_s_;
  scheduler_.commit(plan_);
  const int64_t before = generated_tokens_;
  const std::vector<StepSlice> slices = std::exchange(plan_.slices, {});
  int32_t prompt_rows = 0;
  for (const StepSlice& slice : slices) {
    const int32_t rows = slice.count - slice.drafts;
    prompt_rows += rows > 1 ? rows : 0;
  }
  for (const StepSlice& slice : slices) {
    if (slice.samples && sequences_.contains(slice.id)) take_samples(slice);
  }
  const double seconds = std::max(current_step_s_, 1e-9);
  if (prompt_rows >= kRowsMeasuredMin) {
    average(prefill_tokens_per_s_, prompt_rows / seconds);
  } else if (prompt_rows == 0) {
    average(decode_tokens_per_s_, static_cast<double>(generated_tokens_ - before) /
                                      static_cast<double>(slices.size()) / seconds);
  }
  kick();
}

void SimEngine::take_samples(const StepSlice& slice) {
  Sequence& sequence = sequences_.at(slice.id);
  const JobPtr job = sequence.job;
  const int32_t wanted = 1 + sequence.drafts;
  int32_t count = 0;
  TokenChunk chunk;
  chunk.choice = sequence.choice;
  chunk.offset = static_cast<int32_t>(sequence.tokens.size()) - sequence.prompt_count;
  for (; count < wanted; ++count) {
    const int32_t index = chunk.offset + count;
    if (job->fail_after >= 0 && job->completion_tokens >= job->fail_after) {
      if (!chunk.ids.empty()) send(job, std::move(chunk));
      return fail_job(job, error_of(ErrorCode::kInternal, "an injected failure of " + node_id_));
    }
    const int32_t token = token_at(job->content, sequence.choice, index, job->generation);
    sequence.tokens.push_back(token);
    chunk.ids.push_back(token);
    chunk.text += piece_of(token);
    ++job->completion_tokens;
    ++generated_tokens_;
    if (job->first_token_ns == 0) job->first_token_ns = world_.now_ns();
    if (index + 1 < sequence.answer) continue;
    const FinishReason reason = sequence.stops ? FinishReason::kStop : FinishReason::kLength;
    chunk.finish = reason;
    send(job, std::move(chunk));
    return end_sequence(slice.id, reason, count);
  }
  scheduler_.append(slice.id, count);
  send(job, std::move(chunk));
}

void SimEngine::end_sequence(uint64_t id, FinishReason, int32_t drafts) {
  const JobPtr job = sequences_.at(id).job;
  job->cached_tokens = std::max(job->cached_tokens, scheduler_.found_count(id));
  scheduler_.finish(id, drafts);
  sequences_.erase(id);
  if (--job->open_choices > 0) return;
  ++requests_done_;
  forget_job(job);
  Finished finished;
  finished.usage = {job->prompt_tokens, job->completion_tokens, job->cached_tokens};
  finished.timings.queued_ns = job->first_step_ns - job->received_ns;
  finished.timings.first_token_ns = job->first_token_ns - job->received_ns;
  finished.timings.total_ns = world_.now_ns() - job->received_ns;
  send(job, finished);
}

// Its other sequences are cancelled and end unheard.
void SimEngine::fail_job(const JobPtr& job, RequestError error) {
  for (const uint64_t id : job->sequences) {
    if (sequences_.contains(id)) scheduler_.cancel(id);
  }
  if (job->over) return;
  ++requests_failed_;
  forget_job(job);
  send(job, std::move(error));
  kick();
}

void SimEngine::forget_job(const JobPtr& job) {
  const auto [begin, end] = jobs_.equal_range(job->request.id);
  for (auto at = begin; at != end; ++at) {
    if (at->second != job) continue;
    jobs_.erase(at);
    break;
  }
  sequences_live_ -= std::max(1, total_choices(job->request));
  job->over = true;
}

void SimEngine::send(const JobPtr& job, Event event) {
  if (job->over && !is_end(event)) return;
  job->sink(std::move(event));
}

void SimEngine::set_paused(bool paused) {
  paused_ = paused;
  if (paused || !std::exchange(step_waits_, false)) return;
  world_.after(0, [self = weak_from_this()] {
    const auto engine = self.lock();
    if (!engine) return;
    if (engine->plan_.slices.empty()) {
      engine->begin_step();
    } else {
      engine->end_step();
    }
  });
}

void SimEngine::heal() {
  spec_.fail_first = spec_.fail_midway = spec_.refuse = 0.0;
  slowness_ = 1.0;
}

int32_t SimEngine::slots_free() const { return std::max(spec_.slots - sequences_live_, 0); }
int32_t SimEngine::waiting() const {
  return std::max(sequences_live_ - scheduler_.running_count(), 0);
}

void SimEngine::fill_beat(NodeBeat& beat) const {
  beat.slots_total = spec_.slots;
  beat.slots_free = slots_free();
  beat.running = scheduler_.running_count();
  beat.waiting = waiting();
  beat.kv_tokens_total = kv_tokens_total();
  beat.kv_tokens_free = kv_tokens_free();
  beat.kv_tokens_cached = int64_t{scheduler_.pages_cached()} * spec_.page_tokens;
  beat.prefill_tokens_queued = scheduler_.prefill_tokens_queued();
  beat.decode_tokens_reserved = scheduler_.decode_tokens_reserved();
  beat.prefill_tokens_per_s = prefill_tokens_per_s_;
  beat.decode_tokens_per_s = decode_tokens_per_s_;
  beat.bytes_per_token = bytes_per_token_;
  beat.requests_done = requests_done_;
  beat.requests_failed = requests_failed_;
}

std::string SimEngine::check_pages() const {
  std::set<int32_t> held;
  int32_t swapped = 0;
  for (const auto& [id, sequence] : sequences_) {
    for (const int32_t page : scheduler_.pages(id)) held.insert(page);
    swapped += scheduler_.swapped_pages(id);
  }
  const int32_t slots = spec_.kv_swap_tokens / spec_.page_tokens;
  if (swapped + scheduler_.swap_slots_free() != slots) {
    return node_id_ + ": sequences hold " + std::to_string(swapped) +
           " pages of the swap space and " + std::to_string(scheduler_.swap_slots_free()) +
           " are free, of " + std::to_string(slots);
  }
  const auto held_count = static_cast<int32_t>(held.size());
  if (held_count + scheduler_.pages_free() == scheduler_.page_count()) return {};
  return node_id_ + ": " + std::to_string(sequences_.size()) + " sequences hold " +
         std::to_string(held_count) + " pages and " + std::to_string(scheduler_.pages_free()) +
         " are free, of " + std::to_string(scheduler_.page_count());
}

}  // namespace updraft::sim
