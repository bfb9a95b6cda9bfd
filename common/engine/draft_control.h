// How many drafts a step takes: a draft is a guessed token (prompt_lookup.h) that runs as a row of
// its own behind the row that it guesses for, and is kept when the sampler chooses the same token.
// Owned by the engine thread; pure.
//
// The idea: a draft row has a price, the share by which it makes the step longer, and a worth, the
// probability that it becomes a token. Both are measured. A guess need not run to be judged: each
// token that comes says whether its guess was right, so a sequence that stops repeating itself
// costs nothing to watch.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "common/engine/prompt_lookup.h"

namespace updraft {

// How often the guesses of one sequence are right, by the number of tokens that agreed before them.
class GuessRecord {
 public:
  void observe(const PromptLookup::Guess& guess);
  // Probability that a guess after match_tokens > 0 agreeing tokens is right.
  float chance(int32_t match_tokens) const;

 private:
  static constexpr size_t kClasses = 6;  // 2, 3, 4, 5..8, 9..16, more
  static size_t class_of(int32_t match_tokens);
  struct Count {
    float right = 0.0F, all = 0.0F;  // fading
  };
  std::array<Count, kClasses> counts_;
};

// What a step takes as a line over its rows, from the steps that ran. Recent steps count most, so
// it follows the depth of the contexts and what else the machine does.
class StepCost {
 public:
  // A step of `rows` rows, none of a prompt, took `seconds` > 0.
  void observe(int32_t rows, float seconds);
  // One more row's share of the time of a step of `rows` rows.
  float row_share(int32_t rows) const;

 private:
  float slope() const;  // seconds per row

  // Over the steps that are remembered.
  float count_ = 0.0F;
  float mean_rows_ = 0.0F, mean_seconds_ = 0.0F;
  float variance_ = 0.0F, covariance_ = 0.0F;
  // One row's share of a step of one row, as last seen; steps that all have the same rows say
  // nothing about it.
  float known_share_ = 0.125F;
};

// A decoding sequence that has a guess.
struct DraftOffer {
  const GuessRecord* record = nullptr;
  int32_t match_tokens = 0;  // > 0
  int32_t drafts_max = 0;
  int32_t drafts = 0;  // out
};

// Shares at most draft_rows_max draft rows out: each to the offer whose next draft is the likeliest
// to be kept, while the step's tokens grow faster than its time. rows: of the step without drafts;
// tokens: how many sequences get a token from it.
void share_drafts(std::span<DraftOffer> offers, const StepCost& cost, int32_t rows, int32_t tokens,
                  int32_t draft_rows_max);

}  // namespace updraft
