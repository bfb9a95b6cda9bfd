// The scheduler's one public step, plan(): drop what is over, let the running grow, admit, hand out
// rows.
#include "common/engine/scheduler.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <unordered_set>
#include <utility>

#include "common/base/check.h"
#include "common/base/plant.h"

namespace updraft {

namespace {

// Added to the rank of what is paused: behind every class and every arrival.
constexpr int64_t kPausedDelayNs = int64_t{1} << 62;

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config)
    : config_(config), pages_(config.page_count, config.page_tokens, config.prefix_hash) {
  UPDRAFT_CHECK(config.slots > 0 && config.page_tokens > 0 && config.step_tokens_max > 0);
  UPDRAFT_CHECK(config.logit_rows_max >= config.slots,
                "every running sequence may sample in a step");
  if (config.swap_slots > 0) swap_slots_.emplace(config.swap_slots);
}

void Scheduler::set_swap_costs(double page_ns, double position_ns) {
  swap_page_ns_ = page_ns;
  position_ns_ = position_ns;
}

void Scheduler::add(const ScheduledSequence& sequence, int64_t now_ns) {
  UPDRAFT_CHECK(sequence.token_count > 0 && sequence.token_limit >= sequence.token_count);
  UPDRAFT_CHECK(pages_for(sequence.token_limit) <= pages_.page_count(),
                "a sequence that no pool state could hold would wait for ever");
  Sequence entry;
  entry.info = sequence;
  entry.rank.key_ns = now_ns + static_cast<int64_t>(sequence.priority) * kClassDelayNs;
  entry.rank.arrival = arrivals_++;
  const Rank rank = entry.rank;
  const bool added = sequences_.emplace(sequence.id, std::move(entry)).second;
  UPDRAFT_CHECK(added, "two live sequences with one id");
  waiting_.emplace(rank, sequence.id);
}

void Scheduler::cancel(uint64_t id) {
  const auto found = sequences_.find(id);
  if (found != sequences_.end()) found->second.cancelled = true;
}

void Scheduler::pause(uint64_t id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end() || std::exchange(found->second.paused, true)) return;
  set_rank(id, found->second.rank.key_ns + kPausedDelayNs);
}

void Scheduler::resume(uint64_t id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end() || !std::exchange(found->second.paused, false)) return;
  set_rank(id, found->second.rank.key_ns - kPausedDelayNs);
}

void Scheduler::set_rank(uint64_t id, int64_t key_ns) {
  Sequence& sequence = at(id);
  Ordered& order = sequence.running ? running_ : waiting_;
  order.erase({sequence.rank, id});
  sequence.rank.key_ns = key_ns;
  order.emplace(sequence.rank, id);
}

bool Scheduler::all_paused() const {
  return !idle() && std::all_of(sequences_.begin(), sequences_.end(), [](const auto& entry) {
    return entry.second.paused && !entry.second.cancelled;
  });
}

int64_t Scheduler::next_deadline_ns() const {
  int64_t next = 0;
  for (const auto& [id, sequence] : sequences_) {
    const int64_t deadline = sequence.info.deadline_ns;
    if (deadline != 0) next = next == 0 ? deadline : std::min(next, deadline);
  }
  return next;
}

StepPlan Scheduler::plan(int64_t now_ns, int32_t prefill_tokens_max) {
  StepPlan next;
  plan(now_ns, prefill_tokens_max, next);
  return next;
}

void Scheduler::plan(int64_t now_ns, int32_t prefill_tokens_max, StepPlan& plan) {
  const int32_t prefill_budget = prefill_tokens_max > 0
                                     ? std::min(prefill_tokens_max, config_.step_tokens_max)
                                     : config_.step_tokens_max;
  plan.slices.clear();
  plan.preempted.clear();
  plan.swaps.clear();
  plan.ended.clear();
  plan.draft_rows_max = 0;
  end_cancelled_and_late(now_ns, plan);
  grow_running(plan);
  admit(prefill_budget, plan);
  find_running();
  assign_rows(prefill_budget, plan);
}

