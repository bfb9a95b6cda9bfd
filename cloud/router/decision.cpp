// See the header.
#include "cloud/router/decision.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <map>

#include "common/base/bytes.h"

namespace updraft {
namespace {

// What separates fields, and what a log's own form would have to escape.
bool plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_' || c == '.' || c == '/' || c == '@' || c == '+';
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (plain(c)) {
      out += c;
      continue;
    }
    char hex[4];
    std::snprintf(hex, sizeof hex, "%%%02X", static_cast<unsigned char>(c));
    out += hex;
  }
  return out;
}

Result<std::string> unescaped(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    unsigned value = 0;
    const char* begin = text.data() + i + 1;
    if (i + 2 >= text.size() || std::from_chars(begin, begin + 2, value, 16).ptr != begin + 2) {
      return fail("'" + printable(std::string(text)) + "' has a broken % escape");
    }
    out += static_cast<char>(value);
    i += 2;
  }
  return out;
}

// Enough digits that reading gives the same number.
std::string number(float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  return {text, end};
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> out;
  while (true) {
    const size_t end = text.find(at);
    out.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return out;
    text.remove_prefix(end + 1);
  }
}

template <typename T>
bool read(std::string_view text, T* value) {
  const char* end = text.data() + text.size();
  return !text.empty() && std::from_chars(text.data(), end, *value).ptr == end;
}

Result<DecisionRecord::Candidate> parse_candidate(std::string_view text) {
  const std::vector<std::string_view> parts = split(text, ':');
  DecisionRecord::Candidate candidate;
  NodeTerms& t = candidate.terms;
  int silent = 0;
  const bool good = parts.size() == 12 && (parts[1] == "edge" || parts[1] == "cloud") &&
                    read(parts[2], &silent) && read(parts[3], &t.free_slots) &&
                    read(parts[4], &t.requests) && read(parts[5], &t.tokens_ahead) &&
                    read(parts[6], &t.cached_tokens) && read(parts[7], &t.prefill_tokens_per_s) &&
                    read(parts[8], &t.decode_tokens_per_s) && read(parts[9], &t.rtt_s) &&
                    read(parts[10], &t.uplink_bytes_per_s) && read(parts[11], &t.price_s);
  if (!good) return fail("candidate '" + printable(std::string(text)) + "' has not its 12 fields");
  candidate.node_id = std::string(parts[0]);
  t.tier = parts[1] == "edge" ? Tier::kEdge : Tier::kCloud;
  t.silent = silent != 0;
  return candidate;
}

}  // namespace

std::string to_text(const DecisionRecord& record) {
  std::string out = "1;model=" + escaped(record.model) + ";reason=" + escaped(record.reason);
  const auto add = [&](const char* name, int64_t value) {
    out += std::string(";") + name + "=" + std::to_string(value);
  };
  add("prompt", record.request.prompt_tokens);
  add("answer", record.request.answer_tokens);
  add("bytes", record.request.payload_bytes);
  add("of", record.candidate_count);
  add("equal", record.equal_count);
  add("session", record.session);
  add("first", record.first_drawn);
  add("second", record.second_drawn);
  add("chosen", record.chosen);
  const char* before = ";nodes=";
  for (const DecisionRecord::Candidate& candidate : record.candidates) {
    const NodeTerms& t = candidate.terms;
    out += before + candidate.node_id + ':' + tier_name(t.tier) + ':' + (t.silent ? '1' : '0') +
           ':' + std::to_string(t.free_slots) + ':' + std::to_string(t.requests) + ':' +
           std::to_string(t.tokens_ahead) + ':' + std::to_string(t.cached_tokens) + ':' +
           number(t.prefill_tokens_per_s) + ':' + number(t.decode_tokens_per_s) + ':' +
           number(t.rtt_s) + ':' + number(t.uplink_bytes_per_s) + ':' + number(t.price_s);
    before = ",";
  }
  return out;
}

