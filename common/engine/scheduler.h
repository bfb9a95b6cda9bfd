// The scheduler: which tokens of which sequences run in the next step, and which pages they use.
// Owned by the engine thread; pure: sequences and now_ns in, a plan out, no clock, thread or device
// inside.
//
// One order rules everything: the rank. A sequence's rank is its time of arrival plus a delay for
// its priority class, so a lower class yields to what arrives within its delay and yet never
// starves. Better-ranked sequences get tokens and pages first; when pages run out the worst-ranked
// running one gives its pages back and is computed again later, or, where that is cheaper and there
// is room in the swap space, brought back from there. The best-ranked one is never asked to, and
// the pool holds at least one whole context, so it always finishes: no deadlock.
//
// A paused sequence gets no tokens and ranks behind all others until it is resumed: it keeps its
// pages and its slot as long as nobody else needs them.
//
// A device that samples by itself runs ahead of the host: a step is planned while the tokens of the
// one before it are not read yet. Such a token is appended unread. It counts like any other (its
// row can be planned, its page is taken) but for four rules:
// - no page is indexed by it: the host does not know its id;
// - a sequence that waits (was preempted) is not admitted before it is read;
// - one whose last allowed token is unread has no more rows: it is about to be over;
// - a sequence may end with a token, or be cancelled, while a step runs that has a row for what
//   follows. Its pages are free at once nevertheless: whatever is written to them next is written
//   by a later step, and the device runs steps in their order.
//
// Full pages are shared (prefix_cache.h): what a sequence finds computed it takes, and every page
// that it fills can be found by the next. Pages that are shared are full, so nobody writes them.
#pragma once

#include <compare>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/engine/engine.h"
#include "common/engine/pages.h"
#include "common/engine/prefix_cache.h"
#include "common/message/request.h"

namespace updraft {

// How long a class waits for each better class (system, interactive, default, bulk): a bulk
// sequence is overtaken by whatever interactive one arrives within two minutes after it, and by
// none later.
inline constexpr int64_t kClassDelayNs = 60'000'000'000;

struct SchedulerConfig {
  int32_t slots = 1;  // sequences running at once
  int32_t page_count = 1;
  int32_t page_tokens = 16;     // positions per page
  int32_t step_tokens_max = 1;  // rows of one step
  int32_t logit_rows_max = 1;   // rows with logits in one step, >= slots
  int32_t swap_slots = 0;       // pages of the swap space
  bool prefix_cache = true;     // full pages are kept and found again
  PrefixHash prefix_hash = hash_prefix;
};

// What the scheduler needs to know of a sequence.
struct ScheduledSequence {
  uint64_t id = 0;
  int32_t token_count = 0;  // prompt, > 0
  int32_t token_limit = 0;  // prompt and answer at most; its pages fit the pool
  Priority priority = Priority::kDefault;
  int64_t deadline_ns = 0;  // 0: none
  // Logits are wanted for each of the first `logit_tokens` positions (prompt log-probabilities),
  // not just at the end. Only once: positions computed again after a preemption need none.
  int32_t logit_tokens = 0;
  // The ids themselves, the caller's, alive as long as the sequence: at least those that were read
  // of token_count whenever the scheduler is called. Null: the sequence shares no pages.
  const std::vector<int32_t>* ids = nullptr;
  std::string salt;  // pages are shared among sequences of one salt
  // Pages that reach beyond this position are the sequence's own: from there on the ids do not tell
  // what its input is.
  int32_t shared_tokens_max = std::numeric_limits<int32_t>::max();
};

// Positions [first, first + count) of one sequence. The KV memory holds [0, first) already.
struct StepSlice {
  uint64_t id = 0;
  int32_t first = 0;
  int32_t count = 0;
  bool samples = false;  // reaches the newest token: its last row's logits give the next one
  // The last `drafts` rows hold guesses of the tokens after the newest one: each of them and the
  // row before them gives a token, as long as the guesses turn out right.
  int32_t drafts = 0;
  friend bool operator==(const StepSlice&, const StepSlice&) = default;
};

struct StepPlan {
  std::vector<StepSlice> slices;    // at most one per sequence
  std::vector<uint64_t> preempted;  // gave their pages back; they wait and will be computed again
  // Moves of pages between KV memory and the swap space, to be made in this order before the step
  // and behind all that was started before.
  struct Swap {
    bool out = false;  // to the slot, else from it
    int32_t page = 0;
    int32_t slot = 0;
    friend bool operator==(const Swap&, const Swap&) = default;
  };
  std::vector<Swap> swaps;
  struct Ended {
    uint64_t id = 0;
    SequenceEnd end = SequenceEnd::kCancelled;
    int32_t found_count = 0;
  };
  std::vector<Ended> ended;    // cancelled or past their deadline: gone, pages freed
  int32_t draft_rows_max = 0;  // rows with logits that the step still has room for
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config);

