// Prompt lookup against its rule written out naively: every place searched for from scratch, no
// table, no memory of more than the header promises.
#include "common/engine/prompt_lookup.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

using namespace updraft;

namespace {

using Tokens = std::vector<int32_t>;

// The rule, by search: which place is followed after `seen` tokens.
class NaiveLookup {
 public:
  PromptLookup::Guess take(const Tokens& tokens) {
    const PromptLookup::Guess guess{match, match > 0 && tokens[next] == tokens[seen]};
    ++seen;
    if (guess.right) {
      ++next;
      ++match;
      return guess;
    }
    if (match >= 8) broken = static_cast<int>(next);
    match = 0;
    for (int n = 4; n >= 2 && match == 0; --n) {
      // Close behind the break, the nearest first; else anywhere, the latest first.
      for (int end = broken + 1; broken >= 0 && end <= broken + 64 && match == 0; ++end) {
        try_place(tokens, end, n);
      }
      for (int end = static_cast<int>(seen) - 1; end >= n && match == 0; --end) {
        try_place(tokens, end, n);
      }
    }
    return guess;
  }

  Tokens guess(Tokens tokens, int count) const {
    Tokens out;
    for (int i = 0; i < count; ++i) {
      out.push_back(tokens[next + static_cast<size_t>(i)]);
      tokens.push_back(out.back());
    }
    return out;
  }

  size_t seen = 0;
  size_t next = 0;
  int match = 0;
  int broken = -1;

 private:
  void try_place(const Tokens& tokens, int end, int n) {
    if (end < n || end >= static_cast<int>(seen)) return;
    const auto suffix = [&](int at, int length) {
      return Tokens(tokens.begin() + (at - length), tokens.begin() + at);
    };
    const int newest = static_cast<int>(seen);
    if (suffix(end, n) != suffix(newest, n)) return;
    match = n;
    next = static_cast<size_t>(end);
    while (match < 32 && match < end && suffix(end, match + 1) == suffix(newest, match + 1)) {
      ++match;
    }
  }
};

Tokens guess_of(const PromptLookup& lookup, const Tokens& tokens, int count) {
  Tokens out;
  lookup.guess(tokens, count, out);
  return out;
}

void take_all(PromptLookup& lookup, const Tokens& tokens) {
  while (lookup.seen() < static_cast<int>(tokens.size())) lookup.take(tokens);
}

}  // namespace

TEST_CASE("the newest tokens' last occurrence says what follows, the longest n-gram first") {
  PromptLookup lookup;
  // "3 4 5" stands once, before 6; "4 5" alone again later, before 9.
  const Tokens tokens = {1, 2, 3, 4, 5, 6, 7, 4, 5, 9, 3, 4, 5};
  take_all(lookup, tokens);
  CHECK(lookup.match_tokens() == 3);
  CHECK(guess_of(lookup, tokens, 4) == Tokens{6, 7, 4, 5});
}

TEST_CASE("among equal n-grams the latest is followed") {
  PromptLookup lookup;
  const Tokens tokens = {1, 2, 10, 1, 2, 11, 1, 2};
  take_all(lookup, tokens);
  CHECK(guess_of(lookup, tokens, 1) == Tokens{11});
}

TEST_CASE("nothing repeats, nothing is guessed") {
  PromptLookup lookup;
  Tokens tokens;
  for (int i = 0; i < 200; ++i) {
    tokens.push_back(i);
    CHECK(lookup.take(tokens).match_tokens == 0);
    CHECK(lookup.match_tokens() == 0);
  }
}

TEST_CASE("a loop is guessed past its own end") {
  PromptLookup lookup;
  const Tokens tokens = {8, 1, 2, 3, 1, 2, 3, 1, 2};
  take_all(lookup, tokens);
  CHECK(guess_of(lookup, tokens, 7) == Tokens{3, 1, 2, 3, 1, 2, 3});
}

TEST_CASE("a copy that breaks off for an edit goes on behind the edit, not at a later look-alike") {
  // Records that all end in "50 51 52"; the first is copied with one value changed.
  Tokens tokens;
  for (int record = 0; record < 4; ++record) {
    for (int i = 0; i < 10; ++i) tokens.push_back(100 * record + i);
    tokens.insert(tokens.end(), {50, 51, 52, 53, 900 + record});
  }
  const Tokens source(tokens.begin(), tokens.begin() + 30);
  PromptLookup lookup;
  take_all(lookup, tokens);
  for (int i = 0; i < 10; ++i) tokens.push_back(source[static_cast<size_t>(i)]);
  tokens.push_back(77);  // instead of 50
  tokens.insert(tokens.end(), {51, 52});
  take_all(lookup, tokens);
  CHECK(guess_of(lookup, tokens, 4) == Tokens{53, 900, 100, 101});
}

TEST_CASE("on random texts of every kind the guesses are those of the naive rule") {
  int64_t guessed = 0;
  int64_t right = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const int vocab = 2 + static_cast<int>(random() % 30);
    PromptLookup lookup;
    NaiveLookup naive;
    Tokens tokens;
    while (tokens.size() < 700) {
      // A fresh piece, or a copy of an old one with an edit now and then.
      const bool copy = tokens.size() > 20 && random() % 2 == 0;
      size_t from = copy ? random() % tokens.size() : 0;
      for (size_t left = 1 + random() % 40; left > 0; --left) {
        const bool edit = random() % 12 == 0;
        const auto fresh = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
        tokens.push_back(copy && !edit ? tokens[from] : fresh);
        from += !edit || random() % 2 == 0 ? 1 : 0;
        const PromptLookup::Guess a = lookup.take(tokens);
        const PromptLookup::Guess b = naive.take(tokens);
        REQUIRE(a.match_tokens == b.match_tokens);
        REQUIRE(a.right == b.right);
        REQUIRE(lookup.match_tokens() == naive.match);
        guessed += a.match_tokens > 0 ? 1 : 0;
        right += a.right ? 1 : 0;
        if (naive.match > 0) REQUIRE(guess_of(lookup, tokens, 6) == naive.guess(tokens, 6));
      }
    }
  }
  CHECK(guessed > 10'000);
  CHECK(right > 5'000);
}
