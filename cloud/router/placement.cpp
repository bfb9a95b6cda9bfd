// Placement rule of the router. See placement.h and the design's section on placement and
// escalation.
#include "cloud/router/placement.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/base/clock.h"
#include "common/base/plant.h"

namespace updraft {
namespace {

// A chat template's own tokens (role headers, separators, generation prompt) that the text's bytes
// do not show.
constexpr int64_t kTemplateTokens = 8;
constexpr int64_t kTemplateTokensPerMessage = 6;
constexpr int64_t kTokensPerImage = 1024;
// No tokenizer in use packs more text than this into a token on average; longer prompts cannot fit.
constexpr double kBytesPerTokenMost = 16.0;

// So many usable nodes are enough to choose from: the best of them is among the best of all. A
// larger pool is looked at in stretches that begin anywhere.
constexpr size_t kEnoughCandidates = 256;

constexpr int32_t kNoNodeRetryMs = 2000;

int64_t ceil_div(int64_t bytes, double bytes_per_token) {
  return static_cast<int64_t>(std::ceil(static_cast<double>(bytes) / bytes_per_token));
}

}  // namespace

// --- estimates ---

Estimate estimate_request(const Request& request) {
  Estimate estimate;
  estimate.choice_count = total_choices(request);
  estimate.wanted_tokens = request.sampling.max_tokens.value_or(0);
  estimate.images = has_image(request);
  estimate.text_bytes_total = prompt_text_bytes(request);
  if (request.kind == Request::Kind::kChat) {
    estimate.text_bytes_max = estimate.text_bytes_total;
    estimate.overhead_tokens =
        kTemplateTokens + kTemplateTokensPerMessage * static_cast<int64_t>(request.messages.size());
    for (const ChatMessage& message : request.messages) {
      for (const ContentPart& part : message.parts) {
        if (part.kind == ContentPart::Kind::kImage) estimate.overhead_tokens += kTokensPerImage;
      }
    }
    return estimate;
  }
  for (const std::string& prompt : request.prompts) {
    estimate.text_bytes_max =
        std::max(estimate.text_bytes_max, static_cast<int64_t>(prompt.size()));
  }
  for (const std::vector<int32_t>& ids : request.prompt_ids) {
    const auto tokens = static_cast<int64_t>(ids.size());
    estimate.exact_tokens_max = std::max(estimate.exact_tokens_max, tokens);
    estimate.exact_tokens_total += tokens;
  }
  estimate.prompt_count =
      static_cast<int32_t>(std::max(request.prompts.size(), request.prompt_ids.size()));
  if (!request.prompt_parts.empty()) {
    estimate.prompt_count = 1;
    estimate.text_bytes_max = estimate.text_bytes_total;
    for (const PromptPart& part : request.prompt_parts)
      estimate.exact_tokens_max += static_cast<int64_t>(part.ids.size());
    estimate.exact_tokens_total = estimate.exact_tokens_max;
  }
  return estimate;
}

int64_t Estimate::prompt_tokens(float bytes_per_token) const {
  return ceil_div(text_bytes_max, bytes_per_token) + exact_tokens_max + overhead_tokens;
}

int64_t Estimate::prompt_tokens_least() const {
  return std::max<int64_t>(1, ceil_div(text_bytes_max, kBytesPerTokenMost) + exact_tokens_max);
}

int64_t Estimate::kv_tokens(float bytes_per_token, int32_t answer_tokens) const {
  const int64_t prompts = ceil_div(text_bytes_total, bytes_per_token) + exact_tokens_total +
                          overhead_tokens * prompt_count;
  const int64_t answers =
      static_cast<int64_t>(wanted_tokens > 0 ? wanted_tokens : answer_tokens) * choice_count;
  return prompts + answers;
}

// --- reasons ---

const char* reason_text(Reason reason) {
  switch (reason) {
    case Reason::kFitsEdge:
      return "fits the edge";
    case Reason::kAskedEdge:
      return "edge asked for";
    case Reason::kAskedCloud:
      return "cloud asked for";
    case Reason::kRisen:
      return "risen from an edge";
    case Reason::kTooLongForEdge:
      return "too long for the edge";
    case Reason::kEdgeBusy:
      return "edge busy";
    case Reason::kNoEdge:
      return "no edge serves the model";
    case Reason::kImages:
      return "images need the cloud";
    case Reason::kSession:
      return "session has risen to the cloud";
    case Reason::kDeadline:
      return "edge would miss the deadline";
    case Reason::kMoved:
      return "moved after a node was lost";
  }
  return "unknown";
}

const char* reason_label(Reason reason) {
  switch (reason) {
    case Reason::kFitsEdge:
      return "fits_edge";
    case Reason::kAskedEdge:
      return "asked_edge";
    case Reason::kAskedCloud:
      return "asked_cloud";
    case Reason::kRisen:
      return "risen";
    case Reason::kTooLongForEdge:
      return "too_long_for_edge";
    case Reason::kEdgeBusy:
      return "edge_busy";
    case Reason::kNoEdge:
      return "no_edge";
    case Reason::kImages:
      return "images";
    case Reason::kSession:
      return "session";
    case Reason::kDeadline:
      return "deadline";
    case Reason::kMoved:
      return "moved";
  }
  return "unknown";
}

Reason Placer::reason(const Wish& wish, NodeIndex node) const {
  if (wish.moved) return Reason::kMoved;
  if (wish.origin.index != kNoNode) return Reason::kRisen;
  if (registry_.load(node).tier == Tier::kEdge) {
    return wish.tier == Tier::kEdge || wish.local_only ? Reason::kAskedEdge : Reason::kFitsEdge;
  }
  if (wish.tier == Tier::kCloud) return Reason::kAskedCloud;
  if (wish.tier_now == Tier::kCloud) return Reason::kSession;
  if (!wish.edge_serves) return Reason::kNoEdge;
  if (!wish.edge_wide_enough)
    return wish.estimate.images ? Reason::kImages : Reason::kTooLongForEdge;
  return wish.deadline_excludes_edge ? Reason::kDeadline : Reason::kEdgeBusy;
}

// --- sessions ---

const SessionTable::Entry* SessionTable::find(const std::string& session, int64_t now_ns) const {
  if (session.empty()) return nullptr;
  const auto it = by_session_.find(session);
  if (it == by_session_.end()) return nullptr;
  const Entry& entry = it->second->second;
  return now_ns - entry.used_ns < idle_ms_max_ * kNsPerMs ? &entry : nullptr;
}

void SessionTable::served(const std::string& session, NodeRef node, Tier tier, bool risen,
                          int64_t now_ns) {
  if (session.empty() || entries_max_ == 0) return;
  const bool was_risen = [&] {
    const Entry* entry = find(session, now_ns);
    return entry != nullptr && entry->risen;
  }();
  if (const auto it = by_session_.find(session); it != by_session_.end()) {
    entries_.splice(entries_.begin(), entries_, it->second);
  } else {
    if (entries_.size() >= entries_max_) {
      by_session_.erase(entries_.back().first);
      entries_.pop_back();
    }
    entries_.emplace_front(session, Entry{});
    by_session_.emplace(entries_.front().first, entries_.begin());
  }
  entries_.front().second = {node, tier, risen || was_risen, now_ns};
}

// --- who may, who can, who has room ---

int64_t Placer::limit_tokens(const Serving& serving) const {
  const int64_t kv_tokens_total = registry_.load(serving.node).kv_tokens_total;
  return kv_tokens_total > 0 ? std::min<int64_t>(serving.context_tokens, kv_tokens_total)
                             : serving.context_tokens;
}

int32_t Placer::reserve(NodeIndex node) const {
  return registry_.load(node).tier == Tier::kEdge ? config_.edge_reserve_slots : 0;
}

// Not excluded by the request's own history or wishes of tier.
bool Placer::allowed(const Wish& wish, const Serving& serving) const {
  const NodeLoad& load = registry_.load(serving.node);
  if (wish.local_only && load.tier != Tier::kEdge) return false;
  if (UPDRAFT_PLANT(kHintIgnored)) return true;
  if (wish.tier != Tier::kAny && wish.tier != load.tier) return false;
  return wish.origin.index != serving.node || !registry_.same(wish.origin);
}

bool Placer::failed_there(const Wish& wish, NodeIndex node) const {
  return std::any_of(wish.excluded.begin(), wish.excluded.end(), [&](const Exclusion& excluded) {
    return excluded.node == registry_.ref(node) &&
           excluded.boot_epoch == registry_.node(node).hello.boot_epoch;
  });
}

Placer::Survey Placer::survey(const Wish& wish, int64_t now_ns) const {
  // An edge that a request rose from is no cloud node anyway.
  const bool plain = !wish.estimate.images && !wish.local_only && wish.excluded.empty() &&
                     wish.refused_limit_tokens == 0 &&
                     (wish.origin.index == kNoNode || wish.tier == Tier::kCloud);
  Survey survey;
  if (plain) {
    if (known_.size() <= wish.model) known_.resize(wish.model + 1);
    Known& known = known_[wish.model][static_cast<size_t>(wish.tier)];
    if (known.version != registry_.shape_version() + 1) {
      known.survey = count_nodes(wish);
      known.version = registry_.shape_version() + 1;
    }
    survey = known.survey;
  } else {
    survey = count_nodes(wish);
  }
  survey.any_fresh = any_fresh(wish, now_ns);
  return survey;
}

// The first one decides; silent ones are few.
bool Placer::any_fresh(const Wish& wish, int64_t now_ns) const {
  for (const Serving& serving : registry_.serving(wish.model)) {
    const NodeLoad& load = registry_.load(serving.node);
    if (load.freshness == Freshness::kStale || load.lapsed(now_ns)) continue;
    if (!allowed(wish, serving) || (wish.estimate.images && !serving.images)) continue;
    if (!load.takes_work() || load.slots_total <= reserve(serving.node)) continue;
    if (failed_there(wish, serving.node) || limit_tokens(serving) <= wish.refused_limit_tokens)
      continue;
    return true;
  }
  return false;
}

Placer::Survey Placer::count_nodes(const Wish& wish) const {
  Survey survey;
  for (const Serving& serving : registry_.serving(wish.model)) {
    const NodeLoad& load = registry_.load(serving.node);
    survey.edge_serves |= load.tier == Tier::kEdge;
    if (!allowed(wish, serving)) continue;
    survey.any_of_tier = true;
    if (wish.estimate.images && !serving.images) continue;
    survey.any_with_images = true;
    if (failed_there(wish, serving.node)) continue;
    const int64_t limit = limit_tokens(serving);
    survey.limit_tokens_any = std::max(survey.limit_tokens_any, limit);
    if (limit <= wish.refused_limit_tokens) continue;
    survey.only_excluded = false;
    if (!load.takes_work() || load.slots_total <= reserve(serving.node)) {
      survey.limit_tokens_idle = std::max(survey.limit_tokens_idle, limit);
      continue;
    }
    survey.any_taking_work = true;
    survey.limit_tokens = std::max(survey.limit_tokens, limit);
    survey.slots_total += load.slots_total;
    if (load.tier == Tier::kCloud) {
      survey.any_cloud = true;
      survey.limit_tokens_cloud = std::max(survey.limit_tokens_cloud, limit);
    } else {
      survey.limit_tokens_edge = std::max(survey.limit_tokens_edge, limit);
    }
  }
  return survey;
}

bool Placer::capable(const Wish& wish, const Serving& serving) const {
  const NodeLoad& load = registry_.load(serving.node);
  if (!load.takes_work() || load.slots_total <= reserve(serving.node) || !allowed(wish, serving))
    return false;
  if (wish.tier_now != Tier::kAny && wish.tier_now != load.tier) return false;
  if (wish.estimate.images && !serving.images) return false;
  const int64_t limit = limit_tokens(serving);
  if (limit < wish.need_tokens || limit <= wish.refused_limit_tokens) return false;
  return !failed_there(wish, serving.node);
}

int32_t Placer::slots_needed(const Wish& wish, NodeIndex node) const {
  return std::clamp(wish.estimate.choice_count, 1,
                    std::max(1, registry_.load(node).slots_total - reserve(node)));
}

int64_t Placer::kv_needed(const Wish& wish, NodeIndex node) const {
  const int64_t total = registry_.load(node).kv_tokens_total;
  return total > 0 ? std::min(wish.kv_tokens, total) : wish.kv_tokens;
}

bool Placer::fits(const Wish& wish, NodeIndex node, int32_t free_slots) const {
  const NodeLoad& load = registry_.load(node);
  // The reserve is of the whole node; a grant is this router's part of it.
  const int32_t open = load.grants && !UPDRAFT_PLANT(kReservePerRouter)
                           ? load.slots_free - load.assigned_slots + load.returned_slots
                           : free_slots;
  const int32_t needed = slots_needed(wish, node);
  return free_slots >= needed && open - reserve(node) >= needed &&
         load.free_kv_tokens() >= kv_needed(wish, node);
}

bool Placer::has_room(const Wish& wish, NodeIndex node, int64_t now_ns) const {
  return fits(wish, node, registry_.load(node).free_slots(now_ns));
}

// Every node that could take it is behind an open breaker: asking one is better than waiting.
bool Placer::all_ejected(const Wish& wish, int64_t now_ns) const {
  if (breakers_ == nullptr || !breakers_->any_tripped()) return false;
  const std::vector<Serving>& serving = registry_.serving(wish.model);
  return std::none_of(serving.begin(), serving.end(), [&](const Serving& entry) {
    return capable(wish, entry) &&
           breakers_->state(entry.node, wish.model, now_ns) != BreakerTable::State::kOpen;
  });
}

// --- the rule ---

// Sets need_tokens to the roomiest of soft, hard and least that some node can hold; false when none
// can.
bool Placer::set_need(Wish& wish, const Survey& survey) const {
  const float bytes_per_token = registry_.bytes_per_token(wish.model);
  const bool open_ended = wish.estimate.wanted_tokens == 0;
  const bool counted = wish.counted_tokens > 0;
  wish.prompt_tokens = counted ? wish.counted_tokens : wish.estimate.prompt_tokens(bytes_per_token);
  wish.kv_tokens = std::max(wish.estimate.kv_tokens(bytes_per_token, config_.answer_tokens_assumed),
                            wish.counted_tokens);
  const int64_t wanted = open_ended ? 1 : wish.estimate.wanted_tokens;
  const int64_t least = counted ? wish.counted_tokens : wish.estimate.prompt_tokens_least() + 1;
  const int64_t hard = counted ? wish.counted_tokens : wish.prompt_tokens + wanted;
  const int64_t soft =
      wish.prompt_tokens + (open_ended ? config_.answer_tokens_assumed : (counted ? 0 : wanted));
  const int64_t widest =
      wish.tier_now == Tier::kCloud ? survey.limit_tokens_cloud : survey.limit_tokens;
  if (soft <= widest) {
    wish.need_tokens = soft;
  } else if (hard <= widest) {
    wish.need_tokens = hard;
  } else {
    wish.need_tokens =
        std::max(least, widest);  // the widest may try: the node counts, this was an estimate
  }
  return wish.need_tokens <= widest;
}

Placement Placer::place(Wish& wish, const SessionTable::Entry* session, int64_t now_ns) {
  const Survey seen = survey(wish, now_ns);
  wish.edge_serves = seen.edge_serves;
  wish.deadline_excludes_edge = false;
  wish.tier_now = UPDRAFT_PLANT(kHintIgnored) ? Tier::kAny : wish.tier;
  const bool risen =
      session != nullptr && session->risen && wish.tier == Tier::kAny && !wish.local_only;
  if (risen && seen.any_cloud) wish.tier_now = Tier::kCloud;
  wish.slots_total = seen.slots_total;
  wish.breakers_ignored = false;
  Placement placement;
  if (!seen.any_taking_work || !set_need(wish, seen)) {
    placement.error = never(wish, seen, now_ns);
    return placement;
  }
  wish.edge_wide_enough = seen.limit_tokens_edge >= wish.need_tokens;
  wish.breakers_ignored = all_ejected(wish, now_ns);
  placement.kind = Placement::Kind::kWait;
  // A stale node is better than none, and worse than any other; so is one whose grant has run out,
  // which bounces the request should its room be promised elsewhere.
  find_cached(wish);
  for (const bool stale : {false, true}) {
    if (stale && seen.any_fresh) break;
    Candidate chosen;
    if (wish.tier_now != Tier::kCloud) chosen = choose(wish, Tier::kEdge, session, stale, now_ns);
    const bool late = chosen.node != kNoNode && wish.deadline_ns > 0 &&
                      static_cast<double>(wish.deadline_ns - now_ns) < chosen.completion_s * 1e9;
    if ((chosen.node == kNoNode || late) && wish.tier_now != Tier::kEdge && !wish.local_only) {
      wish.deadline_excludes_edge = late;
      const Candidate cloud = choose(wish, Tier::kCloud, session, stale, now_ns);
      if (cloud.node != kNoNode && (!late || cloud.completion_s < chosen.completion_s))
        chosen = cloud;
    }
    placement.node = chosen.node;
    placement.cached_tokens = chosen.cached_tokens;
    if (placement.node != kNoNode) {
      placement.kind = Placement::Kind::kNode;
      break;
    }
  }
  return placement;
}

// Adds the node to the candidates if it could take the request now.
void Placer::consider(const Wish& wish, const Serving& serving, bool stale, int64_t now_ns) {
  const NodeLoad& load = registry_.load(serving.node);
  if ((load.freshness == Freshness::kStale || load.lapsed(now_ns)) != stale) return;
  if (load.lease_over(now_ns)) return;
  const int32_t free_slots = load.free_slots(now_ns, stale);
  if (!fits(wish, serving.node, free_slots) || !capable(wish, serving)) return;
  if (!admits(wish, serving.node, now_ns)) return;
  candidates_.push_back({serving.node, free_slots, load.requests(), 0, 0.0});
}

Placer::Candidate Placer::choose(const Wish& wish, Tier tier, const SessionTable::Entry* session,
                                 bool stale, int64_t now_ns) {
  candidates_.clear();
  const std::vector<Serving>& serving =
      registry_.serving(UPDRAFT_PLANT(kModelIgnored) ? 0 : wish.model);
  const size_t count = serving.size();
  const size_t begin = count > kEnoughCandidates ? next_random() % count : 0;
  size_t looked_at = 0;
  for (; looked_at < count && candidates_.size() < kEnoughCandidates; ++looked_at) {
    const size_t at = begin + looked_at < count ? begin + looked_at : begin + looked_at - count;
    if (serving[at].tier == tier) consider(wish, serving[at], stale, now_ns);
  }
  if (looked_at < count) {
    // Those that have a reason of their own to be looked at.
    const auto also = [&](NodeIndex node) {
      const Serving* entry = registry_.find_serving(wish.model, node);
      if (entry == nullptr || entry->tier != tier) return;
      const auto at = static_cast<size_t>(entry - serving.data());
      const size_t distance = at >= begin ? at - begin : at + count - begin;
      if (distance >= looked_at) consider(wish, *entry, stale, now_ns);
    };
    const bool known = session != nullptr && registry_.same(session->node);
    if (known) also(session->node.index);
    if (any_cached_) {
      for (const AffinityIndex::Match& match : affinity_->matches()) {
        if (!known || match.node != session->node.index) also(match.node);
      }
    }
  }
  if (candidates_.empty()) return {};
  estimate_completion(wish);
  return best_of_candidates(tier, session);
}

// Who holds a part of this prompt, and how many of its tokens.
void Placer::find_cached(const Wish& wish) {
  ++places_;
  any_cached_ = false;
  if (affinity_ == nullptr || affinity_->empty() || wish.chain.empty()) return;
  const double bytes_per_token = registry_.bytes_per_token(wish.model);
  for (const AffinityIndex::Match& match : affinity_->match(wish.chain)) {
    any_cached_ = true;
    if (cached_.size() <= match.node) cached_.resize(match.node + 1);
    const auto tokens = static_cast<int64_t>(static_cast<double>(match.bytes) / bytes_per_token);
    cached_[match.node] = {places_, std::clamp<int64_t>(tokens, 0, wish.prompt_tokens)};
  }
}

int64_t Placer::cached_tokens(NodeIndex node) const {
  return node < cached_.size() && cached_[node].place == places_ ? cached_[node].tokens : 0;
}

void Placer::estimate_completion(const Wish& wish) {
  const RequestTerms request = terms(wish);
  int32_t requests_min = 0;
  if (any_cached_) {
    requests_min = std::min_element(candidates_.begin(), candidates_.end(),
                                    [](const Candidate& a, const Candidate& b) {
                                      return a.requests < b.requests;
                                    })
                       ->requests;
  }
  for (Candidate& candidate : candidates_) {
    if (any_cached_ && cache_counts(candidate.requests, requests_min))
      candidate.cached_tokens = cached_tokens(candidate.node);
    candidate.completion_s = updraft::completion_s(
        request, terms(candidate.node, candidate.free_slots, candidate.cached_tokens));
  }
}

RequestTerms Placer::terms(const Wish& wish) const {
  return {
      wish.prompt_tokens,
      wish.estimate.wanted_tokens > 0 ? wish.estimate.wanted_tokens : config_.answer_tokens_assumed,
      wish.payload_bytes};
}

NodeTerms Placer::terms(NodeIndex node, int32_t free_slots, int64_t cached_tokens) const {
  const NodeLoad& load = registry_.load(node);
  NodeTerms terms;
  terms.tier = load.tier;
  terms.silent = load.freshness != Freshness::kFresh;
  terms.free_slots = free_slots;
  terms.requests = load.requests();
  terms.tokens_ahead = load.prefill_tokens_queued + load.assigned_prefill_tokens;
  terms.cached_tokens = cached_tokens;
  terms.prefill_tokens_per_s = load.prefill_tokens_per_s;
  terms.decode_tokens_per_s = load.decode_tokens_per_s;
  terms.rtt_s = load.rtt_s;
  terms.uplink_bytes_per_s = load.uplink_bytes_per_s;
  terms.price_s = config_.price_weight * load.price;
  return terms;
}

double Placer::completion_s(const Wish& wish, NodeIndex node) const {
  return updraft::completion_s(terms(wish), terms(node, 0, 0));
}

Placer::Candidate Placer::best_of_candidates(Tier tier, const SessionTable::Entry* session) {
  double best_s = std::numeric_limits<double>::max();
  for (const Candidate& candidate : candidates_) best_s = std::min(best_s, candidate.completion_s);
  size_t own = candidates_.size();
  if (session != nullptr && registry_.same(session->node)) {
    for (size_t i = 0; i < candidates_.size() && own == candidates_.size(); ++i) {
      if (candidates_[i].node == session->node.index) own = i;
    }
  }
  const size_t* session_at = own < candidates_.size() ? &own : nullptr;
  if (session_at != nullptr && session_keeps(candidates_[own].completion_s, best_s)) {
    if (recording_) keep(tier, own, session_at, nullptr, nullptr);
    return candidates_[own];
  }
  equal_.clear();
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (equally_good(candidates_[i].completion_s, best_s)) equal_.push_back(i);
  }
  const size_t first = equal_[next_random() % equal_.size()];
  const size_t second = equal_[next_random() % equal_.size()];
  const size_t chosen =
      second_is_emptier(candidates_[first].free_slots, candidates_[second].free_slots) ? second
                                                                                       : first;
  if (recording_) keep(tier, chosen, session_at, &first, &second);
  return candidates_[chosen];
}

