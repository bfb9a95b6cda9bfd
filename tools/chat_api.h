// The few calls of the OpenAI API that this program's own commands make.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/http/client.h"
#include "common/message/request.h"

namespace updraft {

struct ChatTurn {
  std::string role;
  std::string text;
};

struct ChatAnswer {
  std::string text;
  std::string tier, node, decision;
  std::string finish_reason;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  double ttft_ms = 0;  // as this client saw it
  double total_ms = 0;
  // All tokens came too close together to be told apart.
  bool came_at_once() const;
  // Of the tokens after the first; where they came at once, of all of them over the whole time.
  double tokens_per_s() const;
};

struct ChatOptions {
  std::string model;
  float temperature = 0.0F;
  int32_t max_tokens = 0;  // 0: not sent
};

// The JSON body of a chat request.
std::string chat_body(const ChatOptions& options, const std::vector<ChatTurn>& turns, bool stream);

// Asks and streams; on_text gets each piece and returns false to leave. Errors carry the server's
// own message.
Result<ChatAnswer> ask(const HttpClient& client, const ChatOptions& options,
                       const std::vector<ChatTurn>& turns,
                       const std::function<bool(std::string_view)>& on_text);

struct ServedModel {
  std::string name;
  int64_t context_tokens = 0;
};
Result<std::vector<ServedModel>> list_models(const HttpClient& client);

}  // namespace updraft