  // A new sequence, waiting from now on. Its id is not in use.
  void add(const ScheduledSequence& sequence, int64_t now_ns);
  // Ends at the next plan(). Unknown ids are ignored: the sequence may have ended by itself.
  void cancel(uint64_t id);

  // From the next plan() on it gets no slice, until resume(). It may still be cancelled and reach
  // its deadline. Unknown ids, and what is paused or resumed already, are ignored.
  void pause(uint64_t id);
  void resume(uint64_t id);

  // What moving a page (one way) and computing a position take, as measured; 0: not known. A
  // sequence that gives way is swapped when there and back is less than computing it again, or not
  // known to be more.
  void set_swap_costs(double page_ns, double position_ns);

  // The next step. At least one slice as long as a sequence is left that is not paused and has no
  // unread token.
  // prefill_tokens_max > 0: at most this many rows of sequences that are not decoding, so that a
  // long prompt does not stall the others' next tokens.
  // plan: overwritten; one that is used again saves its allocations.
  void plan(int64_t now_ns, int32_t prefill_tokens_max, StepPlan& plan);
  StepPlan plan(int64_t now_ns, int32_t prefill_tokens_max);
  // Lets up to `wanted` drafts follow the newest token of a slice that decodes; called before the
  // plan runs, at most once per slice. Gives fewer, or none, at the end of the step's rows, of the
  // sequence's limit or of the free pages: nobody gives up a page for a guess.
  int32_t add_drafts(StepPlan& plan, StepSlice& slice, int32_t wanted);
  // The plan's slices have run, or will before any later step does: their positions, but for the
  // drafts', are in KV memory.
  void commit(const StepPlan& plan);
  // Tokens were sampled for a sequence whose slice said `samples`, after commit(): one, and one
  // more for each draft that was right. All but the last stand in KV memory as drafts; pages that
  // only wrong drafts needed are free again.
  void append(uint64_t id, int32_t count = 1);
  // One token was sampled in the same way, and the host has not read it: its id is none of `ids`
  // yet.
  void append_unread(uint64_t id);
  // The oldest unread token of the sequence was read: it stands in its ids.
  void read(uint64_t id);
  // The sequence is over: pages freed, id forgotten. Its unread tokens are no part of it.
  // drafts: of its last step, that were right before the token that ended it: they stand in KV
  // memory (and in its ids) and can be found by others like all that was appended.
  void finish(uint64_t id, int32_t drafts = 0);

  int32_t swap_slots_free() const { return swap_slots_ ? swap_slots_->free_count() : 0; }
  // Slots that a waiting sequence holds.
  int32_t swapped_pages(uint64_t id) const {
    return static_cast<int32_t>(at(id).swap_slots.size());
  }

  // Pages of a running sequence, in order of position.
  std::span<const int32_t> pages(uint64_t id) const;