// --- records ---

void Placer::keep(Tier tier, size_t chosen, const size_t* session, const size_t* first,
                  const size_t* second) {
  Kept& kept = kept_[static_cast<size_t>(tier)];
  kept = Kept{};
  kept.candidate_count = static_cast<int64_t>(candidates_.size());
  kept.equal_count = first != nullptr ? static_cast<int32_t>(equal_.size()) : 0;
  const size_t room = std::min(candidates_.size(), DecisionRecord::kCandidatesMax);
  std::vector<size_t> listed;
  const auto list = [&](const size_t* index) {
    if (index == nullptr) return -1;
    const auto at = std::find(listed.begin(), listed.end(), *index);
    if (at == listed.end()) listed.push_back(*index);
    return static_cast<int32_t>(std::find(listed.begin(), listed.end(), *index) - listed.begin());
  };
  kept.chosen = list(&chosen);
  kept.session = list(session);
  kept.first_drawn = list(first);
  kept.second_drawn = list(second);
  std::vector<size_t> order(candidates_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(room), order.end(),
                    [&](size_t a, size_t b) {
                      return candidates_[a].completion_s < candidates_[b].completion_s;
                    });
  for (size_t i = 0; i < room && listed.size() < std::max<size_t>(room, 5); ++i) list(&order[i]);
  for (const size_t index : listed) kept.candidates.push_back(candidates_[index]);
}

