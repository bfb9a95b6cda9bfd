// Which beginnings of prompts this node holds, as well as can be known from outside the engine: the
// chains of what it has answered, the most recently used first, no more of them than its KV memory
// can hold. Told to the router as changes.
//
// The one idea: what was sent is what counts. A beat may be replaced by a newer one before it has
// left, so a delta starts from the last beat that did leave, not from the last that was made.
//
// Owner: the link's thread.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common/message/node_status.h"

namespace updraft {

class PrefixTracker {
 public:
  explicit PrefixTracker(size_t entries_max = kPrefixesReported) : entries_max_(entries_max) {}

  // The prompt with this chain is in the cache now (prefix_chain.h).
  void note(const std::vector<uint64_t>& chain);
  // No more than so many bytes of prompts can still be there: the least recently used go.
  void shrink_to(int64_t bytes_max);

  // What the next beat says, nothing when there is no change to tell. last_left: the beat with the
  // previous delta has been sent.
  std::optional<PrefixDelta> delta(bool last_left);
  // A new session: the router knows nothing.
  void restart();

  size_t size() const { return entries_.size(); }
  bool holds(uint64_t hash) const { return by_hash_.contains(hash); }

 private:
  struct Entry {
    uint64_t hash = 0;
    int64_t bytes = 0;  // of its block alone
  };
  using List = std::list<Entry>;
  void drop_last();
  // In or out since the router's set: twice is not at all.
  void toggle(uint64_t hash);

  const size_t entries_max_;
  List entries_;  // most recent first; a block before those that go on from it
  std::unordered_map<uint64_t, List::iterator> by_hash_;
  int64_t bytes_ = 0;
  std::unordered_set<uint64_t> changed_;  // against what the router has for sure
  std::vector<uint64_t> on_the_way_;      // changes in the delta that was made last
  uint64_t router_generation_ = 0;        // what the router has for sure; 0: nothing
  uint64_t generation_ = 0;               // of the delta that was made last
};

}  // namespace updraft
