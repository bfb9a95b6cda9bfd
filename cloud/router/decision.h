// Why a request went where it went: what placement saw, compact enough for a field of a log line,
// and complete enough to be decided again from it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cloud/router/placement_rule.h"
#include "common/base/result.h"

namespace updraft {

struct DecisionRecord {
  static constexpr size_t kCandidatesMax = 12;

  std::string model;
  std::string reason;  // reason_label()
  RequestTerms request;
  // Of the chosen tier, the nodes that had room; more than are listed in a large pool: those that
  // decided it, then the best of the others.
  int64_t candidate_count = 0;
  int32_t equal_count = 0;  // as good as the best
  struct Candidate {
    std::string node_id;
    NodeTerms terms;
  };
  std::vector<Candidate> candidates;
  // Indexes into candidates; -1: none.
  int32_t session = -1;  // where the session was last
  int32_t first_drawn = -1;
  int32_t second_drawn = -1;
  int32_t chosen = -1;
};

// "1;model=demo;..." without spaces or quotes.
std::string to_text(const DecisionRecord& record);
// Errors name the field.
Result<DecisionRecord> parse_decision(std::string_view text);
// The text inside a line of a log, as text or JSON ("decision=..." or "decision":"..."); empty when
// there is none.
std::string_view find_decision(std::string_view line);

// Decides again. `chosen` as an index into the candidates, and why in a few words.
struct Replay {
  int32_t chosen = -1;
  std::string why;
  std::vector<double> completion_s;  // [candidate]
};
Replay replay(const DecisionRecord& record);

}  // namespace updraft
