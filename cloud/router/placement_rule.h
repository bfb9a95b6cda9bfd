// The arithmetic of a placement, free of tables: what is seen of one node, how long the request
// would take there, and which of several to take. Placer applies it to the pool, `updraft explain`
// to what a log line recorded.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/message/request.h"

namespace updraft {

// What the rule sees of a request.
struct RequestTerms {
  int64_t prompt_tokens = 0;
  int64_t answer_tokens = 0;  // as wanted, or as assumed for an open-ended answer
  int64_t payload_bytes = 0;
};

// What the rule sees of a node.
struct NodeTerms {
  Tier tier = Tier::kCloud;
  bool silent = false;                // suspect or stale
  int32_t free_slots = 0;             // for this router
  int32_t requests = 0;               // running, waiting and on their way
  int64_t tokens_ahead = 0;           // prompts that wait to be prefilled
  int64_t cached_tokens = 0;          // of this prompt, in its prefix cache
  float prefill_tokens_per_s = 0.0F;  // 0: not measured yet
  float decode_tokens_per_s = 0.0F;   // of one sequence
  float rtt_s = 0.0F;
  float uplink_bytes_per_s = 0.0F;  // 0: not measured, or no limit seen
  float price_s = 0.0F;             // its price, weighed: seconds that it may be slower
};

// Rates of a node that has measured none yet: a small gateway, a modest GPU.
inline constexpr double kEdgePrefillTokensPerS = 60.0;
inline constexpr double kEdgeDecodeTokensPerS = 8.0;
inline constexpr double kCloudPrefillTokensPerS = 2000.0;
inline constexpr double kCloudDecodeTokensPerS = 30.0;

// A silent node costs this much more than its figures say.
inline constexpr double kSilentFactor = 1.5;
inline constexpr double kSilentPenaltyS = 0.25;

// Seconds until the answer would be complete there, the price added:
// (wait + uncached prompt / prefill + answer / decode + rtt + payload / uplink) + price.
inline double completion_s(const RequestTerms& request, const NodeTerms& node) {
  const bool edge = node.tier == Tier::kEdge;
  const double prefill = node.prefill_tokens_per_s > 0
                             ? node.prefill_tokens_per_s
                             : (edge ? kEdgePrefillTokensPerS : kCloudPrefillTokensPerS);
  const double decode = node.decode_tokens_per_s > 0
                            ? node.decode_tokens_per_s
                            : (edge ? kEdgeDecodeTokensPerS : kCloudDecodeTokensPerS);
  const int64_t uncached = std::max<int64_t>(0, request.prompt_tokens - node.cached_tokens);
  double seconds = static_cast<double>(node.tokens_ahead + uncached) / prefill +
                   static_cast<double>(request.answer_tokens) / decode + node.rtt_s;
  if (node.uplink_bytes_per_s > 0)
    seconds += static_cast<double>(request.payload_bytes) / node.uplink_bytes_per_s;
  if (node.silent) seconds = seconds * kSilentFactor + kSilentPenaltyS;
  return seconds + node.price_s;
}

// A node's cache counts only while it is not much busier than the idlest candidate: at most 64
// requests more, and at most half as many again (from a few on). Else the node that once held a
// popular prompt would be given every request with it.
bool cache_counts(int32_t requests, int32_t requests_min);

// A session's own node is kept while it is at most this much worse than the best.
bool session_keeps(double completion_s, double best_s);
// As good as the best: two random ones of these are drawn, and the emptier is taken, so that
// several routers that see the same beats do not all pick the same node.
bool equally_good(double completion_s, double best_s);
// Of two that were drawn, whether the second is taken.
inline bool second_is_emptier(int32_t first_free, int32_t second_free) {
  return second_free > first_free;
}

}  // namespace updraft
