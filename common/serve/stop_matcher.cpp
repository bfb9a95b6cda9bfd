// At most 16 strings and a few bytes of text per token: plain searching is faster than any
// automaton here.
#include "common/serve/stop_matcher.h"

#include <algorithm>

namespace updraft {
namespace {

// Length of the longest end of `text` that begins `stop` without being all of it.
size_t held_suffix_bytes(std::string_view text, std::string_view stop) {
  for (size_t bytes = std::min(text.size(), stop.size() - 1); bytes > 0; --bytes) {
    if (text.substr(text.size() - bytes) == stop.substr(0, bytes)) return bytes;
  }
  return 0;
}

}  // namespace

std::string StopMatcher::push(std::string_view text) {
  if (matched_) return {};
  std::string all = std::move(held_);
  held_.clear();
  all += text;
  // The string that is complete first ends the answer, as if text came byte by byte: how it was cut
  // into pieces must not matter. Of those that end at one place the longest counts.
  size_t cut = std::string::npos;
  size_t cut_end = std::string::npos;
  size_t hold = 0;
  for (const std::string& stop : stops_) {
    hold = std::max(hold, held_suffix_bytes(all, stop));
    const size_t begin = all.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (cut_end == std::string::npos || end < cut_end || (end == cut_end && begin < cut)) {
      cut = begin;
      cut_end = end;
    }
  }
  if (cut != std::string::npos) {
    matched_ = true;
    all.resize(cut);
    return all;
  }
  held_ = all.substr(all.size() - hold);
  all.resize(all.size() - hold);
  return all;
}

std::string StopMatcher::flush() {
  std::string out = std::move(held_);
  held_.clear();
  return out;
}

}  // namespace updraft
