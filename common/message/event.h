// What comes back for a request: Started, then TokenChunks, then exactly one end: Finished or a
// RequestError.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/message/request.h"
#include "common/message/request_error.h"

namespace updraft {

// The request has a place. Comes before the first token; again with a new node when the stream
// moves.
struct Started {
  std::string node_id;
  Tier tier = Tier::kAny;
  std::string model;          // the served model's name
  std::string decision;       // why here, one short phrase: "fits the edge"; x-updraft-decision
  int32_t prompt_tokens = 0;  // counted with the serving model's tokenizer; 0: not known
};

enum class FinishReason : uint8_t { kStop, kLength };

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0.0F;  // natural log; NaN: the first token of an echoed prompt has none
  std::string text;      // the token's bytes (may be part of a character)
};

struct PositionLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // top_logprobs best, best first
};

// New tokens of one choice. Offsets are gapless per choice: the next chunk's offset = offset +
// ids.size(). An echoed prompt (Request::echo) is the choice's first chunk: no ids, the prompt's
// text, and with logprobs one entry per prompt token.
struct TokenChunk {
  int32_t choice = 0;
  int32_t offset = 0;  // index of ids[0] among the choice's generated tokens
  std::vector<int32_t> ids;
  std::string text;  // whole UTF-8 characters that became complete; may be empty
  std::vector<PositionLogprobs> logprobs;  // one per id when asked for, else empty
  std::optional<FinishReason> finish;  // set on the choice's last chunk (which may carry no ids)
};

struct Usage {
  int32_t prompt_tokens = 0;      // each prompt counted once
  int32_t completion_tokens = 0;  // all choices, without stop tokens
  int32_t cached_tokens = 0;      // prompt tokens found in the prefix cache
};

// Times as the serving node saw them, nanoseconds since it received the request.
struct Timings {
  int64_t queued_ns = 0;  // until the first step that worked on it
  int64_t first_token_ns = 0;
  int64_t total_ns = 0;
  // When it received the request, by its monotonic clock: means something on the same machine only.
  int64_t received_at_ns = 0;
};

struct Finished {
  Usage usage;
  Timings timings;
};

using Event = std::variant<Started, TokenChunk, Finished, RequestError>;
inline bool is_end(const Event& event) {
  return std::holds_alternative<Finished>(event) || std::holds_alternative<RequestError>(event);
}

// Receives a request's events in order, on the service's own thread; must not block and must not
// call back into the service synchronously except cancel().
using EventSink = std::function<void(Event)>;

}  // namespace updraft
