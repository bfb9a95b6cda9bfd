// Where a request that arrives at the edge is answered: here, in the pool, or not at all. Pure: the
// request's size, the node's state and the session's past in, a decision out.
//
// The rule: what fits the edge's context and its free slots stays; the rest rises. Hints narrow the
// choice, and input embeddings bind a request to the model whose they are. A session that rose
// stays above, so that its conversation does not move back and forth between two prefix caches.
// What this gateway has no memory for (memory_refusal.h) rises if it may, or is refused.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <unordered_map>

#include "common/base/memory_level.h"
#include "common/message/request.h"
#include "common/message/request_error.h"

namespace updraft {

// What a request needs here.
struct EdgeNeed {
  int64_t prompt_tokens = 0;  // of its largest prompt
  int64_t wanted_tokens = 0;  // max_tokens; 0: open-ended
  int32_t choice_count = 1;   // sequences in all
  bool has_image = false;
  bool has_embeddings = false;  // rows that mean something to the model on this gateway alone
  bool is_chat = true;
  bool countable =
      true;  // false: the tokenizer refused it; the local model then gives the typed error
};

// What the edge has, at this moment, for the model that the request names.
struct EdgeState {
  bool model_here = true;
  bool chat_here = true;  // the local model has a chat template
  bool images_here = false;
  bool draining = false;
  MemoryLevel memory = MemoryLevel::kNormal;
  int64_t context_tokens = 0;
  int32_t slots_total = 0;
  int32_t slots_free = 0;
  int32_t waiting = 0;
  int64_t kv_tokens_total = 0;
  int64_t kv_tokens_free = 0;
  bool pool_configured = false;
  bool pool_connected = false;
  bool model_in_pool = false;
};

enum class SessionPast : uint8_t { kNone, kStayed, kRose };

struct EdgeDecision {
  enum class Place : uint8_t { kLocal, kRise, kRefuse };
  Place place = Place::kLocal;
  const char* reason = "";  // one short phrase, x-updraft-decision
  RequestError error;       // kRefuse
  bool for_memory = false;  // kRefuse: because memory is short
};

// An open-ended answer is reckoned with as many tokens as this, or a quarter of the context when
// that is less.
inline constexpr int64_t kOpenAnswerTokens = 256;

EdgeDecision place_at_edge(const Hints& hints, const EdgeNeed& need, const EdgeState& state,
                           SessionPast past);

// True when prompt and answer fit the context and the KV memory, busy or not.
bool fits_edge(const EdgeNeed& need, const EdgeState& state);

// True when the free KV memory takes prompt and answer now.
bool kv_granted(const EdgeNeed& need, const EdgeState& state);

// Where sessions were answered last. Bounded: the one unused for longest is forgotten first.
class EdgeSessions {
 public:
  static constexpr size_t kSessionsMax = 4096;
  static constexpr int64_t kForgetNs = 600'000'000'000;  // unused for 10 minutes

  SessionPast past(const std::string& session, int64_t now_ns);
  void note(const std::string& session, bool rose, int64_t now_ns);
  size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    std::string session;
    bool rose = false;
    int64_t used_ns = 0;
  };
  std::list<Entry> entries_;  // newest first
  std::unordered_map<std::string, std::list<Entry>::iterator> at_;
};

}  // namespace updraft
