// See the header. Deficit round robin: M. Shreedhar and G. Varghese, "Efficient Fair Queueing Using
// Deficit Round-Robin", 1996.
#include "cloud/router/queue.h"

#include <algorithm>

#include "common/base/check.h"

namespace updraft {

void WaitQueue::insert(const Key& key, const std::string& tenant, int64_t cost_tokens) {
  Class& group = classes_[static_cast<size_t>(key.priority)];
  auto at = group.by_name.find(tenant);
  if (at == group.by_name.end()) {
    // Last in the round: just before whose turn it is.
    const auto place = group.turn == group.ring.end() || group.turn == group.ring.begin()
                           ? group.ring.end()
                           : group.turn;
    const auto made = group.ring.insert(place, Tenant{tenant, {}, 0});
    if (group.turn == group.ring.end()) group.turn = made;
    at = group.by_name.emplace(tenant, made).first;
  }
  const bool is_new = at->second->entries.emplace(key, std::max<int64_t>(1, cost_tokens)).second;
  UPDRAFT_CHECK(is_new, "a request waits once");
  ++size_;
}

void WaitQueue::erase(const Key& key, const std::string& tenant) {
  Class& group = classes_[static_cast<size_t>(key.priority)];
  const auto at = group.by_name.find(tenant);
  UPDRAFT_CHECK(at != group.by_name.end() && at->second->entries.erase(key) == 1,
                "what leaves the queue was in it");
  --size_;
  if (at->second->entries.empty()) remove(group, at->second);
}

// A tenant with nothing waiting keeps no claim.
void WaitQueue::remove(Class& group, Ring::iterator tenant) {
  if (group.turn == tenant) {
    group.in_turn = false;
    if (++group.turn == group.ring.end()) group.turn = group.ring.begin();
  }
  group.by_name.erase(tenant->name);
  const bool last = group.ring.size() == 1;
  group.ring.erase(tenant);
  if (last) group.turn = group.ring.end();
}

std::optional<WaitQueue::Key> WaitQueue::gives_way(Priority priority,
                                                   const std::string& tenant) const {
  for (size_t i = classes_.size(); i-- > 0;) {
    const Class& group = classes_[i];
    if (group.ring.empty()) continue;
    const auto most = std::max_element(
        group.ring.begin(), group.ring.end(),
        [](const Tenant& a, const Tenant& b) { return a.entries.size() < b.entries.size(); });
    const auto own = group.by_name.find(tenant);
    const size_t own_count = own == group.by_name.end() ? 0 : own->second->entries.size();
    const bool urgent = static_cast<size_t>(priority) < i;
    const bool fairer = static_cast<size_t>(priority) == i && most->entries.size() > own_count + 1;
    if (!urgent && !fairer) return std::nullopt;
    return most->entries.rbegin()->first;
  }
  return std::nullopt;
}

// --- serving ---

void WaitQueue::Walk::open() {
  open_ = true;
  lanes_.clear();
  Class& group = queue_.classes_[class_];
  if (group.ring.empty()) return;
  auto tenant = group.turn;
  do {
    lanes_.push_back({tenant, tenant->entries.begin()});
    if (++tenant == group.ring.end()) tenant = group.ring.begin();
  } while (tenant != group.turn);
  first_in_turn_ = group.in_turn;
}

// Rounds are not played through one by one: each tenant's turn in which it can afford its next
// request is computed, and the earliest of these comes next.
const WaitQueue::Key* WaitQueue::Walk::next() {
  for (;; ++class_, open_ = false) {
    if (class_ == queue_.classes_.size()) return nullptr;
    if (!open_) open();
    if (lanes_.empty()) continue;
    const auto count = static_cast<int64_t>(lanes_.size());
    for (size_t i = 0; i < lanes_.size(); ++i) {
      const int64_t lacking = lanes_[i].at->second - lanes_[i].tenant->deficit_tokens;
      const int64_t needed = lacking <= 0 ? 0 : (lacking + kQuantumTokens - 1) / kQuantumTokens;
      Turn turn;
      if (i == 0 && first_in_turn_) {
        turn = {needed * count, needed};
      } else {
        turn.quanta = std::max<int64_t>(1, needed);
        turn.at = static_cast<int64_t>(i) + (first_in_turn_ ? 0 : 1) + (turn.quanta - 1) * count;
      }
      if (i == 0 || turn.at < picked_turn_.at) {
        picked_ = i;
        picked_turn_ = turn;
      }
    }
    return &lanes_[picked_].at->first;
  }
}

void WaitQueue::Walk::skip() {
  Lane& lane = lanes_[picked_];
  if (++lane.at != lane.tenant->entries.end()) return;
  if (picked_ == 0) first_in_turn_ = false;
  lanes_.erase(lanes_.begin() + static_cast<ptrdiff_t>(picked_));
}

void WaitQueue::Walk::take() {
  Class& group = queue_.classes_[class_];
  const auto count = static_cast<int64_t>(lanes_.size());
  for (size_t i = 0; i < lanes_.size(); ++i) {
    if (i == picked_) continue;
    // Those that had their turn on the way and could not afford anything in it.
    const int64_t first =
        i == 0 && first_in_turn_ ? count : static_cast<int64_t>(i) + (first_in_turn_ ? 0 : 1);
    const int64_t turns = picked_turn_.at < first ? 0 : (picked_turn_.at - first) / count + 1;
    lanes_[i].tenant->deficit_tokens += turns * kQuantumTokens;
  }
  Lane& lane = lanes_[picked_];
  lane.tenant->deficit_tokens += picked_turn_.quanta * kQuantumTokens - lane.at->second;
  group.turn = lane.tenant;
  group.in_turn = first_in_turn_ = true;
  std::rotate(lanes_.begin(), lanes_.begin() + static_cast<ptrdiff_t>(picked_), lanes_.end());
  picked_ = 0;
  Lane& first = lanes_.front();
  first.at = first.tenant->entries.erase(first.at);
  --queue_.size_;
  if (first.at != first.tenant->entries.end()) return;
  first_in_turn_ = false;
  if (first.tenant->entries.empty()) queue_.remove(group, first.tenant);
  lanes_.erase(lanes_.begin());
}

}  // namespace updraft