void Scheduler::commit(const StepPlan& plan) {
  for (const StepSlice& slice : plan.slices) {
    Sequence& sequence = at(slice.id);
    UPDRAFT_CHECK(sequence.cached_count == slice.first,
                  "a plan was committed twice or out of order");
    sequence.cached_count += slice.count - slice.drafts;
    sequence.computed_max = std::max(sequence.computed_max, sequence.cached_count);
    index_full_pages(sequence);
  }
}

int32_t Scheduler::add_drafts(StepPlan& plan, StepSlice& slice, int32_t wanted) {
  Sequence& sequence = at(slice.id);
  UPDRAFT_CHECK(slice.samples && slice.count == 1 && sequence.pending() == 1,
                "only what decodes can be guessed on");
  UPDRAFT_CHECK(sequence.unread == 0, "nobody can guess behind a token that is not known");
  const int32_t tokens = sequence.info.token_count;
  // The row of the last draft gives one more token.
  int32_t drafts = std::min({wanted, plan.draft_rows_max, sequence.info.token_limit - tokens - 1});
  while (static_cast<int32_t>(sequence.pages.size()) < pages_for(tokens + drafts)) {
    const auto page = pages_.take();
    if (!page) break;
    sequence.pages.push_back(*page);
  }
  const auto room = static_cast<int32_t>(sequence.pages.size()) * config_.page_tokens;
  drafts = std::max(0, std::min(drafts, room - tokens));
  slice.drafts = drafts;
  slice.count += drafts;
  plan.draft_rows_max -= drafts;
  return drafts;
}

void Scheduler::append(uint64_t id, int32_t count) {
  Sequence& sequence = at(id);
  UPDRAFT_CHECK(sequence.cached_count == sequence.info.token_count,
                "a token was appended before the one before it was computed");
  UPDRAFT_CHECK(sequence.unread == 0, "its unread tokens come first");
  UPDRAFT_CHECK(count > 0 && count <= sequence.info.token_limit - sequence.info.token_count);
  sequence.info.token_count += count;
  sequence.cached_count += count - 1;
  sequence.computed_max = std::max(sequence.computed_max, sequence.cached_count);
  UPDRAFT_CHECK(pages_for(sequence.cached_count) <= static_cast<int32_t>(sequence.pages.size()),
                "more tokens than drafts ran");
  release_pages(sequence, pages_for(sequence.info.token_count));
}

void Scheduler::append_unread(uint64_t id) {
  Sequence& sequence = at(id);
  UPDRAFT_CHECK(sequence.cached_count == sequence.info.token_count,
                "a token was appended before the one before it was computed");
  UPDRAFT_CHECK(sequence.info.token_count < sequence.info.token_limit);
  ++sequence.info.token_count;
  ++sequence.unread;
}

void Scheduler::read(uint64_t id) {
  Sequence& sequence = at(id);
  UPDRAFT_CHECK(sequence.unread > 0, "all of its tokens were read");
  --sequence.unread;
  index_full_pages(sequence);
}

void Scheduler::finish(uint64_t id, int32_t drafts) {
  Sequence& sequence = at(id);
  sequence.info.token_count += drafts;
  sequence.cached_count += drafts;
  UPDRAFT_CHECK(pages_for(sequence.cached_count) <= static_cast<int32_t>(sequence.pages.size()),
                "more tokens than drafts ran");
  forget(id);
}

std::span<const int32_t> Scheduler::pages(uint64_t id) const { return at(id).pages; }

int32_t Scheduler::decoding_count() const {
  int32_t count = 0;
  for (const auto& [rank, id] : running_) {
    const Sequence& sequence = at(id);
    count += !sequence.paused && sequence.pending() == 1 ? 1 : 0;
  }
  return count;
}

