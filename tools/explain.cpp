// updraft explain: why a request went to its node, from the router's log line about it, decided
// again by the rule that places requests.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "cloud/router/decision.h"
#include "tools/command.h"

namespace updraft {
namespace {

struct ExplainFlags {
  std::string file = "-";
  std::string id;
};

std::string rate(float tokens_per_s) {
  return tokens_per_s > 0 ? std::to_string(std::lround(tokens_per_s)) : "assumed";
}

void print_table(const DecisionRecord& record, const Replay& again) {
  std::vector<size_t> order(record.candidates.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return again.completion_s[a] < again.completion_s[b];
  });
  std::printf("  %-20s %-5s %10s %5s %8s %8s %7s %9s %9s %7s %7s  %s\n", "node", "tier",
              "done in s", "free", "requests", "ahead", "cached", "prefill/s", "decode/s", "rtt ms",
              "price s", "");
  for (const size_t i : order) {
    const DecisionRecord::Candidate& candidate = record.candidates[i];
    const NodeTerms& t = candidate.terms;
    const auto index = static_cast<int32_t>(i);
    std::string marks;
    if (index == record.chosen) marks += " <- chosen";
    if (index == record.session) marks += ", its session was here";
    if (index == record.first_drawn || index == record.second_drawn) marks += ", drawn";
    if (t.silent) marks += ", silent";
    if (marks.starts_with(", ")) marks.erase(0, 2);
    std::printf("  %-20s %-5s %10.3f %5d %8d %8lld %7lld %9s %9s %7.1f %7.2f %s\n",
                candidate.node_id.c_str(), tier_name(t.tier), again.completion_s[i], t.free_slots,
                t.requests, static_cast<long long>(t.tokens_ahead),
                static_cast<long long>(t.cached_tokens), rate(t.prefill_tokens_per_s).c_str(),
                rate(t.decode_tokens_per_s).c_str(), t.rtt_s * 1e3, t.price_s, marks.c_str());
  }
  const int64_t more = record.candidate_count - static_cast<int64_t>(record.candidates.size());
  if (more > 0)
    std::printf("  and %lld more, none of them done sooner\n", static_cast<long long>(more));
}

// Whether the record says what the rule says.
bool explain(const DecisionRecord& record) {
  const Replay again = replay(record);
  const auto id_of = [&](int32_t i) { return record.candidates[static_cast<size_t>(i)].node_id; };
  std::printf("model %s: %lld prompt tokens, %lld to answer, %lld bytes: %s\n",
              record.model.c_str(), static_cast<long long>(record.request.prompt_tokens),
              static_cast<long long>(record.request.answer_tokens),
              static_cast<long long>(record.request.payload_bytes), record.reason.c_str());
  print_table(record, again);
  const bool same = again.chosen == record.chosen;
  if (same) {
    std::printf("%s: %s\n", id_of(record.chosen).c_str(), again.why.c_str());
  } else {
    std::printf("recorded %s, but this program would choose %s: %s\n", id_of(record.chosen).c_str(),
                id_of(again.chosen).c_str(), again.why.c_str());
  }
  return same;
}

int run(const ExplainFlags& flags) {
  std::ifstream file;
  if (flags.file != "-") {
    file.open(flags.file);
    if (!file) return complain("cannot read " + flags.file);
  }
  std::istream& in = flags.file == "-" ? std::cin : file;
  int found = 0;
  int differing = 0;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    if (!flags.id.empty() && line.find(flags.id) == std::string::npos) continue;
    const std::string_view text = find_decision(line);
    if (text.empty()) continue;
    const Result<DecisionRecord> record = parse_decision(text);
    if (!record) {
      return complain(flags.file + ": line " + std::to_string(number) + ": " + record.message());
    }
    if (found++ > 0) std::printf("\n");
    differing += explain(*record) ? 0 : 1;
  }
  if (found == 0) {
    return complain((flags.file == "-" ? "standard input" : flags.file) + " has no decision" +
                    (flags.id.empty() ? "" : " of " + flags.id) +
                    "; the router logs one in each line 'placed ... decision=...'");
  }
  return differing == 0 ? 0
                        : complain(std::to_string(differing) + " of " + std::to_string(found) +
                                   " decisions would be made otherwise now");
}

}  // namespace

void add_explain(CLI::App& app, int& exit_status) {
  CLI::App* command = app.add_subcommand(
      "explain", "why a request went to its node, from the router's log line about it");
  auto flags = std::make_shared<ExplainFlags>();
  command->add_option("log", flags->file, "the router's log, or - for standard input");
  command->add_option("--id", flags->id, "only lines that name this request or node");
  command->callback([flags, &exit_status] { exit_status = run(*flags); });
}

}  // namespace updraft
