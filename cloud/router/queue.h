// Requests waiting for a node: bounded, four priority classes, inside a class the earlier deadline
// first, then first come first served. It orders; who may leave and when is the core's decision.
//
// Owner: the thread that drives RouterCore.
#pragma once

#include <cstdint>
#include <limits>
#include <set>

#include "common/message/request.h"

namespace updraft {

static_assert(Priority::kSystem < Priority::kInteractive &&
                  Priority::kInteractive < Priority::kDefault &&
                  Priority::kDefault < Priority::kBulk,
              "the queue serves the smaller priority value first");

class WaitQueue {
 public:
  struct Key {
    Priority priority = Priority::kDefault;
    int64_t deadline_ns = std::numeric_limits<int64_t>::max();
    uint64_t order = 0;  // of arrival, unique; kept when a request comes back to the queue
    uint32_t slot = 0;   // in the stream table
    bool operator<(const Key& other) const {
      if (priority != other.priority) return priority < other.priority;
      if (deadline_ns != other.deadline_ns) return deadline_ns < other.deadline_ns;
      return order < other.order;
    }
  };
  explicit WaitQueue(size_t entries_max) : entries_max_(entries_max) {}

  bool full() const { return entries_.size() >= entries_max_; }
  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }
  // A request that is already accepted may come back to a full queue: nothing accepted is lost.
  void insert(const Key& key) { entries_.insert(key); }
  void erase(const Key& key) { entries_.erase(key); }
  // The entry that a more urgent newcomer may push out of a full queue: the last of all. Not empty.
  const Key& last() const { return *entries_.rbegin(); }

  using Iterator = std::set<Key>::const_iterator;
  Iterator begin() const { return entries_.begin(); }
  Iterator end() const { return entries_.end(); }

 private:
  const size_t entries_max_;
  std::set<Key> entries_;
};

}  // namespace updraft
