// From events to OpenAI's answers: one JSON body, or a stream of server-sent events. Pure; the
// connection sends what these return. Fields and their order of appearance follow OpenAI's API
// reference.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/http/openai_request.h"
#include "common/message/event.h"
#include "common/message/request_error.h"
#include "common/message/service.h"

namespace updraft {

// How the request was served: the "updraft" object of an answer, which OpenAI's clients ignore.
struct ServedInfo {
  Started started;        // the latest
  int64_t queued_ms = 0;  // at the node
  int64_t ttft_ms = -1;   // from the request's arrival here to its first token; -1: there was none
  int64_t total_ms = 0;   // from arrival to end
};

// What both forms of answer share.
struct AnswerHead {
  AnswerHead(const OpenAiCall& call, int64_t created_unix_s);

  Request::Kind kind;
  std::string id;            // "chatcmpl-<request id>", "cmpl-<request id>"
  std::string model;         // as asked; Started replaces it with the served name
  int64_t created = 0;       // unix seconds
  int32_t choice_count = 1;  // in all, over all prompts
  bool logprobs = false;
  bool include_usage = false;
};

// A streamed answer. Each method returns complete events ("data: {...}\n\n"), possibly none.
class StreamAnswer {
 public:
  explicit StreamAnswer(AnswerHead head);

  // The first call announces the role of every chat choice.
  std::string started(const Started& started);
  std::string chunk(const TokenChunk& chunk);
  // The last finish_reason, usage when asked for, the "updraft" object, [DONE].
  std::string finished(const Finished& finished, const ServedInfo& served);

 private:
  std::string event(const std::string& choices, const std::string& tail) const;
  std::string choice_json(int32_t index, const std::string& content, const std::string& logprobs,
                          const char* finish_reason) const;
  std::string roles();

  AnswerHead head_;
  bool announced_ = false;
  std::vector<bool> choice_ended_;
  int32_t choices_open_ = 0;
  std::string last_finish_;  // the choice object that ends the last choice, held for finished()
  std::vector<int64_t> text_offsets_;  // per choice: characters so far, for completions' logprobs
};

// A whole answer: collects chunks, then gives the body.
class WholeAnswer {
 public:
  explicit WholeAnswer(AnswerHead head);

  void started(const Started& started);
  void chunk(const TokenChunk& chunk);
  std::string body(const Finished& finished, const ServedInfo& served) const;

 private:
  struct Choice {
    std::string text;
    std::vector<PositionLogprobs> logprobs;
    std::string finish_reason = "stop";
  };

  AnswerHead head_;
  std::vector<Choice> choices_;
};

// {"error":{"message","type","param","code"}}; empty param and code become null.
std::string error_json(const RequestError& error);
std::string error_json(std::string_view message, std::string_view type, std::string_view param,
                       std::string_view code);
// The same as an event inside a stream.
std::string error_event(const RequestError& error);

// GET /v1/models and /v1/models/{id}.
std::string models_json(const std::vector<ModelInfo>& models);
std::string model_json(const ModelInfo& model);

}  // namespace updraft
