// What a node grants to its routers: how many sequences each may still send. One ledger per node,
// shared by its links.
//
// The one idea: a grant is a window, as in TCP. The node counts the slots of every Submit that has
// arrived from a router (`first`) and says how many more it will take (`count`), so that it does
// not matter what was under way when it said so. A slot inside one router's unexpired window is
// never inside another's; a window that shrinks counts in full until its older promise has expired.
//
// How the slots are divided: one for each router while there are enough, the rest by who uses
// theirs (those held now and those taken in the last seconds); what does not divide goes round.
//
// A request that needs more than its router's part at once would wait for ever while the others
// keep theirs. So a router says what it wants, and the node lends it that: as long as it says so
// the others share what is left, until enough is free and taken. One borrower at a time, in turn;
// between two loans everybody has the ordinary part again, for as long as the loan took.
//
// Threads: any; one mutex inside. Time comes in as now_ns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>

#include "common/base/clock.h"
#include "common/base/memory_level.h"
#include "common/message/node_status.h"

namespace updraft {

// Grants outlive some lost beats: a router may count on one for so many beat intervals.
inline constexpr int32_t kGrantBeats = 6;

class GrantLedger {
 public:
  using LinkId = uint64_t;  // one session of one link; 0 is none

  // ttl_ms: how long the router may count on a grant. The node itself keeps it for kSlackMs longer,
  // the time that the grant and a Submit may be on their way.
  explicit GrantLedger(int32_t ttl_ms) : ttl_ms_(std::clamp(ttl_ms, 1, kTtlMsMax)) {}

  // A session with a router begins or ends. Nothing is granted to it any more after leave().
  LinkId join(int64_t now_ns);
  void leave(LinkId link);

  // What the node has, as its service reports it: slots in all, sequences in them or waiting for
  // one (whoever sent them), KV tokens that are free.
  void report(int32_t slots_total, int32_t sequences, int64_t kv_tokens_free);
  // Loading or draining: grants are empty.
  void set_taking(bool taking);
  // Memory is short: grants are empty, because a grant does not say for whom it is and a router
  // that has none elsewhere keeps its classes in order while they wait. What was granted before is
  // still taken; at kRefuse the link bounces it.
  void set_memory(MemoryLevel level);
  MemoryLevel memory() const;

  // A Submit for `slots` has arrived. True: it is within a grant, or there is room that no router
  // was promised; its slots are held until give(). False: it must be bounced.
  bool take(LinkId link, int32_t slots, int64_t now_ns);
  // Its work has ended, or never began.
  void give(LinkId link, int32_t slots);
  // A request waits at this router that needs so much at once. Counts for as long as a grant does,
  // unless it is said again; ends with a Submit that takes as many slots.
  void want(LinkId link, int32_t slots, int64_t kv_tokens, int64_t now_ns);

  // The window for this router from now on. `epoch` grows with each grant of the node, so that the
  // newest is known whatever overtakes what.
  Credit grant(LinkId link, int64_t now_ns);

  // Slots promised to this session and not yet used.
  int32_t outstanding(LinkId link, int64_t now_ns) const;

  static constexpr int32_t kSlackMs = 250;
  static constexpr int32_t kTtlMsMax = 60'000;

 private:
  struct Promise {
    int64_t limit = 0;  // of `arrived`
    int64_t kv_tokens = 0;
    int64_t expires_ns = 0;
  };
  struct Link {
    int64_t arrived = 0;  // slots of all Submits so far
    int32_t held = 0;
    double recent = 0.0;  // slots taken of late, halved every kHalfLifeNs
    int64_t recent_ns = 0;
    std::deque<Promise> promises;  // limits descending, expiries ascending
    int32_t wanted_slots = 0;      // at once, until wanted_until_ns
    int64_t wanted_kv_tokens = 0;
    int64_t wanted_until_ns = 0;
    bool wants(int64_t now_ns) const { return wanted_slots > 0 && now_ns < wanted_until_ns; }
  };

  int32_t outstanding(const Link& link, int64_t now_ns) const;
  int64_t outstanding_kv(const Link& link, int64_t now_ns) const;
  int32_t held() const;
  int32_t pool_slots() const;  // of all slots, those that local clients do not use
  int32_t share(LinkId link, int64_t now_ns) const;
  int32_t part(LinkId link, int32_t slots, LinkId but, int64_t now_ns) const;
  int64_t granted_kv(LinkId link, int32_t count, int64_t now_ns) const;
  void follow_loans(int64_t now_ns);
  int64_t promise_ns() const { return (int64_t{ttl_ms_} + kSlackMs) * kNsPerMs; }
  double weight(const Link& link, int64_t now_ns) const;
  bool in_turn(LinkId link, int64_t now_ns) const;
  bool grants_more() const { return taking_ && memory_ == MemoryLevel::kNormal; }

  const int32_t ttl_ms_;
  mutable std::mutex mutex_;  // guards what follows
  std::map<LinkId, Link> links_;
  LinkId last_id_ = 0;
  uint64_t last_epoch_ = 0;
  bool taking_ = false;
  MemoryLevel memory_ = MemoryLevel::kNormal;
  int32_t slots_total_ = 0;
  int32_t sequences_ = 0;
  int64_t kv_tokens_free_ = 0;
  LinkId borrower_ = 0;  // 0: nobody
  LinkId last_borrower_ = 0;
  int64_t lent_since_ns_ = 0;
  int64_t no_loan_until_ns_ = 0;
};

}  // namespace updraft
