// One request on its way out: the sequences of its choices become Started, TokenChunks and exactly
// one end. Created by the prepare thread, then owned by the engine thread, on which all sinks run.
//
// An echoed prompt is a choice's first chunk: no ids, the prompt's text, and with logprobs one
// entry per prompt token, of which the first has no probability (NaN, no alternatives).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/engine/engine.h"
#include "common/message/event.h"
#include "common/serve/stop_matcher.h"
#include "common/text/tokenizer.h"

namespace updraft {

// What became of a request, for counters and averages.
struct AnswerOutcome {
  bool failed = false;
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;
  int64_t total_ns = 0;
};

struct AnswerSetup {
  EventSink sink;
  Started started;
  int64_t received_ns = 0;
  int32_t choice_count = 0;   // in all
  int32_t prompt_tokens = 0;  // each prompt once
  size_t prompt_count = 1;
  // Stops the request's other sequences after one failed.
  std::function<void()> cancel_rest;
  // Called once, right before the end event.
  std::function<void(const AnswerOutcome&)> on_done;
};

class Answer {
 public:
  explicit Answer(AnswerSetup setup)
      : setup_(std::move(setup)),
        open_choices_(setup_.choice_count),
        cached_tokens_(setup_.prompt_count) {}

  void start();
  void chunk(TokenChunk chunk);
  // cached_tokens: of the prompt with this index, what this choice found computed. The usage counts
  // what all choices of a prompt found: one choice's prompt is no news to the next.
  void choice_ended(int32_t generated_tokens, size_t prompt_index, int32_t cached_tokens);
  // The whole request ends with this error, unless it had its end already.
  void fail(RequestError error);

 private:
  void finish(Event end, bool failed);

  const AnswerSetup setup_;
  int32_t open_choices_;
  std::vector<std::optional<int32_t>> cached_tokens_;  // [prompt_count] least of its choices
  Usage usage_;
  Timings timings_;
  bool started_ = false;
  bool done_ = false;
};

struct ChoiceSetup {
  int32_t choice = 0;
  size_t prompt_index = 0;
  std::vector<std::string> stop;
  bool answer_starts_text = false;
  bool logprobs = false;
  bool echo = false;
  std::string echo_text;
  int32_t first_prompt_id = 0;  // for the echo's log-probabilities
};

// One choice: token ids in, chunks out.
class ChoiceSink final : public SequenceSink {
 public:
  ChoiceSink(ChoiceSetup setup, std::shared_ptr<const Tokenizer> tokenizer,
             std::shared_ptr<Answer> answer);

  void on_start() override;
  void on_prompt_token(const SampledToken& token) override;
  bool on_token(const SampledToken& token) override;
  void on_failure(const std::string& why) override { failure_ = why; }
  void on_end(SequenceEnd end, int32_t cached_tokens) override;

 private:
  PositionLogprobs named(const SampledToken& token) const;
  TokenLogprob named(int32_t id, float logprob) const;
  void emit_echo();

  ChoiceSetup setup_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const std::shared_ptr<Answer> answer_;
  StreamDecoder decoder_;
  StopMatcher stops_;
  std::vector<PositionLogprobs> echo_logprobs_;
  int32_t generated_ = 0;
  std::string failure_;
};

}  // namespace updraft
