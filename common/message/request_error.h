// A typed answer for a request that cannot be served: the caller's mistake, overload, or a node that vanished. Becomes
// OpenAI's error object with an HTTP status at the surface, and crosses the pool protocol unchanged.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace updraft {

enum class ErrorCode : uint8_t {
  kInvalidRequest,        // 400 invalid_request_error
  kContextLength,         // 400 context_length_exceeded
  kUnsupported,           // 400 the model cannot do it (image to a text model)
  kAuthentication,        // 401
  kForbidden,             // 403
  kModelNotFound,         // 404 model_not_found
  kPayloadTooLarge,       // 413
  kRateLimited,           // 429, Retry-After
  kOverloaded,            // 503, Retry-After: queue full, draining, no node
  kDeadline,              // 504
  kNodeLost,              // 502: the node vanished mid-stream
  kCancelled,             // 499: the client left
  kInternal,              // 500
  // Between node and router only: the router places the request anew, the client never sees it.
  kRejectedTooLong,       // the node counted more tokens than it can hold
  kRejectedBusy,          // no slot after all
};

struct RequestError {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;        // one sentence that names the thing and the value
  std::string param;          // the request field at fault, may be empty
  int32_t retry_after_ms = 0; // > 0: Retry-After
  int32_t prompt_tokens = 0;  // kContextLength, kRejectedTooLong: counted prompt (+ wanted) tokens
  int32_t limit_tokens = 0;   // and the limit it broke
};

inline RequestError error_of(ErrorCode code, std::string message, int32_t retry_after_ms = 0) {
  RequestError error;
  error.code = code;
  error.message = std::move(message);
  error.retry_after_ms = retry_after_ms;
  return error;
}

int http_status(ErrorCode code);
// OpenAI's "type" and "code" strings; code may be empty (null in JSON).
const char* openai_error_type(ErrorCode code);
const char* openai_error_code(ErrorCode code);

}  // namespace updraft