  bool idle() const { return sequences_.empty(); }
  // Nothing but paused sequences is left, none of them cancelled: a plan would be empty until
  // somebody calls, or a deadline comes.
  bool all_paused() const;
  // The earliest deadline of any sequence; 0: none has one.
  int64_t next_deadline_ns() const;
  int32_t running_count() const { return static_cast<int32_t>(running_.size()); }
  int32_t waiting_count() const { return static_cast<int32_t>(waiting_.size()); }
  // Pages that a sequence could get without a preemption, and those of them that hold a prefix
  // until then.
  int32_t pages_free() const { return pages_.available_count(); }
  int32_t pages_cached() const { return pages_.idle_count(); }
  int32_t page_count() const { return pages_.page_count(); }
  // Prompt tokens that a live sequence found instead of computing them; final once it samples.
  int32_t found_count(uint64_t id) const { return at(id).found_count; }
  PrefixCacheStats prefix_stats() const;
  // Sequences whose next row gives their next token.
  int32_t decoding_count() const;
  // Positions still to be computed before each sequence's next token, where that is more than one
  // (or it waits).
  int64_t prefill_tokens_queued() const;
  // Tokens that the live sequences may still generate.
  int64_t decode_tokens_reserved() const;

 private:
  struct Rank {
    int64_t key_ns = 0;
    uint64_t arrival = 0;  // breaks ties: first come, first served
    friend auto operator<=>(const Rank&, const Rank&) = default;
  };
  struct Sequence {
    ScheduledSequence info;  // token_count grows
    Rank rank;
    int32_t cached_count = 0;  // positions in KV memory, <= token_count
    int32_t computed_max =
        0;  // largest cached_count ever: positions below gave their prompt logits already
    int32_t found_count = 0;    // positions that others computed
    int32_t indexed_pages = 0;  // the first of `pages` that the prefix cache knows
    bool queried = false;       // its prompt is counted in the statistics
    std::vector<int32_t> pages;
    bool running = false;
    bool cancelled = false;
    bool paused = false;
    int32_t unread = 0;  // the last of its tokens, whose ids are not known
    // While it waits: its pages from swap_first on, up to position swapped_count. The pages before
    // were others' as well and are expected to be found again.
    std::vector<int32_t> swap_slots;
    int32_t swap_first = 0;
    int32_t swapped_count = 0;

    int32_t known_count() const { return info.token_count - unread; }
    // It is over as soon as its last token is read, which needs no row.
    bool complete() const { return unread > 0 && info.token_count >= info.token_limit; }
    int32_t pending() const { return complete() ? 0 : info.token_count - cached_count; }
  };
  using Ordered = std::set<std::pair<Rank, uint64_t>>;  // (rank, id), best first

  Sequence& at(uint64_t id);
  const Sequence& at(uint64_t id) const;
  int32_t pages_for(int32_t token_count) const;
  void forget(uint64_t id);
  void release_pages(Sequence& sequence, int32_t keep);
  void set_rank(uint64_t id, int64_t key_ns);
  void preempt(uint64_t id, StepPlan& plan);
  void swap_out(Sequence& sequence, StepPlan& plan);
  void swap_in(Sequence& sequence, StepPlan& plan);
  void release_swap(Sequence& sequence);
  bool grow(Sequence& sequence, StepPlan& plan);
  bool make_room(const Sequence& sequence, const std::vector<int32_t>& found, StepPlan& plan);

  bool shares(const Sequence& sequence) const;
  int32_t findable_count(const Sequence& sequence) const;
  std::span<const int32_t> next_page_ids(const Sequence& sequence) const;
  int32_t page_before(const Sequence& sequence) const;
  std::vector<int32_t> find_pages(const Sequence& sequence) const;
  void use_found(Sequence& sequence, const std::vector<int32_t>& found);
  void index_full_pages(Sequence& sequence);
  bool computed_beside(const Sequence& sequence, const StepPlan& plan) const;

  void end_cancelled_and_late(int64_t now_ns, StepPlan& plan);
  void grow_running(StepPlan& plan);
  void admit(int32_t prefill_budget, StepPlan& plan);
  void find_running();
  void assign_rows(int32_t prefill_budget, StepPlan& plan);

  const SchedulerConfig config_;
  PrefixCache pages_;
  std::optional<PagePool> swap_slots_;
  double swap_page_ns_ = 0.0;
  double position_ns_ = 0.0;
  PrefixCacheStats stats_;
  std::unordered_map<uint64_t, Sequence> sequences_;
  Ordered running_;
  Ordered waiting_;
  uint64_t arrivals_ = 0;
};

}  // namespace updraft
