// The ranges of a request, in one table. Whoever takes a request in (HTTP, shared memory, the pool
// link) may call it. The codec calls check_crossing() for every request that comes off the wire:
// what passes there always crosses the pool unharmed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "common/message/request.h"
#include "common/message/request_error.h"

namespace updraft {

struct RequestLimits {
  static constexpr size_t kIdBytes = 64;      // [A-Za-z0-9._-]
  static constexpr size_t kNameBytes = 1024;  // model, session, tenant, trace, trace_state
  static constexpr size_t kMessages = 1024;
  static constexpr size_t kParts = 4096;    // of all messages, or of the prompt
  static constexpr size_t kPrompts = 1024;  // texts or id lists
  // Texts, ids and encoded images together; of a request that leaves its node, raw frames and rows
  // of embeddings, too. Those of a local client lie in its own memory, whose quota is their limit.
  static constexpr size_t kPayloadBytes = 22 * 1024 * 1024;
  static constexpr int32_t kEmbeddingRows = 1 << 22;  // of one part
  static constexpr int32_t kEmbeddingDim = 1 << 17;
  // All rows of embeddings together.
  static constexpr int64_t kEmbeddingBytes = int64_t{1} << 34;
  static constexpr size_t kStops = 16;
  static constexpr size_t kStopBytes = 4096;  // one stop string
  static constexpr size_t kLogitBiases = 65536;
  static constexpr int32_t kChoices = 8;  // per prompt
  static constexpr int32_t kTopLogprobs = 20;
  static constexpr float kTemperature = 100.0F;
  static constexpr float kRepetitionPenalty = 100.0F;
  static constexpr int64_t kDeadlineMs = 24LL * 3600 * 1000;
};

// The first thing wrong, as the typed answer for the caller: names the field and the value. Nothing
// when all is in range.
// The values of input embeddings, and their width, are the model's to judge; where such a part has
// no bytes yet, because they lie elsewhere, only what it says of itself is checked.
std::optional<RequestError> check_request(const Request& request);

// The same for a request that is to cross the pool, or did: what passes here fits its messages.
std::optional<RequestError> check_crossing(const Request& request);

// What is wrong with a piece of rows, or nothing: "has 4092 bytes, but 2 rows of 512 f32 values
// have 4096".
std::optional<std::string> embedding_problem(const EmbeddingRows& rows);

}  // namespace updraft
