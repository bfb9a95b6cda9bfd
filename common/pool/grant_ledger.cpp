// See the header.
#include "common/pool/grant_ledger.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/base/plant.h"

namespace updraft {
namespace {

constexpr double kHalfLifeNs = 2e9;
constexpr double kUseWeight = 4.0;   // of a slot in use, against 1 for being there at all
constexpr int64_t kLoanRestMax = 4;  // in times that a promise lasts

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

void GrantLedger::set_memory(MemoryLevel level) {
  const std::lock_guard lock(mutex_);
  memory_ = level;
}

MemoryLevel GrantLedger::memory() const {
  const std::lock_guard lock(mutex_);
  return memory_;
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
  if (!taken && grants_more()) {
    int32_t promised = 0;
    for (const auto& [other, entry] : links_) promised += outstanding(entry, now_ns);
    taken = pool_slots() - held() - promised >= slots;
  }
  link.arrived += slots;
  if (!taken) return false;
  if (slots >= link.wanted_slots) link.wanted_slots = 0;
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

void GrantLedger::want(LinkId id, int32_t slots, int64_t kv_tokens, int64_t now_ns) {
  const std::lock_guard lock(mutex_);
  const auto at = links_.find(id);
  if (at == links_.end() || UPDRAFT_PLANT(kNeverLends)) return;
  at->second.wanted_slots = std::max(0, slots);
  at->second.wanted_kv_tokens = std::max<int64_t>(0, kv_tokens);
  at->second.wanted_until_ns = now_ns + promise_ns();
}

// A loan ends with the wish; the next one begins after a rest, with the next router in turn.
void GrantLedger::follow_loans(int64_t now_ns) {
  if (borrower_ != 0) {
    const auto at = links_.find(borrower_);
    if (at != links_.end() && at->second.wants(now_ns)) return;
    last_borrower_ = std::exchange(borrower_, 0);
    no_loan_until_ns_ =
        now_ns + std::clamp(now_ns - lent_since_ns_, promise_ns(), kLoanRestMax * promise_ns());
  }
  if (now_ns < no_loan_until_ns_ || links_.size() < 2) return;
  auto at = links_.upper_bound(last_borrower_);
  for (size_t i = 0; i < links_.size(); ++i, ++at) {
    if (at == links_.end()) at = links_.begin();
    if (!at->second.wants(now_ns)) continue;
    borrower_ = at->first;
    lent_since_ns_ = now_ns;
    return;
  }
}

double GrantLedger::weight(const Link& link, int64_t now_ns) const {
  return 1.0 + kUseWeight * (link.held + halved(link.recent, now_ns - link.recent_ns));
}

// Turns last longer than grants, so that whose turn is over has let go before the next one's ends.
bool GrantLedger::in_turn(LinkId id, int64_t now_ns) const {
  const int64_t turn = now_ns / (2 * promise_ns());
  const auto index = std::distance(links_.begin(), links_.find(id));
  return turn % static_cast<int64_t>(links_.size()) == index;
}

// Of all slots that the pool may use, those of this router, held ones included. The shares of all
// routers add up to the whole.
int32_t GrantLedger::share(LinkId id, int64_t now_ns) const {
  const int32_t slots = pool_slots();
  if (borrower_ == 0) return part(id, slots, 0, now_ns);
  const int32_t lent = std::max(part(borrower_, slots, 0, now_ns),
                                std::min(slots, links_.at(borrower_).wanted_slots));
  return id == borrower_ ? lent : part(id, slots - lent, borrower_, now_ns);
}

// Of so many slots, those of this router, divided between all but one. Each part is the difference
// of two rounded sums, and the order in which they are summed goes round, so that what does not
// divide is everybody's in turn.
int32_t GrantLedger::part(LinkId id, int32_t slots, LinkId but, int64_t now_ns) const {
  const auto count = static_cast<int32_t>(links_.size() - links_.count(but));
  const int32_t each = slots >= count ? 1 : 0;
  const int32_t rest = slots - each * count;
  double sum = 0.0;
  for (const auto& [other, link] : links_) sum += other == but ? 0.0 : weight(link, now_ns);
  auto at = links_.begin();
  while (at != links_.end() && !in_turn(at->first, now_ns)) ++at;
  double before = 0.0;
  int32_t given = 0;
  for (size_t i = 0; i < links_.size(); ++i, ++at) {
    if (at == links_.end()) at = links_.begin();
    if (at->first == but) continue;
    const double after = before + weight(at->second, now_ns);
    // Rounded up, so that the first in turn has what does not divide.
    const auto low = static_cast<int32_t>(std::ceil(rest * (before / sum) - 1e-9));
    const auto high =
        ++given == count ? rest : static_cast<int32_t>(std::ceil(rest * (after / sum) - 1e-9));
    if (at->first == id) return each + std::max(0, high - low);
    before = after;
  }
  return 0;
}

// The memory that goes with so many slots.
int64_t GrantLedger::granted_kv(LinkId id, int32_t count, int64_t now_ns) const {
  const int32_t slots_free = std::max(1, pool_slots() - held());
  if (count == slots_free && borrower_ == 0) return kv_tokens_free_;
  int64_t promised_others = 0;
  for (const auto& [other, link] : links_)
    promised_others += other == id ? 0 : outstanding_kv(link, now_ns);
  int64_t open = kv_tokens_free_ - promised_others;
  if (id == borrower_) return std::max<int64_t>(0, open);
  if (borrower_ != 0) open -= links_.at(borrower_).wanted_kv_tokens;
  const double fraction = static_cast<double>(count) / slots_free;
  const auto kv_share = static_cast<int64_t>(static_cast<double>(kv_tokens_free_) * fraction);
  return std::clamp<int64_t>(open, 0, std::max<int64_t>(0, kv_share));
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
  follow_loans(now_ns);
  int32_t promised_others = 0;
  for (const auto& [other, entry] : links_)
    promised_others += other == id ? 0 : outstanding(entry, now_ns);
  const int32_t free = pool_slots() - held() - promised_others;
  const int32_t mine = share(id, now_ns) - link.held;
  credit.count = grants_more() ? std::clamp(std::min(free, mine), 0, std::max(0, slots_total_)) : 0;
  credit.kv_tokens = granted_kv(id, credit.count, now_ns);
  std::erase_if(link.promises, [&](const Promise& p) { return p.expires_ns <= now_ns; });
  const int64_t limit = link.arrived + credit.count;
  while (!link.promises.empty() && link.promises.back().limit <= limit) link.promises.pop_back();
  link.promises.push_back({limit, credit.kv_tokens, now_ns + promise_ns()});
  return credit;
}

}  // namespace updraft
