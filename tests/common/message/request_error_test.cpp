// Errors at the surface: the status codes are those of design and of OpenAI's API reference.
#include "common/message/request_error.h"

#include <string>

#include <doctest/doctest.h>

using namespace updraft;

TEST_CASE("each error has the status that clients act on") {
  CHECK(http_status(ErrorCode::kInvalidRequest) == 400);
  CHECK(http_status(ErrorCode::kContextLength) == 400);
  CHECK(http_status(ErrorCode::kUnsupported) == 400);
  CHECK(http_status(ErrorCode::kAuthentication) == 401);
  CHECK(http_status(ErrorCode::kForbidden) == 403);
  CHECK(http_status(ErrorCode::kModelNotFound) == 404);
  CHECK(http_status(ErrorCode::kPayloadTooLarge) == 413);
  CHECK(http_status(ErrorCode::kRateLimited) == 429);
  CHECK(http_status(ErrorCode::kOverloaded) == 503);
  CHECK(http_status(ErrorCode::kDeadline) == 504);
  CHECK(http_status(ErrorCode::kNodeLost) == 502);
  CHECK(http_status(ErrorCode::kCancelled) == 499);
  CHECK(http_status(ErrorCode::kInternal) == 500);
}

TEST_CASE("the codes that OpenAI clients test for are spelled as OpenAI spells them") {
  CHECK(std::string(openai_error_code(ErrorCode::kContextLength)) == "context_length_exceeded");
  CHECK(std::string(openai_error_code(ErrorCode::kModelNotFound)) == "model_not_found");
  CHECK(std::string(openai_error_code(ErrorCode::kAuthentication)) == "invalid_api_key");
  CHECK(std::string(openai_error_code(ErrorCode::kRateLimited)) == "rate_limit_exceeded");
  CHECK(std::string(openai_error_code(ErrorCode::kInvalidRequest)).empty());
}

TEST_CASE("4xx are the caller's errors and 5xx the server's, in status and type alike") {
  for (int raw = 0; raw <= static_cast<int>(ErrorCode::kRejectedBusy); ++raw) {
    const auto code = static_cast<ErrorCode>(raw);
    const std::string type = openai_error_type(code);
    CAPTURE(raw);
    REQUIRE_FALSE(type.empty());
    if (http_status(code) >= 500) CHECK(type == "server_error");
    if (http_status(code) == 400) CHECK(type == "invalid_request_error");
  }
}