int64_t Scheduler::prefill_tokens_queued() const {
  int64_t sum = 0;
  for (const auto& [id, sequence] : sequences_) {
    if (!sequence.running || sequence.pending() > 1)
      sum += sequence.pending() - sequence.swapped_count;
  }
  return sum;
}

int64_t Scheduler::decode_tokens_reserved() const {
  int64_t sum = 0;
  for (const auto& [id, sequence] : sequences_) {
    sum += sequence.info.token_limit - sequence.info.token_count;
  }
  return sum;
}

Scheduler::Sequence& Scheduler::at(uint64_t id) {
  const auto found = sequences_.find(id);
  UPDRAFT_CHECK(found != sequences_.end(), "unknown sequence id");
  return found->second;
}
const Scheduler::Sequence& Scheduler::at(uint64_t id) const {
  return const_cast<Scheduler*>(this)->at(id);
}

int32_t Scheduler::pages_for(int32_t token_count) const {
  return (token_count + config_.page_tokens - 1) / config_.page_tokens;
}

// All but the first `keep` pages, whether or not a step that writes to them still runs. Last first:
// free ones are handed out again in order, cached ones evicted children first.
void Scheduler::release_pages(Sequence& sequence, int32_t keep) {
  index_full_pages(sequence);
  while (static_cast<int32_t>(sequence.pages.size()) > keep) {
    pages_.release(sequence.pages.back());
    sequence.pages.pop_back();
  }
  sequence.cached_count = std::min(sequence.cached_count, keep * config_.page_tokens);
  sequence.indexed_pages = std::min(sequence.indexed_pages, keep);
}

void Scheduler::forget(uint64_t id) {
  Sequence& sequence = at(id);
  release_pages(sequence, 0);
  release_swap(sequence);
  (sequence.running ? running_ : waiting_).erase({sequence.rank, id});
  sequences_.erase(id);
}

// Back to waiting under its old rank; when it returns its tokens, sampled ones too, are computed
// again as far as its full pages are not found or were swapped.
void Scheduler::preempt(uint64_t id, StepPlan& plan) {
  Sequence& sequence = at(id);
  UPDRAFT_CHECK(sequence.running);
  swap_out(sequence, plan);
  if (UPDRAFT_PLANT(kPageKept)) sequence.pages.pop_back();
  release_pages(sequence, 0);
  sequence.running = false;
  running_.erase({sequence.rank, id});
  waiting_.emplace(sequence.rank, id);
  plan.preempted.push_back(id);
}

// Its pages that nobody else holds, all or none of them.
void Scheduler::swap_out(Sequence& sequence, StepPlan& plan) {
  if (!swap_slots_ || sequence.complete()) return;
  const int32_t end = pages_for(sequence.cached_count);
  int32_t first = 0;
  while (first < end && pages_.holders(sequence.pages[static_cast<size_t>(first)]) > 1) ++first;
  const int32_t count = end - first;
  if (count == 0 || swap_slots_->free_count() < count) return;
  const double positions = sequence.cached_count - first * config_.page_tokens;
  if (position_ns_ > 0.0 && 2.0 * count * swap_page_ns_ >= positions * position_ns_) return;
  for (int32_t i = first; i < end; ++i) {
    const auto slot = swap_slots_->take();
    UPDRAFT_CHECK(slot.has_value());
    sequence.swap_slots.push_back(*slot);
    plan.swaps.push_back({true, sequence.pages[static_cast<size_t>(i)], *slot});
  }
  sequence.swap_first = first;
  sequence.swapped_count = sequence.cached_count;
}

