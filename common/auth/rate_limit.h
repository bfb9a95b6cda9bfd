// How much each tenant has used, and whether one more request fits its limits. Pure: time comes in
// as now_ns. One owner drives it (the HTTP server's io thread).
//
// The one idea: a limit per minute is a moment until which the allowance is spoken for (the generic
// cell rate algorithm). A request moves it on by its share of the minute; while it is less than a
// minute ahead there is room. Tokens are charged by an estimate and settled by what was used, so
// an estimate that was too high is given back and one that was too low is paid later.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>

#include "common/auth/principal.h"

namespace updraft {

class RateLimits {
 public:
  // tenants_max: tenants whose use is remembered; one at rest gives way to a new one.
  explicit RateLimits(size_t tenants_max = 65'536) : tenants_max_(tenants_max) {}

  struct Refusal {
    const char* what = "";  // "requests per minute", "tokens per minute", "requests at once"
    int64_t limit = 0;
    int64_t retry_after_ms = 0;  // when the same request fits if nothing else comes; > 0
  };
  // A request let in. Given back exactly once, by settle().
  struct Ticket {
    std::string tenant;
    KeyLimits limits;    // it was let in by; a later change does not touch it
    int64_t tokens = 0;  // charged
    int64_t admitted_ns = 0;
  };

  // tokens: the estimate of prompt and answer, >= 0. One that alone is more than a minute's
  // allowance is let in when nothing of it is spoken for.
  std::variant<Ticket, Refusal> admit(std::string_view tenant, const KeyLimits& limits,
                                      int64_t tokens, int64_t now_ns);
  // The request has ended, having used so many tokens.
  void settle(const Ticket& ticket, int64_t tokens_used, int64_t now_ns);

  // What is left of a limit per minute.
  struct Left {
    int64_t limit = 0;  // 0: there is none
    int64_t remaining = 0;
    int64_t reset_ms = 0;  // until all of it is there again if nothing else comes
  };
  struct Room {
    Left requests, tokens;
  };
  Room room(std::string_view tenant, const KeyLimits& limits, int64_t now_ns) const;

  size_t tenants() const { return uses_.size(); }

 private:
  struct Use {
    int64_t requests_until_ns = 0;
    int64_t tokens_until_ns = 0;
    int64_t running = 0;
    double seconds = 1.0;  // of a request, moving average
  };
  Use* find_or_make(std::string_view tenant, int64_t now_ns);

  const size_t tenants_max_;
  std::unordered_map<std::string, Use> uses_;
};

}  // namespace updraft
