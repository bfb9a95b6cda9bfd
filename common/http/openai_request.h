// From bytes to a Request: OpenAI's chat and text completion bodies and our x-updraft-* headers,
// checked once, here. Pure; knows no socket. What this system cannot do is refused by name, unknown
// fields are ignored.
#pragma once

#include <string>
#include <string_view>
#include <variant>

#include "common/message/request.h"
#include "common/message/request_error.h"

namespace updraft {

inline constexpr size_t kMessagesMax = 1024;
inline constexpr size_t kPartsPerMessageMax = 1024;
inline constexpr size_t kImagesMax = 16;
inline constexpr size_t kImageBytesMax = 12 * 1024 * 1024;
inline constexpr size_t kStopsMax = 16;
inline constexpr size_t kStopBytesMax = 1024;
inline constexpr size_t kPromptsMax = 128;
inline constexpr size_t kLogitBiasMax = 1024;
inline constexpr size_t kModelNameBytesMax = 256;

// Values of the headers that shape a request; empty: not sent.
struct RequestHeaders {
  std::string_view request_id;   // x-request-id
  std::string_view traceparent;  // W3C; a malformed one is ignored, as that standard demands
  std::string_view tracestate;   // goes with a traceparent that is taken
  std::string_view tier;         // x-updraft-tier: any, edge, cloud
  std::string_view residency;    // x-updraft-residency: any, local-only
  std::string_view priority;     // x-updraft-priority: system, interactive, default, bulk
  std::string_view session;      // x-updraft-session
  std::string_view deadline_ms;  // x-updraft-deadline-ms
};

// A request and how its answer is wanted. request.id is fresh; request.tenant is the caller's to
// fill.
struct OpenAiCall {
  Request request;
  bool stream = false;
  bool include_usage = false;  // stream_options.include_usage
};

// The body of POST /v1/chat/completions or /v1/completions. The error's `param` names the field at
// fault.
std::variant<OpenAiCall, RequestError> read_openai_call(Request::Kind kind, std::string_view body,
                                                        const RequestHeaders& headers);

// 1 to 128 characters of [A-Za-z0-9._-]: what an x-request-id may be, so that echoing and logging
// it is harmless.
bool is_request_id(std::string_view id);

}  // namespace updraft