DecisionRecord Placer::record(const Wish& wish, Tier tier) const {
  const Kept& kept = kept_[static_cast<size_t>(tier)];
  DecisionRecord record;
  record.model = registry_.model_id(wish.model);
  record.request = terms(wish);
  record.candidate_count = kept.candidate_count;
  record.equal_count = kept.equal_count;
  record.session = kept.session;
  record.first_drawn = kept.first_drawn;
  record.second_drawn = kept.second_drawn;
  record.chosen = kept.chosen;
  for (const Candidate& candidate : kept.candidates) {
    record.candidates.push_back(
        {registry_.node(candidate.node).hello.node_id,
         terms(candidate.node, candidate.free_slots, candidate.cached_tokens)});
  }
  return record;
}

DecisionRecord Placer::record_pulled(const Wish& wish, NodeIndex node) const {
  DecisionRecord record;
  record.model = registry_.model_id(wish.model);
  record.request = terms(wish);
  record.candidate_count = record.equal_count = 1;
  record.candidates.push_back({registry_.node(node).hello.node_id, terms(node, 0, 0)});
  record.chosen = 0;
  return record;
}

uint64_t Placer::next_random() {  // splitmix64
  uint64_t z = (random_ += 0x9E3779B97F4A7C15ULL);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

// --- why not ---

RequestError Placer::too_long(const Wish& wish, int64_t limit) const {
  const bool counted = wish.counted_tokens > 0 || wish.estimate.text_bytes_max == 0;
  const int64_t need =
      wish.counted_tokens > 0 ? wish.counted_tokens
      : counted ? wish.estimate.exact_tokens_max + std::max(1, wish.estimate.wanted_tokens)
                : wish.prompt_tokens + std::max(1, wish.estimate.wanted_tokens);
  RequestError error;
  error.code = ErrorCode::kContextLength;
  error.message = std::string("the request needs ") + (counted ? "" : "about ") +
                  std::to_string(need) + " tokens, more than the largest context of model '" +
                  registry_.model_id(wish.model) + "' in this pool, " + std::to_string(limit) +
                  " tokens";
  error.param = wish.estimate.overhead_tokens > 0 ? "messages" : "prompt";
  error.prompt_tokens =
      static_cast<int32_t>(std::min<int64_t>(need, std::numeric_limits<int32_t>::max()));
  error.limit_tokens = static_cast<int32_t>(limit);
  return error;
}

RequestError Placer::never(const Wish& wish, const Survey& seen, int64_t now_ns) const {
  const std::string& model = registry_.model_id(wish.model);
  RequestError error;
  error.code = ErrorCode::kOverloaded;
  error.retry_after_ms = UPDRAFT_PLANT(kNoRetryAfter) ? 0 : kNoNodeRetryMs;
  const Tier tier = wish.local_only ? Tier::kEdge : wish.tier;
  const std::string node_of_tier =
      tier == Tier::kAny ? "node" : std::string(tier_name(tier)) + " node";
  if (!seen.any_of_tier) {
    error.message = "no " + node_of_tier + " that serves model '" + model + "' is connected";
    return error;
  }
  if (!seen.any_with_images) {
    error.code = ErrorCode::kUnsupported;
    error.message = "no " + node_of_tier + " accepts images for model '" + model + "'";
    error.param = "messages";
    error.retry_after_ms = 0;
    return error;
  }
  if (seen.only_excluded && wish.refused_limit_tokens == 0) {
    error.code = ErrorCode::kNodeLost;
    error.message = "the node that had the request was lost and no other " + node_of_tier +
                    " serves model '" + model + "'";
    return error;
  }
  const int64_t need = wish.counted_tokens > 0
                           ? std::max<int64_t>(wish.counted_tokens, wish.refused_limit_tokens + 1)
                           : wish.estimate.prompt_tokens_least() + 1;
  // A node of another tier that is gone would not have helped an edge-only request.
  const int64_t lost = tier == Tier::kEdge ? 0 : registry_.lost_context_tokens(wish.model, now_ns);
  const int64_t absent = std::max(seen.limit_tokens_idle, lost);
  if (absent >= need && absent > wish.refused_limit_tokens) {
    error.message = seen.any_taking_work ? "the " + node_of_tier + "s of model '" + model +
                                               "' wide enough for this request are not available"
                                         : "every " + node_of_tier + " that serves model '" +
                                               model + "' is loading or draining";
    return error;
  }
  return too_long(wish, std::max<int64_t>(seen.limit_tokens_any, wish.refused_limit_tokens));
}

}  // namespace updraft
