// The ranges of a request, in one table. Whoever takes a request in (HTTP, shared memory, the pool
// link) may call it, and the codec does for every request that comes off the wire: what passes here
// always crosses the pool unharmed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "common/message/request.h"
#include "common/message/request_error.h"

namespace updraft {

struct RequestLimits {
  static constexpr size_t kIdBytes = 64;      // [A-Za-z0-9._-]
  static constexpr size_t kNameBytes = 1024;  // model, session, tenant, trace
  static constexpr size_t kMessages = 1024;
  static constexpr size_t kParts = 4096;                     // of all messages together
  static constexpr size_t kPrompts = 1024;                   // texts or id lists
  static constexpr size_t kPayloadBytes = 22 * 1024 * 1024;  // texts, ids and images together
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
std::optional<RequestError> check_request(const Request& request);

}  // namespace updraft
