// See the header.
#include "cloud/router/placement_rule.h"

namespace updraft {
namespace {

// Candidates this close to the best count as equal; a session's own node may be this much worse.
constexpr double kEqualFactor = 1.1;
constexpr double kSessionFactor = 1.5;
constexpr double kSessionSlackS = 0.1;
// SGLang's gateway takes the same two bounds as the sign of imbalance.
constexpr int32_t kCacheRequestsMore = 64;
constexpr double kCacheRequestsFactor = 1.5;
constexpr double kCacheRequestsFew = 8.0;

}  // namespace

bool cache_counts(int32_t requests, int32_t requests_min) {
  return requests <= requests_min + kCacheRequestsMore &&
         requests <= kCacheRequestsFactor * requests_min + kCacheRequestsFew;
}

bool session_keeps(double completion, double best_s) {
  return completion <= best_s * kSessionFactor + kSessionSlackS;
}

bool equally_good(double completion, double best_s) { return completion <= best_s * kEqualFactor; }

}  // namespace updraft