Result<DecisionRecord> parse_decision(std::string_view text) {
  DecisionRecord record;
  std::vector<std::string_view> fields = split(text, ';');
  if (fields[0] != "1") {
    return fail("decision of form '" + printable(std::string(fields[0].substr(0, 20))) +
                "', this program reads form 1");
  }
  std::map<std::string_view, std::string_view> by_name;
  for (size_t i = 1; i < fields.size(); ++i) {
    const size_t equals = fields[i].find('=');
    if (equals == std::string_view::npos)
      return fail("field '" + printable(std::string(fields[i])) + "' has no value");
    by_name[fields[i].substr(0, equals)] = fields[i].substr(equals + 1);
  }
  std::string missing;
  const auto take = [&](const char* name, auto* value) {
    const auto at = by_name.find(name);
    if (at == by_name.end() || !read(at->second, value)) missing = name;
  };
  take("prompt", &record.request.prompt_tokens);
  take("answer", &record.request.answer_tokens);
  take("bytes", &record.request.payload_bytes);
  take("of", &record.candidate_count);
  take("equal", &record.equal_count);
  take("session", &record.session);
  take("first", &record.first_drawn);
  take("second", &record.second_drawn);
  take("chosen", &record.chosen);
  if (!missing.empty()) return fail("field '" + missing + "' is missing or no number");
  Result<std::string> model = unescaped(by_name["model"]);
  if (!model) return model.error();
  record.model = *model;
  Result<std::string> reason = unescaped(by_name["reason"]);
  if (!reason) return reason.error();
  record.reason = *reason;
  if (by_name["nodes"].empty()) return fail("field 'nodes' is missing");
  for (const std::string_view part : split(by_name["nodes"], ',')) {
    Result<DecisionRecord::Candidate> candidate = parse_candidate(part);
    if (!candidate) return candidate.error();
    record.candidates.push_back(std::move(*candidate));
  }
  const auto count = static_cast<int32_t>(record.candidates.size());
  for (const int32_t index :
       {record.session, record.first_drawn, record.second_drawn, record.chosen}) {
    if (index < -1 || index >= count) {
      return fail("node " + std::to_string(index) + " of " + std::to_string(count) +
                  " listed ones is named");
    }
  }
  if (record.chosen < 0) return fail("field 'chosen' names no node");
  return record;
}

std::string_view find_decision(std::string_view line) {
  for (const std::string_view name : {"decision=", "\"decision\":\"", "\"decision\": \""}) {
    // "decision" alone may also be the short phrase of x-updraft-decision.
    for (size_t at = line.find(name); at != std::string_view::npos; at = line.find(name, at + 1)) {
      std::string_view value = line.substr(at + name.size());
      if (!value.empty() && value.front() == '"') value.remove_prefix(1);
      value = value.substr(0, value.find_first_of(" \"\t\r\n"));
      if (value.starts_with("1;")) return value;
    }
  }
  return line.starts_with("1;") ? line.substr(0, line.find_first_of(" \"\t\r\n"))
                                : std::string_view();
}

Replay replay(const DecisionRecord& record) {
  Replay out;
  double best_s = 0.0;
  int32_t best = -1;
  for (const DecisionRecord::Candidate& candidate : record.candidates) {
    const double seconds = completion_s(record.request, candidate.terms);
    if (best < 0 || seconds < best_s) {
      best = static_cast<int32_t>(out.completion_s.size());
      best_s = seconds;
    }
    out.completion_s.push_back(seconds);
  }
  const auto at = [&](int32_t index) { return out.completion_s[static_cast<size_t>(index)]; };
  const auto& candidates = record.candidates;
  if (record.session >= 0 && session_keeps(at(record.session), best_s)) {
    out.chosen = record.session;
    out.why = "its session was served there, and it is not much slower than the best";
    return out;
  }
  if (record.first_drawn < 0 || record.second_drawn < 0) {
    out.chosen = best;
    out.why = "it would be done there first";
    return out;
  }
  const auto drawn = {record.first_drawn, record.second_drawn};
  const auto worse = std::find_if(drawn.begin(), drawn.end(),
                                  [&](int32_t i) { return !equally_good(at(i), best_s); });
  if (worse != drawn.end()) {
    out.chosen = best;
    out.why = "it would be done there first; node " +
              candidates[static_cast<size_t>(*worse)].node_id + ", which was drawn, is not as good";
    return out;
  }
  const bool second =
      second_is_emptier(candidates[static_cast<size_t>(record.first_drawn)].terms.free_slots,
                        candidates[static_cast<size_t>(record.second_drawn)].terms.free_slots);
  out.chosen = second ? record.second_drawn : record.first_drawn;
  out.why = record.equal_count <= 1
                ? "it would be done there first"
                : std::string("of ") + std::to_string(record.equal_count) +
                      " that are as good as the best, it is the emptier of two drawn";
  return out;
}

}  // namespace updraft