// It has its pages again; those that others computed meanwhile, or that were found, it need not
// fetch.
void Scheduler::swap_in(Sequence& sequence, StepPlan& plan) {
  // Without the pages before them those that were swapped say nothing.
  const bool whole = sequence.cached_count >= sequence.swap_first * config_.page_tokens;
  if (whole && sequence.swapped_count > sequence.cached_count) {
    const auto from = sequence.cached_count / config_.page_tokens;
    for (int32_t i = from; i < pages_for(sequence.swapped_count); ++i) {
      plan.swaps.push_back({false, sequence.pages[static_cast<size_t>(i)],
                            sequence.swap_slots[static_cast<size_t>(i - sequence.swap_first)]});
    }
    sequence.cached_count = sequence.swapped_count;
  }
  release_swap(sequence);
}

// A slot is free at once, as pages are: what it takes next it takes behind this.
void Scheduler::release_swap(Sequence& sequence) {
  for (const int32_t slot : sequence.swap_slots) swap_slots_->release(slot);
  sequence.swap_slots.clear();
  sequence.swap_first = 0;
  sequence.swapped_count = 0;
}

void Scheduler::end_cancelled_and_late(int64_t now_ns, StepPlan& plan) {
  for (const auto& [id, sequence] : sequences_) {
    if (sequence.cancelled) {
      plan.ended.push_back({id, SequenceEnd::kCancelled, sequence.found_count});
    } else if (sequence.info.deadline_ns != 0 && sequence.info.deadline_ns <= now_ns) {
      plan.ended.push_back({id, SequenceEnd::kDeadline, sequence.found_count});
    }
  }
  for (const StepPlan::Ended& ended : plan.ended) forget(ended.id);
}

// Pages for every token that the sequence has, or still computes. Takes them from the worst-ranked
// when the pool is empty; false when the sequence itself was the worst and had to go.
bool Scheduler::grow(Sequence& sequence, StepPlan& plan) {
  const int32_t positions = sequence.cached_count + sequence.pending();
  while (static_cast<int32_t>(sequence.pages.size()) < pages_for(positions)) {
    if (const auto page = pages_.take()) {
      sequence.pages.push_back(*page);
      continue;
    }
    const uint64_t victim = std::prev(running_.end())->second;
    preempt(victim, plan);
    if (victim == sequence.info.id) return false;
  }
  return true;
}

void Scheduler::grow_running(StepPlan& plan) {
  // Best first; whoever is preempted on the way ranks worse than the one that grows, so it lies
  // ahead of the iterator.
  for (auto next = running_.begin(); next != running_.end();) {
    const auto current = *next;
    if (!grow(at(current.second), plan)) break;  // it was the last
    next = running_.upper_bound(current);
  }
}

// Preempts running sequences of worse rank, worst first, until `sequence`, the best that waits,
// fits. Touches nothing when even all of them would not do. Within one class the running ones came
// first, so only a better class displaces anybody.
bool Scheduler::make_room(const Sequence& sequence, const std::vector<int32_t>& found,
                          StepPlan& plan) {
  int32_t available = pages_.available_count();
  int32_t needed = pages_for(sequence.info.token_count);
  // A found page that others hold costs nothing; one that nobody holds is an available one less.
  for (const int32_t page : found) needed -= pages_.holders(page) > 0 ? 1 : 0;
  int32_t running = running_count();
  // Beside its own pages an arriving sequence leaves one for each running one, or they would push
  // it out again at once.
  const auto fits = [&] { return running < config_.slots && needed + running <= available; };
  std::vector<uint64_t> victims;
  std::unordered_map<int32_t, int32_t> lost;  // page -> holders among the victims
  std::unordered_set<int32_t> wanted;         // `found`, once there is a victim
  for (auto worst = running_.rbegin(); worst != running_.rend() && !fits(); ++worst) {
    const Sequence& candidate = at(worst->second);
    if (candidate.rank < sequence.rank) break;
    if (victims.empty()) wanted.insert(found.begin(), found.end());
    for (const int32_t page : candidate.pages) {
      // A found page only changes hands.
      if (++lost[page] == pages_.holders(page) && !wanted.contains(page)) ++available;
    }
    --running;
    victims.push_back(worst->second);
  }
  if (!fits()) return false;
  for (const uint64_t victim : victims) preempt(victim, plan);
  return true;
}

