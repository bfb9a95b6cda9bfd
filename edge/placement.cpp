// See the header.
#include "edge/placement.h"

#include <algorithm>
#include <utility>

#include "common/message/memory_refusal.h"

namespace updraft {
namespace {

using Place = EdgeDecision::Place;

constexpr int32_t kRetryAfterMs = 2000;

EdgeDecision local(const char* reason) { return {Place::kLocal, reason, {}, false}; }
EdgeDecision rise(const char* reason) { return {Place::kRise, reason, {}, false}; }
EdgeDecision refuse(ErrorCode code, std::string message) {
  EdgeDecision decision{Place::kRefuse, "refused", {}, false};
  decision.error.code = code;
  decision.error.message = std::move(message);
  if (code == ErrorCode::kOverloaded) decision.error.retry_after_ms = kRetryAfterMs;
  return decision;
}

EdgeDecision no_memory(RequestError& error) {
  return {Place::kRefuse, "refused", std::move(error), true};
}

int64_t answer_tokens(const EdgeNeed& need, const EdgeState& state) {
  return need.wanted_tokens > 0 ? need.wanted_tokens
                                : std::min(kOpenAnswerTokens, state.context_tokens / 4);
}

// KV memory is taken per sequence; a context larger than all of it cannot be used in full.
int64_t limit_tokens(const EdgeState& state) {
  return std::min(state.context_tokens, state.kv_tokens_total);
}

EdgeDecision too_long(const EdgeNeed& need, const EdgeState& state) {
  const int64_t total = need.prompt_tokens + need.wanted_tokens;
  EdgeDecision decision = refuse(
      ErrorCode::kContextLength,
      "the prompt has " + std::to_string(need.prompt_tokens) + " tokens" +
          (need.wanted_tokens > 0 ? " and " + std::to_string(need.wanted_tokens) + " are wanted"
                                  : "") +
          ", " + std::to_string(limit_tokens(state)) + " fit on this gateway");
  decision.error.param = need.is_chat ? "messages" : "prompt";
  decision.error.prompt_tokens = static_cast<int32_t>(std::min<int64_t>(total, INT32_MAX));
  decision.error.limit_tokens =
      static_cast<int32_t>(std::min<int64_t>(limit_tokens(state), INT32_MAX));
  return decision;
}

bool able(const EdgeNeed& need, const EdgeState& state) {
  return (!need.has_image || state.images_here) && (!need.is_chat || state.chat_here);
}

// The request must stay: why it cannot, or that it does.
EdgeDecision stay(const Hints& hints, const EdgeNeed& need, const EdgeState& state,
                  const char* reason) {
  if (!state.model_here)
    return refuse(ErrorCode::kModelNotFound,
                  "this model is not on this gateway, and the request may not leave it");
  if (need.has_image && !state.images_here) {
    return refuse(
        ErrorCode::kUnsupported,
        "the model on this gateway does not take images, and the request may not leave it");
  }
  if (auto refusal = memory_refusal(state.memory, hints.priority)) return no_memory(*refusal);
  // Without a template, or when the tokenizer refused: the model itself says what is wrong.
  if (!able(need, state) || !need.countable || fits_edge(need, state)) return local(reason);
  return too_long(need, state);
}

}  // namespace

bool kv_granted(const EdgeNeed& need, const EdgeState& state) {
  return (need.prompt_tokens + answer_tokens(need, state)) * need.choice_count <=
         state.kv_tokens_free;
}

bool fits_edge(const EdgeNeed& need, const EdgeState& state) {
  return need.countable && able(need, state) &&
         need.prompt_tokens + answer_tokens(need, state) <= limit_tokens(state);
}

EdgeDecision place_at_edge(const Hints& hints, const EdgeNeed& need, const EdgeState& state,
                           SessionPast past) {
  if (state.draining) return refuse(ErrorCode::kOverloaded, "this gateway is stopping");
  if (need.has_embeddings && hints.tier == Tier::kCloud && !hints.local_only) {
    return refuse(ErrorCode::kUnsupported,
                  "the request asks for the cloud, but its input embeddings are for the model on "
                  "this gateway");
  }
  if (hints.local_only) return stay(hints, need, state, "local-only");
  if (need.has_embeddings) return stay(hints, need, state, "input embeddings");
  if (hints.tier == Tier::kEdge) return stay(hints, need, state, "tier edge");
  const auto away = [&](const char* what) {
    return refuse(ErrorCode::kOverloaded, std::string(what) + ", and the pool cannot be reached");
  };
  if (hints.tier == Tier::kCloud) {
    if (state.pool_connected) return rise("tier cloud");
    if (state.pool_configured) return away("the request asks for the cloud");
    return refuse(ErrorCode::kUnsupported,
                  "the request asks for the cloud, and this gateway belongs to no pool");
  }
  if (!state.model_here) {
    if (state.pool_connected) return rise("the model is in the pool");
    if (state.pool_configured) return away("this model is not on this gateway");
    return refuse(ErrorCode::kModelNotFound, "this model is not on this gateway");
  }
  const bool can_rise = state.pool_connected && state.model_in_pool;
  if (fits_edge(need, state) || !need.countable) {
    auto refusal = memory_refusal(state.memory, hints.priority);
    if (refusal && can_rise) return rise("the edge is short of memory");
    if (refusal) return no_memory(*refusal);
  }
  if (!need.countable && able(need, state)) return local("the model's own answer");
  if (!fits_edge(need, state)) {
    if (state.pool_connected)
      return rise(able(need, state) ? "longer than the edge's context" : "beyond the edge's model");
    if (state.pool_configured)
      return away(able(need, state) ? "the request is longer than this gateway's context"
                                    : "this gateway's model cannot do it");
    return stay(hints, need, state, "no pool");
  }
  if (!can_rise) return local("fits the edge");
  if (past == SessionPast::kRose) return rise("the session rose before");
  if (need.choice_count <= state.slots_free && kv_granted(need, state))
    return local("fits the edge");
  // A conversation that is here waits for its warm prefix rather than moving at the first full
  // slot.
  if (past == SessionPast::kStayed && state.waiting < state.slots_total)
    return local("the session stays");
  return rise("the edge is busy");
}

SessionPast EdgeSessions::past(const std::string& session, int64_t now_ns) {
  const auto at = at_.find(session);
  if (session.empty() || at == at_.end()) return SessionPast::kNone;
  if (now_ns - at->second->used_ns > kForgetNs) {
    entries_.erase(at->second);
    at_.erase(at);
    return SessionPast::kNone;
  }
  return at->second->rose ? SessionPast::kRose : SessionPast::kStayed;
}

void EdgeSessions::note(const std::string& session, bool rose, int64_t now_ns) {
  if (session.empty()) return;
  if (const auto at = at_.find(session); at != at_.end()) {
    at->second->rose = rose;
    at->second->used_ns = now_ns;
    entries_.splice(entries_.begin(), entries_, at->second);
    return;
  }
  if (entries_.size() >= kSessionsMax) {
    at_.erase(entries_.back().session);
    entries_.pop_back();
  }
  entries_.push_front({session, rose, now_ns});
  at_[session] = entries_.begin();
}

}  // namespace updraft
