// See the header.
#include "common/pool/grant_ledger.h"

#include <algorithm>
#include <cmath>

#include "common/base/clock.h"

namespace updraft {
namespace {

constexpr double kHalfLifeNs = 2e9;
constexpr double kUseWeight = 4.0;  // of a slot in use, against 1 for being there at all

double halved(double value, int64_t age_ns) {
  return value * std::exp2(-static_cast<double>(age_ns) / kHalfLifeNs);
}

}  // namespace

GrantLedger::LinkId GrantLedger::join(int64_t now_ns) {
  const std::lock_guard lock(mutex_);
  links_[++last_id_].recent_ns = now_ns;
  return last_id_;
}

void GrantLedger::leave(LinkId link) {
  const std::lock_guard lock(mutex_);
  links_.erase(link);
}

void GrantLedger::report(int32_t slots_total, int32_t sequences, int64_t kv_tokens_free) {
  const std::lock_guard lock(mutex_);
  slots_total_ = slots_total;
  sequences_ = sequences;
  kv_tokens_free_ = kv_tokens_free;
}

void GrantLedger::set_taking(bool taking) {
  const std::lock_guard lock(mutex_);
  taking_ = taking;
}

int32_t GrantLedger::held() const {
  int32_t slots = 0;
  for (const auto& [id, link] : links_) slots += link.held;
  return slots;
}

int32_t GrantLedger::pool_slots() const {
  const int32_t local = std::max(0, sequences_ - held());
  return std::max(0, slots_total_ - local);
}

int32_t GrantLedger::outstanding(const Link& link, int64_t now_ns) const {
  for (const Promise& promise : link.promises) {
    if (now_ns < promise.expires_ns)
      return static_cast<int32_t>(std::max<int64_t>(0, promise.limit - link.arrived));
  }
  return 0;
}

int64_t GrantLedger::outstanding_kv(const Link& link, int64_t now_ns) const {
  for (const Promise& promise : link.promises) {
    if (now_ns < promise.expires_ns) return promise.limit > link.arrived ? promise.kv_tokens : 0;
  }
  return 0;
}

int32_t GrantLedger::outstanding(LinkId id, int64_t now_ns) const {
  const std::lock_guard lock(mutex_);
  const auto at = links_.find(id);
  return at == links_.end() ? 0 : outstanding(at->second, now_ns);
}

bool GrantLedger::take(LinkId id, int32_t slots, int64_t now_ns) {
  const std::lock_guard lock(mutex_);
  const auto at = links_.find(id);
  if (at == links_.end()) return false;
  Link& link = at->second;
  bool taken = outstanding(link, now_ns) >= slots;
  if (!taken && taking_) {
    int32_t promised = 0;
    for (const auto& [other, entry] : links_) promised += outstanding(entry, now_ns);
    taken = pool_slots() - held() - promised >= slots;
  }
  link.arrived += slots;
  if (!taken) return false;
  link.held += slots;
  link.recent = halved(link.recent, now_ns - link.recent_ns) + slots;
  link.recent_ns = now_ns;
  return true;
}

void GrantLedger::give(LinkId id, int32_t slots) {
  const std::lock_guard lock(mutex_);
  const auto at = links_.find(id);
  if (at == links_.end()) return;
  at->second.held = std::max(0, at->second.held - slots);
  // The last report still counts it.
  sequences_ = std::max(0, sequences_ - slots);
}

double GrantLedger::weight(const Link& link, int64_t now_ns) const {
  return 1.0 + kUseWeight * (link.held + halved(link.recent, now_ns - link.recent_ns));
}

// Turns last longer than grants, so that whose turn is over has let go before the next one's ends.
bool GrantLedger::in_turn(LinkId id, int64_t now_ns) const {
  const int64_t turn = now_ns / (2 * (ttl_ms_ + kSlackMs) * kNsPerMs);
  const auto index = std::distance(links_.begin(), links_.find(id));
  return turn % static_cast<int64_t>(links_.size()) == index;
}

// Of all slots that the pool may use, those of this router, held ones included. The shares of all
// routers add up to the whole: each is the difference of two rounded sums, and the order in which
// they are summed goes round, so that what does not divide is everybody's in turn.
int32_t GrantLedger::share(LinkId id, int64_t now_ns) const {
  const int32_t slots = pool_slots();
  const auto count = static_cast<int32_t>(links_.size());
  const int32_t each = slots >= count ? 1 : 0;
  const int32_t rest = slots - each * count;
  double sum = 0.0;
  for (const auto& [other, link] : links_) sum += weight(link, now_ns);
  auto at = links_.begin();
  while (at != links_.end() && !in_turn(at->first, now_ns)) ++at;
  double before = 0.0;
  for (int32_t i = 0; i < count; ++i) {
    const double after = before + weight(at->second, now_ns);
    // Rounded up, so that the first in turn has what does not divide.
    const auto low = static_cast<int32_t>(std::ceil(rest * (before / sum) - 1e-9));
    const auto high =
        i + 1 == count ? rest : static_cast<int32_t>(std::ceil(rest * (after / sum) - 1e-9));
    if (at->first == id) return each + std::max(0, high - low);
    before = after;
    if (++at == links_.end()) at = links_.begin();
  }
  return 0;
}

Credit GrantLedger::grant(LinkId id, int64_t now_ns) {
  const std::lock_guard lock(mutex_);
  Credit credit;
  credit.ttl_ms = ttl_ms_;
  const auto at = links_.find(id);
  if (at == links_.end()) return credit;
  Link& link = at->second;
  credit.epoch = ++last_epoch_;
  credit.first = static_cast<uint64_t>(link.arrived);
  int32_t promised_others = 0;
  int64_t kv_promised_others = 0;
  for (const auto& [other, entry] : links_) {
    if (other == id) continue;
    promised_others += outstanding(entry, now_ns);
    kv_promised_others += outstanding_kv(entry, now_ns);
  }
  const int32_t free = pool_slots() - held() - promised_others;
  const int32_t mine = share(id, now_ns) - link.held;
  credit.count = taking_ ? std::clamp(std::min(free, mine), 0, std::max(0, slots_total_)) : 0;
  const int32_t slots_free = std::max(1, pool_slots() - held());
  const bool idle = held() == 0 && sequences_ == 0;
  if (credit.count == slots_free || (idle && in_turn(id, now_ns))) {
    // An idle node can hold one request as large as its whole memory, whoever sends it.
    credit.kv_tokens = kv_tokens_free_;
  } else {
    const double part = static_cast<double>(credit.count) / slots_free;
    const auto kv_share = static_cast<int64_t>(static_cast<double>(kv_tokens_free_) * part);
    credit.kv_tokens = std::clamp<int64_t>(kv_tokens_free_ - kv_promised_others, 0,
                                           std::max<int64_t>(0, kv_share));
  }
  std::erase_if(link.promises, [&](const Promise& p) { return p.expires_ns <= now_ns; });
  const int64_t limit = link.arrived + credit.count;
  while (!link.promises.empty() && link.promises.back().limit <= limit) link.promises.pop_back();
  link.promises.push_back(
      {limit, credit.kv_tokens, now_ns + (int64_t{ttl_ms_} + kSlackMs) * kNsPerMs});
  return credit;
}

}  // namespace updraft
