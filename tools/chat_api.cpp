// Chat requests as JSON, streamed answers back.
#include "tools/chat_api.h"

#include "common/base/clock.h"
#include "common/http/json_body.h"
#include "common/http/json_text.h"

namespace updraft {
namespace {

namespace json = boost::json;

const json::value* member(const json::value& value, std::string_view key) {
  const json::object* object = value.if_object();
  return object == nullptr ? nullptr : object->if_contains(key);
}

std::string text_of(const json::value& value, std::string_view key) {
  const json::value* found = member(value, key);
  return found != nullptr && found->is_string() ? std::string(found->get_string()) : std::string();
}

int64_t number_of(const json::value& value, std::string_view key) {
  const json::value* found = member(value, key);
  return found != nullptr && found->is_int64() ? found->get_int64() : 0;
}

// The server's own words about a failed request.
std::string error_message(const HttpResponse& response) {
  const auto body = read_json(response.body);
  if (const auto* value = std::get_if<json::value>(&body)) {
    if (const json::value* error = member(*value, "error")) {
      return text_of(*error, "message") + " (HTTP " + std::to_string(response.status) + ")";
    }
  }
  return "HTTP " + std::to_string(response.status);
}

// Takes one chunk of the stream; returns the piece of text in it, an error message through `error`.
std::string take_chunk(const json::value& chunk, ChatAnswer& answer, std::string& error) {
  if (const json::value* problem = member(chunk, "error")) {
    error = text_of(*problem, "message");
    return {};
  }
  if (const json::value* usage = member(chunk, "usage"); usage != nullptr && usage->is_object()) {
    answer.prompt_tokens = number_of(*usage, "prompt_tokens");
    answer.completion_tokens = number_of(*usage, "completion_tokens");
  }
  if (const json::value* updraft = member(chunk, "updraft")) {
    answer.tier = text_of(*updraft, "tier");
    answer.node = text_of(*updraft, "node");
    answer.decision = text_of(*updraft, "decision");
  }
  const json::value* choices = member(chunk, "choices");
  if (choices == nullptr || !choices->is_array() || choices->get_array().empty()) return {};
  const json::value& choice = choices->get_array().front();
  if (std::string reason = text_of(choice, "finish_reason"); !reason.empty())
    answer.finish_reason = std::move(reason);
  const json::value* delta = member(choice, "delta");
  return delta == nullptr ? std::string() : text_of(*delta, "content");
}

}  // namespace

bool ChatAnswer::came_at_once() const {
  // Verified guesses and a busy reader bring many tokens in one piece: what lies within this time
  // says how pieces were cut, not how fast tokens were made.
  constexpr double kToldApartMs = 5.0;
  return completion_tokens <= 1 || total_ms - ttft_ms < kToldApartMs;
}

double ChatAnswer::tokens_per_s() const {
  const auto tokens = static_cast<double>(completion_tokens);
  if (!came_at_once()) return (tokens - 1) * 1000.0 / (total_ms - ttft_ms);
  return total_ms > 0 ? tokens * 1000.0 / total_ms : 0.0;
}

std::string chat_body(const ChatOptions& options, const std::vector<ChatTurn>& turns, bool stream) {
  std::string body = "{\"model\":" + json_string(options.model) + ",\"temperature\":";
  append_json_number(body, options.temperature);
  if (options.max_tokens > 0) body += ",\"max_tokens\":" + std::to_string(options.max_tokens);
  if (stream) body += ",\"stream\":true,\"stream_options\":{\"include_usage\":true}";
  body += ",\"messages\":[";
  for (size_t i = 0; i < turns.size(); ++i) {
    if (i > 0) body += ',';
    body += "{\"role\":" + json_string(turns[i].role) +
            ",\"content\":" + json_string(turns[i].text) + "}";
  }
  return body + "]}";
}

Result<ChatAnswer> ask(const HttpClient& client, const ChatOptions& options,
                       const std::vector<ChatTurn>& turns,
                       const std::function<bool(std::string_view)>& on_text) {
  ChatAnswer answer;
  std::string error;
  bool done = false;
  bool left = false;
  const int64_t begin_ns = monotonic_ns();
  const auto since_ms = [&] { return static_cast<double>(monotonic_ns() - begin_ns) / kNsPerMs; };
  const auto on_data = [&](std::string_view data) {
    if (data == "[DONE]") {
      done = true;
      return true;
    }
    const auto chunk = read_json(data);
    if (!std::holds_alternative<json::value>(chunk)) {
      error = "the server sent a chunk that is no JSON";
      return false;
    }
    const std::string piece = take_chunk(std::get<json::value>(chunk), answer, error);
    if (!error.empty()) return false;
    if (piece.empty()) return true;
    if (answer.text.empty()) answer.ttft_ms = since_ms();
    answer.text += piece;
    left = !on_text(piece);
    return !left;
  };
  const Result<HttpResponse> response =
      client.post_events("/chat/completions", chat_body(options, turns, true), on_data);
  if (!error.empty()) return fail(error);
  if (!left && !response) return response.error();
  if (!left && response->status != 200) return fail(error_message(*response));
  if (!left && !done) return fail("the answer's stream ended early");
  answer.total_ms = since_ms();
  if (answer.node.empty() && response) {
    answer.node = response->field("x-updraft-node");
    answer.tier = response->field("x-updraft-tier");
    answer.decision = response->field("x-updraft-decision");
  }
  return answer;
}

Result<std::vector<ServedModel>> list_models(const HttpClient& client) {
  const Result<HttpResponse> response = client.get("/models");
  if (!response) return response.error();
  if (response->status != 200) return fail(error_message(*response));
  const auto body = read_json(response->body);
  std::vector<ServedModel> models;
  if (const auto* value = std::get_if<json::value>(&body)) {
    if (const json::value* data = member(*value, "data"); data != nullptr && data->is_array()) {
      for (const json::value& model : data->get_array()) {
        models.push_back({text_of(model, "id"), number_of(model, "max_model_len")});
      }
    }
  }
  return models;
}

}  // namespace updraft
