// Where a request goes: a function of (what it needs, the node table, now). The edge first when it
// fits; else the cloud; among what is left the least expected completion time. No side effects but
// the random tie-break's own state.
//
// The one idea: three sizes of need. `soft` leaves room for a decent answer, `hard` for what was
// asked, `least` is what the prompt has at the very least. Only `least` refuses a client; an
// estimate never does, the node's own count decides.
//
// Owner: the thread that drives RouterCore.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cloud/router/breaker.h"
#include "cloud/router/registry.h"
#include "common/message/request.h"
#include "common/message/request_error.h"

namespace updraft {

// What is known of a request's size without a tokenizer.
struct Estimate {
  int64_t text_bytes_max = 0;    // of its largest prompt
  int64_t text_bytes_total = 0;  // of all prompts
  int64_t exact_tokens_max = 0;  // prompts given as token ids
  int64_t exact_tokens_total = 0;
  int64_t overhead_tokens = 0;  // chat template and images, per prompt
  int32_t prompt_count = 1;
  int32_t choice_count = 1;   // answers in all
  int32_t wanted_tokens = 0;  // max_tokens; 0: open-ended
  bool images = false;

  // Tokens of the largest prompt.
  int64_t prompt_tokens(float bytes_per_token) const;
  int64_t prompt_tokens_least() const;
  // Tokens of KV memory for all prompts and answers; `answer_tokens` stands for an open-ended
  // answer.
  int64_t kv_tokens(float bytes_per_token, int32_t answer_tokens) const;
};
Estimate estimate_request(const Request& request);

enum class Reason : uint8_t {
  kFitsEdge,
  kAskedEdge,
  kAskedCloud,
  kRisen,
  kTooLongForEdge,
  kEdgeBusy,
  kNoEdge,
  kImages,
  kSession,
  kDeadline,
  kMoved,
};
inline constexpr int kReasonCount = 11;
const char* reason_text(Reason reason);   // x-updraft-decision
const char* reason_label(Reason reason);  // metrics

// A node that this request must not go to again, as it was then: a restarted node is another one.
struct Exclusion {
  NodeRef node;
  uint64_t boot_epoch = 0;
};

// What placement asks of a live request. The lower part is written by place() and read when a node
// pulls from the queue.
struct Wish {
  ModelIndex model = kNoModel;
  Estimate estimate;
  Tier tier = Tier::kAny;  // hint
  bool local_only = false;
  Priority priority = Priority::kDefault;
  int64_t deadline_ns = 0;  // 0: none
  NodeRef origin;           // the edge node it rose from: never sent back
  std::string session;      // tenant and session; empty: none
  std::vector<Exclusion> excluded;
  int64_t counted_tokens = 0;        // need as a node counted it; 0: not yet
  int32_t refused_limit_tokens = 0;  // nodes with no more than this have refused it as too long
  bool moved = false;                // lost its first node

  int64_t need_tokens = 0;  // a node's limit must reach it
  int64_t kv_tokens = 0;
  int64_t prompt_tokens = 0;
  Tier tier_now = Tier::kAny;     // the hint, or kCloud for a session that has risen
  bool edge_serves = false;       // some edge serves the model
  bool edge_wide_enough = false;  // and is wide enough for this request
  bool deadline_excludes_edge = false;
  bool breakers_ignored = false;  // every node that could take it is behind an open breaker
  int64_t slots_total = 0;        // of all nodes that could take it, for an honest Retry-After
};

struct Placement {
  enum class Kind : uint8_t { kNode, kWait, kNever };
  Kind kind = Kind::kNever;
  NodeIndex node = kNoNode;
  RequestError error;  // kNever
};

// Where each session was last served; least recently used ones are forgotten.
class SessionTable {
 public:
  struct Entry {
    NodeRef node;
    Tier tier = Tier::kAny;
    bool risen = false;  // stays in the cloud from then on
    int64_t used_ns = 0;
  };
  SessionTable(size_t entries_max, int64_t idle_ms_max)
      : entries_max_(entries_max), idle_ms_max_(idle_ms_max) {}
  // Nothing when unknown or idle for too long.
  const Entry* find(const std::string& session, int64_t now_ns) const;
  void served(const std::string& session, NodeRef node, Tier tier, bool risen, int64_t now_ns);
  size_t size() const { return entries_.size(); }

 private:
  using List = std::list<std::pair<std::string, Entry>>;
  const size_t entries_max_;
  const int64_t idle_ms_max_;
  List entries_;                                                     // most recent first
  std::unordered_map<std::string_view, List::iterator> by_session_;  // keys live in entries_
};

class Placer {
 public:
  struct Config {
    int32_t edge_reserve_slots = 0;       // of each edge node, kept for its own clients
    int32_t answer_tokens_assumed = 256;  // of an open-ended answer
    uint64_t seed = 1;                    // of the tie-break
  };
  // breakers: null for none.
  Placer(Config config, const Registry& registry, const BreakerTable* breakers = nullptr)
      : config_(config), registry_(registry), breakers_(breakers), random_(config.seed) {}

  Placement place(Wish& wish, const SessionTable::Entry* session, int64_t now_ns);
  // Could this node ever take it, as the last place() of the wish saw it; capacity aside.
  bool capable(const Wish& wish, const Serving& serving) const;
  // Its breaker lets a request through, or no node that could take this one has a breaker that
  // does.
  bool admits(const Wish& wish, NodeIndex node, int64_t now_ns) const {
    return breakers_ == nullptr || !breakers_->any_tripped() || wish.breakers_ignored ||
           breakers_->admits(node, wish.model, now_ns);
  }
  // Slots and KV tokens are there now.
  bool has_room(const Wish& wish, NodeIndex node, int64_t now_ns) const;
  int32_t slots_needed(const Wish& wish, NodeIndex node) const;
  int64_t kv_needed(const Wish& wish, NodeIndex node) const;
  Reason reason(const Wish& wish, NodeIndex node) const;
  // Seconds until the answer would be complete there, its own place in the node's queue included.
  double completion_s(const Wish& wish, NodeIndex node) const;

 private:
  struct Survey;
  Survey survey(const Wish& wish, int64_t now_ns) const;
  bool fits(const Wish& wish, NodeIndex node, int32_t free_slots) const;
  bool allowed(const Wish& wish, const Serving& serving) const;
  bool set_need(Wish& wish, const Survey& survey) const;
  int64_t limit_tokens(const Serving& serving) const;
  int32_t reserve(NodeIndex node) const;
  bool all_ejected(const Wish& wish, int64_t now_ns) const;
  bool failed_there(const Wish& wish, NodeIndex node) const;
  NodeIndex choose(const Wish& wish, Tier tier, const SessionTable::Entry* session, bool stale,
                   int64_t now_ns);
  NodeIndex best_of_candidates(const SessionTable::Entry* session);
  RequestError never(const Wish& wish, const Survey& survey, int64_t now_ns) const;
  RequestError too_long(const Wish& wish, int64_t limit_tokens) const;
  uint64_t next_random();

  const Config config_;
  const Registry& registry_;
  const BreakerTable* breakers_;
  uint64_t random_;
  struct Candidate {
    NodeIndex node = kNoNode;
    int32_t free_slots = 0;
    double completion_s = 0.0;
  };
  std::vector<Candidate> candidates_;  // scratch of choose(), kept for its memory
};

}  // namespace updraft
