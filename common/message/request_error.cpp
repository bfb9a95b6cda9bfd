// How each typed error looks to an OpenAI client: HTTP status, `type` and `code`. One table, so that router and edge agree.
#include "common/message/request_error.h"

namespace updraft {
namespace {

struct Surface {
  int status;
  const char* type;
  const char* code;  // "": null in JSON
};

// kRejected* never reach a client; if one did, it would look like overload, which a client retries.
Surface surface_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidRequest: return {400, "invalid_request_error", ""};
    case ErrorCode::kContextLength: return {400, "invalid_request_error", "context_length_exceeded"};
    case ErrorCode::kUnsupported: return {400, "invalid_request_error", "unsupported"};
    case ErrorCode::kAuthentication: return {401, "invalid_request_error", "invalid_api_key"};
    case ErrorCode::kForbidden: return {403, "permission_error", "forbidden"};
    case ErrorCode::kModelNotFound: return {404, "invalid_request_error", "model_not_found"};
    case ErrorCode::kPayloadTooLarge: return {413, "invalid_request_error", "payload_too_large"};
    case ErrorCode::kRateLimited: return {429, "rate_limit_error", "rate_limit_exceeded"};
    case ErrorCode::kOverloaded: return {503, "server_error", "overloaded"};
    case ErrorCode::kDeadline: return {504, "server_error", "deadline_exceeded"};
    case ErrorCode::kNodeLost: return {502, "server_error", "node_lost"};
    case ErrorCode::kCancelled: return {499, "server_error", "cancelled"};
    case ErrorCode::kInternal: return {500, "server_error", ""};
    case ErrorCode::kRejectedTooLong: return {503, "server_error", "overloaded"};
    case ErrorCode::kRejectedBusy: return {503, "server_error", "overloaded"};
  }
  return {500, "server_error", ""};
}

}  // namespace

int http_status(ErrorCode code) { return surface_of(code).status; }
const char* openai_error_type(ErrorCode code) { return surface_of(code).type; }
const char* openai_error_code(ErrorCode code) { return surface_of(code).code; }

}  // namespace updraft
