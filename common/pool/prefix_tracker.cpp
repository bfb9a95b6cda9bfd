// See the header.
#include "common/pool/prefix_tracker.h"

#include "common/message/prefix_chain.h"

namespace updraft {

void PrefixTracker::toggle(uint64_t hash) {
  if (!changed_.insert(hash).second) changed_.erase(hash);
}

void PrefixTracker::drop_last() {
  const Entry& last = entries_.back();
  bytes_ -= last.bytes;
  toggle(last.hash);
  by_hash_.erase(last.hash);
  entries_.pop_back();
}

// From the end on, so that the beginning is the most recent: what everything else goes on from is
// dropped last, as the engine's cache does.
void PrefixTracker::note(const std::vector<uint64_t>& chain) {
  for (size_t i = chain.size(); i-- > 0;) {
    if (const auto at = by_hash_.find(chain[i]); at != by_hash_.end()) {
      entries_.splice(entries_.begin(), entries_, at->second);
      continue;
    }
    const int64_t bytes = prefix_block_end(i) - (i == 0 ? 0 : prefix_block_end(i - 1));
    entries_.push_front({chain[i], bytes});
    by_hash_.emplace(chain[i], entries_.begin());
    bytes_ += bytes;
    toggle(chain[i]);
  }
  while (entries_.size() > entries_max_) drop_last();
}

void PrefixTracker::shrink_to(int64_t bytes_max) {
  while (!entries_.empty() && bytes_ > bytes_max) drop_last();
}

std::optional<PrefixDelta> PrefixTracker::delta(bool last_left) {
  if (last_left && !on_the_way_.empty()) {
    for (const uint64_t hash : on_the_way_) toggle(hash);
    router_generation_ = generation_;
  }
  on_the_way_.clear();
  if (changed_.empty()) return std::nullopt;
  PrefixDelta delta;
  delta.generation = ++generation_;
  delta.since = router_generation_;
  for (const uint64_t hash : changed_) {
    std::vector<uint64_t>& list = by_hash_.contains(hash) ? delta.added : delta.dropped;
    if (list.size() == kPrefixesReported) continue;  // with the next beat
    list.push_back(hash);
    on_the_way_.push_back(hash);
  }
  return delta;
}

void PrefixTracker::restart() {
  router_generation_ = 0;
  on_the_way_.clear();
  changed_.clear();
  for (const Entry& entry : entries_) changed_.insert(entry.hash);
}

}  // namespace updraft
