// Fuzzes the reading of OpenAI bodies and of the headers beside them, and the writing of answers
// with text from outside. What is accepted must be inside the ranges of message/request.h; what is
// refused must say why in valid JSON.
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "common/base/bytes.h"
#include "common/base/check.h"
#include "common/http/data_url.h"
#include "common/http/json_body.h"
#include "common/http/json_text.h"
#include "common/http/openai_request.h"
#include "common/http/openai_response.h"

using namespace updraft;

namespace {

void check_sampling(const Sampling& sampling) {
  UPDRAFT_CHECK(sampling.temperature >= 0 && sampling.temperature <= 2);
  UPDRAFT_CHECK(sampling.top_p > 0 && sampling.top_p <= 1);
  UPDRAFT_CHECK(sampling.top_k >= 0);
  UPDRAFT_CHECK(sampling.min_p >= 0 && sampling.min_p < 1);
  UPDRAFT_CHECK(sampling.repetition_penalty > 0);
  UPDRAFT_CHECK(sampling.frequency_penalty >= -2 && sampling.frequency_penalty <= 2);
  UPDRAFT_CHECK(sampling.presence_penalty >= -2 && sampling.presence_penalty <= 2);
  UPDRAFT_CHECK(!sampling.max_tokens || *sampling.max_tokens > 0);
  UPDRAFT_CHECK(sampling.stop.size() <= kStopsMax);
  for (const std::string& stop : sampling.stop) UPDRAFT_CHECK(!stop.empty() && is_utf8(stop));
  UPDRAFT_CHECK(sampling.top_logprobs >= 0 && sampling.top_logprobs <= 20);
  for (const auto& [id, bias] : sampling.logit_bias)
    UPDRAFT_CHECK(id >= 0 && bias >= -100 && bias <= 100);
}

void check_call(const OpenAiCall& call) {
  const Request& request = call.request;
  check_sampling(request.sampling);
  UPDRAFT_CHECK(request.choice_count >= 1 && request.choice_count <= 8);
  UPDRAFT_CHECK(!request.model.empty() && is_utf8(request.model));
  if (request.kind == Request::Kind::kChat) {
    UPDRAFT_CHECK(!request.messages.empty() && request.messages.size() <= kMessagesMax);
  } else {
    UPDRAFT_CHECK(request.prompts.empty() != request.prompt_ids.empty());
    for (const auto& ids : request.prompt_ids) {
      UPDRAFT_CHECK(!ids.empty());
      for (const int32_t id : ids) UPDRAFT_CHECK(id >= 0);
    }
  }
}

void check_answers(const OpenAiCall& call, std::string_view text) {
  TokenChunk chunk;
  chunk.text = text;
  chunk.ids = {1};
  PositionLogprobs position;
  position.chosen.text = text.substr(0, 8);
  position.top = {position.chosen, position.chosen};
  chunk.logprobs = {position};
  chunk.finish = FinishReason::kStop;
  WholeAnswer whole(AnswerHead(call, 1));
  whole.chunk(chunk);
  UPDRAFT_CHECK(std::holds_alternative<boost::json::value>(read_json(whole.body({}, {}))));
  StreamAnswer stream(AnswerHead(call, 1));
  const std::string events = stream.chunk(chunk) + stream.finished({}, {});
  UPDRAFT_CHECK(is_utf8(events) && events.ends_with("data: [DONE]\n\n"));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  const auto kind = (data[0] & 1) != 0 ? Request::Kind::kCompletion : Request::Kind::kChat;
  RequestHeaders headers;
  if ((data[0] & 2) != 0) {
    const std::string_view value = text.substr(0, data[0] % 60);
    headers = {value, value, value, value, value, value, value};
  }
  const auto result = read_openai_call(kind, text, headers);
  if (const auto* call = std::get_if<OpenAiCall>(&result)) {
    check_call(*call);
    check_answers(*call, text);
  } else {
    const RequestError& error = std::get<RequestError>(result);
    UPDRAFT_CHECK(!error.message.empty() && http_status(error.code) == 400);
    UPDRAFT_CHECK(std::holds_alternative<boost::json::value>(read_json(error_json(error))));
  }
  (void)decode_image_url(text, 1024);
  return 0;
}
