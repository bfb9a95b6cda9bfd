// See the header.
#include "common/engine/prompt_lookup.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <limits>

#include "common/base/check.h"

namespace updraft {
namespace {

constexpr size_t kEntriesMin = 64;
// A prompt may be made to collide; then older n-grams are forgotten instead of searched for.
constexpr int kProbesMax = 32;

uint64_t hash_gram(std::span<const int32_t> tokens, int32_t end, int32_t n) {
  uint64_t hash = 0;
  for (int32_t i = end - n; i < end; ++i) {
    hash = (hash ^ static_cast<uint32_t>(tokens[static_cast<size_t>(i)])) * 0x9E3779B97F4A7C15U;
    hash ^= hash >> 32;
  }
  return hash * 0xD6E8FEB86659FD93U;
}

// Tokens before a and before b that agree, at most `most`.
int32_t common_tokens(std::span<const int32_t> tokens, int32_t a, int32_t b, int32_t most) {
  most = std::min({most, a, b});
  int32_t count = 0;
  while (count < most &&
         tokens[static_cast<size_t>(a - 1 - count)] == tokens[static_cast<size_t>(b - 1 - count)]) {
    ++count;
  }
  return count;
}

}  // namespace

// The entry of this n-gram, or an empty one for it, or the one that has to give way.
int32_t* PromptLookup::Table::find(std::span<const int32_t> tokens, int32_t end, int32_t n) {
  const size_t mask = ends_.size() - 1;
  const size_t home = static_cast<size_t>(hash_gram(tokens, end, n) >> 32) & mask;
  for (size_t i = home, probe = 0; probe < kProbesMax; i = (i + 1) & mask, ++probe) {
    int32_t& entry = ends_[i];
    if (entry == 0 || common_tokens(tokens, entry, end, n) == n) return &entry;
  }
  return &ends_[home];
}

void PromptLookup::Table::grow(std::span<const int32_t> tokens, int32_t n) {
  std::vector<int32_t> old(std::max(kEntriesMin, 2 * ends_.size()));
  old.swap(ends_);
  used_ = 0;
  for (const int32_t end : old) {
    if (end == 0) continue;
    int32_t& entry = *find(tokens, end, n);
    used_ += entry == 0 ? 1 : 0;
    entry = end;
  }
}

int32_t PromptLookup::Table::replace(std::span<const int32_t> tokens, int32_t end, int32_t n) {
  if (2 * static_cast<size_t>(used_) >= ends_.size()) grow(tokens, n);
  int32_t& entry = *find(tokens, end, n);
  const int32_t before = entry;
  entry = end;
  if (before == 0) {
    ++used_;
    return -1;
  }
  return common_tokens(tokens, before, end, n) == n ? before : -1;
}

PromptLookup::Guess PromptLookup::take(std::span<const int32_t> tokens) {
  UPDRAFT_CHECK(static_cast<size_t>(seen_) < tokens.size());
  Guess guess;
  guess.match_tokens = match_tokens_;
  guess.right =
      match_tokens_ > 0 && tokens[static_cast<size_t>(next_)] == tokens[static_cast<size_t>(seen_)];
  ++seen_;
  int32_t latest = -1;
  int32_t latest_tokens = 0;
  for (int32_t n = kGramTokensMin; n <= std::min(kGramTokensMax, seen_); ++n) {
    const int32_t before =
        tables_[static_cast<size_t>(n - kGramTokensMin)].replace(tokens, seen_, n);
    if (before < 0) continue;
    latest = before;
    latest_tokens = n;
  }
  if (guess.right) {
    ++next_;
    match_tokens_ = std::min(match_tokens_, std::numeric_limits<int32_t>::max() - 1) + 1;
  } else {
    if (match_tokens_ >= kCopyTokensMin) break_ = next_;
    find_place(tokens, latest, latest_tokens);
  }
  return guess;
}

// Where to go on after a wrong guess or none. latest: where the longest n-gram ended before, of
// latest_tokens tokens.
void PromptLookup::find_place(std::span<const int32_t> tokens, int32_t latest,
                              int32_t latest_tokens) {
  match_tokens_ = 0;
  if (break_ >= 0) {
    const int32_t last = std::min(break_ + kResumeTokens, seen_ - 1);
    int32_t most = kGramTokensMin - 1;
    for (int32_t end = break_ + 1; end <= last; ++end) {
      const int32_t agreed = common_tokens(tokens, end, seen_, kGramTokensMax);
      if (agreed <= most) continue;
      most = agreed;
      if (agreed >= latest_tokens) latest = end;
    }
  }
  if (latest < 0) return;
  next_ = latest;
  match_tokens_ = common_tokens(tokens, latest, seen_, kMatchTokensMax);
}

void PromptLookup::guess(std::span<const int32_t> tokens, int32_t count,
                         std::vector<int32_t>& out) const {
  UPDRAFT_CHECK(match_tokens_ > 0 && static_cast<size_t>(seen_) <= tokens.size());
  const size_t first = out.size();
  for (int32_t i = next_; i < next_ + count; ++i) {
    // A place so close that the guess runs into its own beginning repeats it.
    out.push_back(i < seen_ ? tokens[static_cast<size_t>(i)]
                            : out[first + static_cast<size_t>(i - seen_)]);
  }
}

}  // namespace updraft
