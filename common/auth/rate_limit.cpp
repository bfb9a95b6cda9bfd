// See the header. The algorithm: ATM Forum, Traffic Management 4.1, section 4.4.2 (GCRA as virtual
// scheduling).
#include "common/auth/rate_limit.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/base/check.h"
#include "common/base/clock.h"

namespace updraft {
namespace {

constexpr int64_t kMinuteNs = 60 * kNsPerSecond;
constexpr int64_t kCostNsMax = 24LL * 3600 * kNsPerSecond;  // of one request: a debt of a day

int64_t cost_ns(int64_t amount, int64_t per_minute) {
  const double cost = static_cast<double>(amount) * static_cast<double>(kMinuteNs) /
                      static_cast<double>(per_minute);
  return static_cast<int64_t>(std::min(cost, static_cast<double>(kCostNsMax)));
}

// Nanoseconds until `amount` fits; 0 or less: now.
int64_t wait_ns(int64_t until_ns, int64_t amount, int64_t per_minute, int64_t now_ns) {
  const int64_t room_from_ns =
      std::max(until_ns, now_ns) + std::min(cost_ns(amount, per_minute), kMinuteNs) - kMinuteNs;
  return room_from_ns - now_ns;
}

RateLimits::Refusal refusal(const char* what, int64_t limit, int64_t after_ns) {
  return {what, limit, std::max<int64_t>(1, (after_ns + kNsPerMs - 1) / kNsPerMs)};
}

}  // namespace

RateLimits::Room RateLimits::room(std::string_view tenant, const KeyLimits& limits,
                                  int64_t now_ns) const {
  const auto known = uses_.find(std::string(tenant));
  const Use use = known == uses_.end() ? Use() : known->second;
  const auto left = [&](int64_t until_ns, int64_t per_minute) {
    Left out;
    out.limit = per_minute;
    const int64_t spoken_for_ns = std::max<int64_t>(0, until_ns - now_ns);
    const auto room_ns = static_cast<double>(std::max<int64_t>(0, kMinuteNs - spoken_for_ns));
    // Shares of a minute are rounded down to nanoseconds: a hair more than a whole one is one.
    out.remaining = static_cast<int64_t>(
        room_ns / static_cast<double>(kMinuteNs) * static_cast<double>(per_minute) + 1e-3);
    out.reset_ms = (spoken_for_ns + kNsPerMs - 1) / kNsPerMs;
    return out;
  };
  return {left(use.requests_until_ns, limits.requests_per_minute),
          left(use.tokens_until_ns, limits.tokens_per_minute)};
}

RateLimits::Use* RateLimits::find_or_make(std::string_view tenant, int64_t now_ns) {
  std::string key(tenant);
  if (const auto known = uses_.find(key); known != uses_.end()) return &known->second;
  if (uses_.size() >= tenants_max_) {
    std::erase_if(uses_, [&](const auto& entry) {
      const Use& use = entry.second;
      return use.running == 0 && use.requests_until_ns <= now_ns && use.tokens_until_ns <= now_ns;
    });
    if (uses_.size() >= tenants_max_) return nullptr;
  }
  return &uses_[std::move(key)];
}

std::variant<RateLimits::Ticket, RateLimits::Refusal> RateLimits::admit(std::string_view tenant,
                                                                        const KeyLimits& limits,
                                                                        int64_t tokens,
                                                                        int64_t now_ns) {
  Ticket ticket{std::string(tenant), limits, tokens, now_ns};
  if (limits == KeyLimits{}) return ticket;
  Use* use = find_or_make(tenant, now_ns);
  if (use == nullptr)
    return refusal("tenants at once", static_cast<int64_t>(tenants_max_), kNsPerSecond);
  if (limits.concurrent > 0 && use->running >= limits.concurrent) {
    const double seconds = std::clamp(use->seconds / static_cast<double>(use->running), 0.1, 60.0);
    return refusal("requests at once", limits.concurrent,
                   static_cast<int64_t>(seconds * static_cast<double>(kNsPerSecond)));
  }
  // The longer of both waits, so that whoever comes back then is let in.
  int64_t requests_wait_ns = 0;
  int64_t tokens_wait_ns = 0;
  if (limits.requests_per_minute > 0) {
    requests_wait_ns = wait_ns(use->requests_until_ns, 1, limits.requests_per_minute, now_ns);
  }
  if (limits.tokens_per_minute > 0) {
    tokens_wait_ns = wait_ns(use->tokens_until_ns, tokens, limits.tokens_per_minute, now_ns);
  }
  if (tokens_wait_ns > 0 && tokens_wait_ns >= requests_wait_ns)
    return refusal("tokens per minute", limits.tokens_per_minute, tokens_wait_ns);
  if (requests_wait_ns > 0)
    return refusal("requests per minute", limits.requests_per_minute, requests_wait_ns);
  if (limits.requests_per_minute > 0) {
    use->requests_until_ns =
        std::max(use->requests_until_ns, now_ns) + cost_ns(1, limits.requests_per_minute);
  }
  if (limits.tokens_per_minute > 0) {
    use->tokens_until_ns =
        std::max(use->tokens_until_ns, now_ns) + cost_ns(tokens, limits.tokens_per_minute);
  }
  ++use->running;
  return ticket;
}

void RateLimits::settle(const Ticket& ticket, int64_t tokens_used, int64_t now_ns) {
  if (ticket.limits == KeyLimits{}) return;
  const auto known = uses_.find(ticket.tenant);  // kept while something runs
  UPDRAFT_CHECK(known != uses_.end() && known->second.running > 0, "a ticket was settled twice");
  Use& use = known->second;
  --use.running;
  const double took_s =
      static_cast<double>(now_ns - ticket.admitted_ns) / static_cast<double>(kNsPerSecond);
  use.seconds += 0.2 * (took_s - use.seconds);
  const int64_t per_minute = ticket.limits.tokens_per_minute;
  if (per_minute > 0)
    use.tokens_until_ns += cost_ns(tokens_used, per_minute) - cost_ns(ticket.tokens, per_minute);
}

}  // namespace updraft
