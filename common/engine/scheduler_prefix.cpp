// How the scheduler shares full pages among sequences: what a sequence can find instead of
// computing it, and how its own full pages become findable.
#include <algorithm>
#include <cstddef>
#include <utility>

#include "common/engine/scheduler.h"

namespace updraft {

bool Scheduler::shares(const Sequence& sequence) const {
  return config_.prefix_cache && sequence.info.ids != nullptr;
}

// Positions from the front that may come from the cache: the newest token is computed, because its
// logits are wanted, and so are the prompt tokens whose logits are wanted and were not given yet.
int32_t Scheduler::findable_count(const Sequence& sequence) const {
  if (!shares(sequence)) return 0;
  int32_t count = std::min(
      {sequence.info.token_count - 1, sequence.known_count(), sequence.info.shared_tokens_max});
  if (sequence.info.logit_tokens > 0) count = std::min(count, sequence.computed_max);
  return count / config_.page_tokens * config_.page_tokens;
}

// The ids of the page that the sequence computes next, when it is at the beginning of one that is
// findable; else nothing.
std::span<const int32_t> Scheduler::next_page_ids(const Sequence& sequence) const {
  const auto page_tokens = config_.page_tokens;
  if (sequence.cached_count % page_tokens != 0 ||
      sequence.cached_count + page_tokens > findable_count(sequence))
    return {};
  return std::span(*sequence.info.ids)
      .subspan(static_cast<size_t>(sequence.cached_count), static_cast<size_t>(page_tokens));
}

// The page that ends where the sequence's next page begins.
int32_t Scheduler::page_before(const Sequence& sequence) const {
  const int32_t index = sequence.cached_count / config_.page_tokens;
  return index == 0 ? kNoPage : sequence.pages[static_cast<size_t>(index) - 1];
}

// Cached pages that hold what the sequence would compute next.
std::vector<int32_t> Scheduler::find_pages(const Sequence& sequence) const {
  if (next_page_ids(sequence).empty()) return {};
  const auto first = static_cast<size_t>(sequence.cached_count);
  const auto end = static_cast<size_t>(findable_count(sequence));
  return pages_.match(page_before(sequence), sequence.info.salt,
                      std::span(*sequence.info.ids).subspan(first, end - first));
}

void Scheduler::use_found(Sequence& sequence, const std::vector<int32_t>& found) {
  for (const int32_t page : found) {
    pages_.retain(page);
    const auto index = static_cast<size_t>(sequence.cached_count / config_.page_tokens);
    if (index < sequence.pages.size()) {
      pages_.release(sequence.pages[index]);
      sequence.pages[index] = page;
    } else {
      sequence.pages.push_back(page);
    }
    sequence.cached_count += config_.page_tokens;
    ++sequence.indexed_pages;
  }
  if (shares(sequence) && sequence.info.logit_tokens == 0 && !std::exchange(sequence.queried, true))
    stats_.queried_tokens += std::min(sequence.info.token_count, sequence.info.shared_tokens_max);
  // What it computed itself before a preemption is not found, it is found again.
  const int32_t spared = std::max(0, sequence.cached_count - sequence.computed_max);
  sequence.computed_max = std::max(sequence.computed_max, sequence.cached_count);
  sequence.found_count += spared;
  stats_.hit_tokens += spared;
}

// The sequence's full pages whose tokens are all known and computed become findable. A page that
// was there already takes the place of the sequence's own.
void Scheduler::index_full_pages(Sequence& sequence) {
  if (!shares(sequence)) return;
  const int32_t known =
      std::min({sequence.cached_count, sequence.known_count(), sequence.info.shared_tokens_max});
  const auto page_tokens = static_cast<size_t>(config_.page_tokens);
  for (; (sequence.indexed_pages + 1) * config_.page_tokens <= known; ++sequence.indexed_pages) {
    const auto index = static_cast<size_t>(sequence.indexed_pages);
    const int32_t parent = index == 0 ? kNoPage : sequence.pages[index - 1];
    sequence.pages[index] =
        pages_.add(sequence.pages[index], parent, sequence.info.salt,
                   std::span(*sequence.info.ids).subspan(index * page_tokens, page_tokens));
  }
}

// Running sequences take what others filled since the last step. Each was admitted with pages of
// its own for all its tokens, so this only gives pages back.
void Scheduler::find_running() {
  for (const auto& [rank, id] : running_) {
    Sequence& sequence = at(id);
    if (sequence.pending() > 1) use_found(sequence, find_pages(sequence));
  }
}

// A better-ranked sequence computes the very page in this step that this one needs next: waiting
// for it is as fast as computing it a second time, and leaves the rows to others. Whoever is waited
// for has rows in the plan, so nobody waits for ever.
bool Scheduler::computed_beside(const Sequence& sequence, const StepPlan& plan) const {
  const std::span<const int32_t> ids = next_page_ids(sequence);
  if (ids.empty()) return false;
  const int32_t index = sequence.cached_count / config_.page_tokens;
  const int32_t end = sequence.cached_count + config_.page_tokens;
  return std::any_of(plan.slices.begin(), plan.slices.end(), [&](const StepSlice& slice) {
    const Sequence& other = at(slice.id);
    return shares(other) && other.cached_count / config_.page_tokens == index &&
           other.known_count() >= end && page_before(other) == page_before(sequence) &&
           other.info.salt == sequence.info.salt &&
           std::equal(ids.begin(), ids.end(), other.info.ids->begin() + sequence.cached_count);
  });
}

PrefixCacheStats Scheduler::prefix_stats() const {
  PrefixCacheStats stats = stats_;
  stats.evicted_pages = pages_.evictions();
  return stats;
}

}  // namespace updraft
