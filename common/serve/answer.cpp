// Choices to events. Two things hold text back on its way: characters that are not whole yet
// (StreamDecoder) and what may become a stop string (StopMatcher); ids are never held back.
#include "common/serve/answer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/base/check.h"
#include "common/base/clock.h"

namespace updraft {

void Answer::start() {
  if (std::exchange(started_, true) || done_) return;
  timings_.queued_ns = monotonic_ns() - setup_.received_ns;
  setup_.sink(setup_.started);
}

void Answer::chunk(TokenChunk chunk) {
  if (done_) return;
  if (timings_.first_token_ns == 0 && !chunk.ids.empty()) {
    timings_.first_token_ns = monotonic_ns() - setup_.received_ns;
  }
  setup_.sink(std::move(chunk));
}

void Answer::choice_ended(int32_t generated_tokens, size_t prompt_index, int32_t cached_tokens) {
  UPDRAFT_CHECK(open_choices_ > 0);
  --open_choices_;
  usage_.completion_tokens += generated_tokens;
  std::optional<int32_t>& least = cached_tokens_.at(prompt_index);
  least = least ? std::min(*least, cached_tokens) : cached_tokens;
  if (open_choices_ > 0 || done_) return;
  usage_.prompt_tokens = setup_.prompt_tokens;
  for (const auto& cached : cached_tokens_) usage_.cached_tokens += cached.value_or(0);
  timings_.total_ns = monotonic_ns() - setup_.received_ns;
  timings_.received_at_ns = setup_.received_ns;
  finish(Finished{usage_, timings_}, false);
}

void Answer::fail(RequestError error) {
  if (done_) return;
  setup_.cancel_rest();
  finish(std::move(error), true);
}

void Answer::finish(Event end, bool failed) {
  done_ = true;
  setup_.on_done({failed, setup_.prompt_tokens, usage_.completion_tokens,
                  monotonic_ns() - setup_.received_ns});
  setup_.sink(std::move(end));
}

ChoiceSink::ChoiceSink(ChoiceSetup setup, std::shared_ptr<const Tokenizer> tokenizer,
                       std::shared_ptr<Answer> answer)
    : setup_(std::move(setup)),
      tokenizer_(std::move(tokenizer)),
      answer_(std::move(answer)),
      decoder_(tokenizer_, setup_.answer_starts_text),
      stops_(setup_.stop) {
  if (setup_.echo && setup_.logprobs) {
    const float none = std::numeric_limits<float>::quiet_NaN();
    echo_logprobs_.push_back({named(setup_.first_prompt_id, none), {}});
  }
}

void ChoiceSink::on_start() { answer_->start(); }

void ChoiceSink::on_prompt_token(const SampledToken& token) {
  echo_logprobs_.push_back(named(token));
}

bool ChoiceSink::on_token(const SampledToken& token) {
  emit_echo();
  TokenChunk chunk;
  chunk.choice = setup_.choice;
  chunk.offset = generated_++;
  chunk.ids = {token.id};
  chunk.text = stops_.push(decoder_.push(token.id));
  if (setup_.logprobs) chunk.logprobs.push_back(named(token));
  answer_->chunk(std::move(chunk));
  return !stops_.matched();
}

void ChoiceSink::on_end(SequenceEnd end, int32_t cached_tokens) {
  RequestError error;
  switch (end) {
    case SequenceEnd::kStop:
    case SequenceEnd::kLength:
      break;
    case SequenceEnd::kCancelled:
      error.code = ErrorCode::kCancelled;
      error.message = "the request was cancelled";
      break;
    case SequenceEnd::kDeadline:
      error.code = ErrorCode::kDeadline;
      error.message =
          "the deadline passed after " + std::to_string(generated_) + " tokens of the answer";
      break;
    case SequenceEnd::kFailed:
      error.code = ErrorCode::kInternal;
      error.message = failure_;
      break;
    case SequenceEnd::kBadInput:
      error.code = ErrorCode::kInvalidRequest;
      error.param = "prompt";
      error.message = failure_;
      break;
  }
  if (!error.message.empty()) {
    answer_->fail(std::move(error));
  } else {
    emit_echo();
    TokenChunk last;
    last.choice = setup_.choice;
    last.offset = generated_;
    last.text = stops_.push(decoder_.flush());
    last.text += stops_.flush();
    // The flush itself may have completed a stop string; the answer then ends there like any other.
    last.finish = end == SequenceEnd::kLength && !stops_.matched() ? FinishReason::kLength
                                                                   : FinishReason::kStop;
    answer_->chunk(std::move(last));
  }
  answer_->choice_ended(generated_, setup_.prompt_index, cached_tokens);
}

void ChoiceSink::emit_echo() {
  if (!std::exchange(setup_.echo, false)) return;
  TokenChunk chunk;
  chunk.choice = setup_.choice;
  chunk.text = std::move(setup_.echo_text);
  chunk.logprobs = std::move(echo_logprobs_);
  answer_->chunk(std::move(chunk));
}

PositionLogprobs ChoiceSink::named(const SampledToken& token) const {
  PositionLogprobs out;
  out.chosen = named(token.id, token.logprob);
  for (const auto& [id, logprob] : token.top) out.top.push_back(named(id, logprob));
  return out;
}

TokenLogprob ChoiceSink::named(int32_t id, float logprob) const {
  // The vocabulary's padding rows have no text.
  if (id >= tokenizer_->vocab_count()) return {id, logprob, ""};
  std::string text(tokenizer_->piece(id));
  if (text.empty()) text = tokenizer_->token_text(id);
  return {id, logprob, std::move(text)};
}

}  // namespace updraft