// Strictly in rank order: nobody behind slips past a large sequence that waits for pages.
void Scheduler::admit(int32_t prefill_budget, StepPlan& plan) {
  int64_t prefill_pending = 0;
  for (const auto& [rank, id] : running_) {
    const Sequence& sequence = at(id);
    const int32_t pending = sequence.pending();
    if (!sequence.paused && pending > 1) prefill_pending += pending;
  }
  while (!waiting_.empty()) {
    // More than this step can compute would only hold pages.
    if (prefill_pending >= prefill_budget) return;
    const auto [rank, id] = *waiting_.begin();
    Sequence& sequence = at(id);
    if (sequence.paused) return;  // and so is everybody behind it
    if (sequence.unread > 0) return;
    const std::vector<int32_t> found = find_pages(sequence);
    if (!make_room(sequence, found, plan)) return;
    waiting_.erase({rank, id});
    running_.emplace(rank, id);
    sequence.running = true;
    use_found(sequence, found);
    UPDRAFT_CHECK(grow(sequence, plan), "its pages were counted before");
    swap_in(sequence, plan);
    prefill_pending += sequence.pending();
  }
}

// Decodes first, one row each; then prompts in chunks. One row is kept for prompts, so that decodes
// that fill the whole step cannot hold them up for ever.
void Scheduler::assign_rows(int32_t prefill_budget, StepPlan& plan) {
  int32_t rows = config_.step_tokens_max;
  int32_t logit_rows = config_.logit_rows_max;
  const bool prompts = std::any_of(running_.begin(), running_.end(), [&](const auto& entry) {
    return !at(entry.second).paused && at(entry.second).pending() > 1;
  });
  for (const auto& [rank, id] : running_) {
    if (rows - (prompts ? 1 : 0) <= 0) break;
    const Sequence& sequence = at(id);
    if (sequence.paused) break;  // they stand last
    if (sequence.pending() != 1) continue;
    plan.slices.push_back({id, sequence.cached_count, 1, true});
    --rows;
    --logit_rows;
  }
  // Every prompt may reach its end in this step; rows with prompt logits come out of what is left
  // beyond that.
  int32_t logit_rows_spare = logit_rows;
  for (const auto& [rank, id] : running_)
    logit_rows_spare -= !at(id).paused && at(id).pending() > 1 ? 1 : 0;
  const int32_t prefill_rows = std::min(rows, prefill_budget);
  int32_t rows_left = prefill_rows;
  for (const auto& [rank, id] : running_) {
    const Sequence& sequence = at(id);
    if (sequence.paused) break;
    if (sequence.pending() <= 1 || computed_beside(sequence, plan)) continue;
    int32_t count = std::min(sequence.pending(), rows_left);
    const int32_t logits_from = std::max(sequence.cached_count, sequence.computed_max);
    if (sequence.info.logit_tokens > logits_from && count > 0) {
      // One of the chunk's rows with logits is counted already.
      count = std::min(count, logits_from - sequence.cached_count + logit_rows_spare + 1);
      const int32_t end = sequence.cached_count + count;
      // The newest token's row samples, whether or not it is among those asked for.
      const bool samples_beyond = count == sequence.pending() && end > sequence.info.logit_tokens;
      const int32_t with_logits =
          std::min(end, sequence.info.logit_tokens) - logits_from + (samples_beyond ? 1 : 0);
      logit_rows_spare -= std::max(0, with_logits - 1);
    }
    if (count <= 0) break;
    plan.slices.push_back({id, sequence.cached_count, count, count == sequence.pending()});
    rows_left -= count;
  }
  plan.draft_rows_max = std::min(rows - (prefill_rows - rows_left), logit_rows_spare);
}

}  // namespace updraft
