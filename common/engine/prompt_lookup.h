// Prompt lookup: guesses a sequence's next tokens from what it already holds. Text that repeats its
// context (an echo, an edit, an entry of a list) goes on as it went on the last time. Owned by the
// engine thread, one per sequence; pure.
//
// The idea: follow one earlier place token by token for as long as it guesses right. Only after a
// wrong guess is a new place looked up, in a table from the newest n-gram to its last position. So
// a token costs three table entries, whatever the sequence's length.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace updraft {

class PromptLookup {
 public:
  // n-grams that are looked up, the longest first.
  static constexpr int32_t kGramTokensMin = 2;
  static constexpr int32_t kGramTokensMax = 4;
  // A copy of so many tokens that breaks off is expected to go on close behind: an edit changes,
  // adds or leaves out a little and then copies on. Among places that share the same n-gram, one
  // within kResumeTokens behind the break is taken before the latest one.
  static constexpr int32_t kCopyTokensMin = 8;
  static constexpr int32_t kResumeTokens = 64;
  // Agreement beyond this is not counted when a place is found.
  static constexpr int32_t kMatchTokensMax = 32;

  // What was guessed for a token before it came.
  struct Guess {
    int32_t match_tokens = 0;  // tokens before it that agreed; 0: nothing was guessed
    bool right = false;
  };
  // Takes in the token tokens[seen()]. tokens: the sequence so far, prompt first, at least one
  // token longer than what was taken in; earlier tokens do not change.
  Guess take(std::span<const int32_t> tokens);

  int32_t seen() const { return seen_; }
  // Newest tokens that agree with the place that is followed; 0: there is no such place, no guess.
  int32_t match_tokens() const { return match_tokens_; }
  // The `count` tokens that would follow tokens[seen() - 1], appended to `out`. match_tokens() > 0.
  void guess(std::span<const int32_t> tokens, int32_t count, std::vector<int32_t>& out) const;

 private:
  // From an n-gram to its last end (the position of the token after it). Open addressing; the
  // tokens themselves decide what is equal, so the table holds positions alone: at most 16 bytes
  // per token of the sequence.
  class Table {
   public:
    // Notes that the n tokens before `end` end there; returns where they ended before, -1: nowhere.
    int32_t replace(std::span<const int32_t> tokens, int32_t end, int32_t n);

   private:
    int32_t* find(std::span<const int32_t> tokens, int32_t end, int32_t n);
    void grow(std::span<const int32_t> tokens, int32_t n);
    std::vector<int32_t> ends_;  // 0: empty; a power of two of them
    int32_t used_ = 0;
  };

  void find_place(std::span<const int32_t> tokens, int32_t latest, int32_t latest_tokens);

  std::array<Table, kGramTokensMax - kGramTokensMin + 1> tables_;
  int32_t seen_ = 0;
  int32_t next_ = 0;  // position of the token that is guessed next, < seen_; with match_tokens_ > 0
  int32_t match_tokens_ = 0;
  int32_t break_ = -1;  // position of the token where the last long copy guessed wrong
};

}  // namespace updraft
