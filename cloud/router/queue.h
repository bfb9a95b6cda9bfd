// Requests waiting for a node: bounded; four priority classes, the more urgent always first; inside
// a class the tenants take turns, and inside a tenant the earlier deadline comes first, then who
// came first. It orders; who may leave and when is the core's decision.
//
// The one idea: deficit round robin. In its turn a tenant may spend kQuantumTokens more than it has
// left over from before; a request costs the tokens it may fill. So every tenant that waits gets
// the same share of tokens, whether it asks for much or little at a time, and however much it has
// waiting.
//
// Owner: the thread that drives RouterCore.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/message/request.h"

namespace updraft {

static_assert(Priority::kSystem < Priority::kInteractive &&
                  Priority::kInteractive < Priority::kDefault &&
                  Priority::kDefault < Priority::kBulk,
              "the queue serves the smaller priority value first");

class WaitQueue {
 public:
  // Small, so that a turn of many small requests holds nobody up: turns are computed, not played,
  // and a large request that waits for a hundred of them costs no more than one.
  static constexpr int64_t kQuantumTokens = 64;

  struct Key {
    Priority priority = Priority::kDefault;
    int64_t deadline_ns = std::numeric_limits<int64_t>::max();
    uint64_t order = 0;  // of arrival, unique; kept when a request comes back to the queue
    uint32_t slot = 0;   // in the stream table
    // Of one tenant in one class.
    bool operator<(const Key& other) const {
      return deadline_ns != other.deadline_ns ? deadline_ns < other.deadline_ns
                                              : order < other.order;
    }
  };
  explicit WaitQueue(size_t entries_max) : entries_max_(entries_max) {}

  bool full() const { return size_ >= entries_max_; }
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  // A request that is already accepted may come back to a full queue: nothing accepted is lost.
  void insert(const Key& key, const std::string& tenant, int64_t cost_tokens);
  // The entry must be there.
  void erase(const Key& key, const std::string& tenant);

  // Of a full queue, who gives way for a newcomer: the last entry of the least urgent class's
  // tenant that has most waiting there. Nothing when the newcomer has no better claim: its class is
  // not more urgent, and its tenant has as much waiting in it.
  std::optional<Key> gives_way(Priority priority, const std::string& tenant) const;

  // Whether `is` holds for an entry that a newcomer must not overtake: those of more urgent
  // classes, of other tenants in its class, and its own tenant's before it.
  template <typename Is>
  bool any_ahead(const Key& key, const std::string& tenant, Is is) const;

  // The entries in the order in which they are to be served. Nothing else may change the queue
  // meanwhile.
  class Walk {
   public:
    explicit Walk(WaitQueue& queue) : queue_(queue) {}
    // The next one, or null. Either skip() or take() follows.
    const Key* next();
    void skip();
    // It leaves the queue, at its tenant's cost.
    void take();

   private:
    friend class WaitQueue;
    struct Lane;
    struct Turn {
      int64_t at = 0;  // which visit of the round it is, over all tenants
      int64_t quanta = 0;
    };
    void open();

    WaitQueue& queue_;
    size_t class_ = 0;
    bool open_ = false;
    std::vector<Lane> lanes_;     // tenants of this class that have entries left, in turn
    bool first_in_turn_ = false;  // lanes_[0] is still in its turn
    size_t picked_ = 0;
    Turn picked_turn_;
  };

 private:
  struct Tenant {
    std::string name;
    std::map<Key, int64_t> entries;  // and what each costs
    int64_t deficit_tokens = 0;      // what it may spend in its turn
  };
  using Ring = std::list<Tenant>;
  struct Class {
    Ring ring;
    Ring::iterator turn = ring.end();  // whose turn it is or is next
    bool in_turn = false;              // it has had its quantum
    std::unordered_map<std::string, Ring::iterator> by_name;
  };
  void remove(Class& group, Ring::iterator tenant);

  const size_t entries_max_;
  size_t size_ = 0;
  std::array<Class, 4> classes_;
};

struct WaitQueue::Walk::Lane {
  Ring::iterator tenant;
  std::map<Key, int64_t>::iterator at;
};

template <typename Is>
bool WaitQueue::any_ahead(const Key& key, const std::string& tenant, Is is) const {
  for (size_t i = 0; i <= static_cast<size_t>(key.priority); ++i) {
    const bool own_class = i == static_cast<size_t>(key.priority);
    for (const Tenant& other : classes_[i].ring) {
      const bool own = own_class && other.name == tenant;
      for (const auto& [waiting, cost] : other.entries) {
        if (own && !(waiting < key)) break;
        if (is(waiting)) return true;
      }
    }
  }
  return false;
}

}  // namespace updraft
