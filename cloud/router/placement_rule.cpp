// See the header.
#include "cloud/router/placement_rule.h"

#include <algorithm>

namespace updraft {
namespace {

// Rates of a node that has measured none yet: a small gateway, a modest GPU.
constexpr double kEdgePrefillTokensPerS = 60.0;
constexpr double kEdgeDecodeTokensPerS = 8.0;
constexpr double kCloudPrefillTokensPerS = 2000.0;
constexpr double kCloudDecodeTokensPerS = 30.0;

// A silent node costs this much more than its figures say.
constexpr double kSilentFactor = 1.5;
constexpr double kSilentPenaltyS = 0.25;
// Candidates this close to the best count as equal; a session's own node may be this much worse.
constexpr double kEqualFactor = 1.1;
constexpr double kSessionFactor = 1.5;
constexpr double kSessionSlackS = 0.1;
// SGLang's gateway takes the same two bounds as the sign of imbalance.
constexpr int32_t kCacheRequestsMore = 64;
constexpr double kCacheRequestsFactor = 1.5;
constexpr double kCacheRequestsFew = 8.0;

}  // namespace

double completion_s(const RequestTerms& request, const NodeTerms& node) {
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

bool cache_counts(int32_t requests, int32_t requests_min) {
  return requests <= requests_min + kCacheRequestsMore &&
         requests <= kCacheRequestsFactor * requests_min + kCacheRequestsFew;
}

bool session_keeps(double completion, double best_s) {
  return completion <= best_s * kSessionFactor + kSessionSlackS;
}

bool equally_good(double completion, double best_s) { return completion <= best_s * kEqualFactor; }

}  // namespace updraft
