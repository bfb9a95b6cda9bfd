// One range table for requests; see the header. Every comparison is written so that NaN fails it.
#include "common/message/request_check.h"

#include <limits>
#include <string>
#include <string_view>

#include "common/base/bytes.h"

namespace updraft {
namespace {

using Limits = RequestLimits;

// Collects the first problem; later checks of a request that already failed cost nothing.
class Checker {
 public:
  std::optional<RequestError> take() { return std::move(error_); }
  bool failed() const { return error_.has_value(); }

  void refuse(const char* param, const std::string& why,
              ErrorCode code = ErrorCode::kInvalidRequest) {
    if (error_) return;
    error_ = RequestError{};
    error_->code = code;
    error_->param = param;
    error_->message = std::string(param) + " " + why;
  }

  template <typename T>
  void range(const char* param, T value, T min, T max) {
    if (value >= min && value <= max) return;
    refuse(param, "= " + std::to_string(value) + " is not in " + std::to_string(min) + ".." +
                      std::to_string(max));
  }
  // (min, max]: for what must not be zero.
  void above(const char* param, float value, float min, float max) {
    if (value > min && value <= max) return;
    refuse(param, "= " + std::to_string(value) + " is not above " + std::to_string(min) +
                      " and at most " + std::to_string(max));
  }
  void count(const char* param, size_t value, size_t max) {
    if (value > max)
      refuse(param, "has " + std::to_string(value) + " entries, at most " + std::to_string(max) +
                        " are accepted");
  }
  void text(const char* param, std::string_view value, size_t bytes_max) {
    if (value.size() > bytes_max) {
      refuse(param, "has " + std::to_string(value.size()) + " bytes, at most " +
                        std::to_string(bytes_max) + " are accepted");
    } else if (const size_t valid = utf8_valid_prefix_bytes(value); valid != value.size()) {
      refuse(param, "is not valid UTF-8 at byte " + std::to_string(valid));
    }
  }

 private:
  std::optional<RequestError> error_;
};

void check_id(Checker& check, std::string_view id) {
  bool good = !id.empty() && id.size() <= Limits::kIdBytes;
  for (const char c : id) {
    good = good && ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '-' || c == '_' || c == '.');
  }
  if (!good) {
    check.refuse("id", "\"" + printable(id) + "\" is not 1.." + std::to_string(Limits::kIdBytes) +
                           " letters, digits, '-', '_' or '.'");
  }
}

void check_sampling(Checker& check, const Sampling& s) {
  constexpr int32_t kIntMax = std::numeric_limits<int32_t>::max();
  check.range("temperature", s.temperature, 0.0F, Limits::kTemperature);
  check.above("top_p", s.top_p, 0.0F, 1.0F);
  check.range("top_k", s.top_k, 0, kIntMax);
  check.range("min_p", s.min_p, 0.0F, 1.0F);
  check.above("repetition_penalty", s.repetition_penalty, 0.0F, Limits::kRepetitionPenalty);
  check.range("frequency_penalty", s.frequency_penalty, -2.0F, 2.0F);
  check.range("presence_penalty", s.presence_penalty, -2.0F, 2.0F);
  check.count("logit_bias", s.logit_bias.size(), Limits::kLogitBiases);
  for (const auto& [id, bias] : s.logit_bias) {
    check.range("logit_bias token", id, 0, kIntMax);
    check.range("logit_bias", bias, -100.0F, 100.0F);
  }
  if (s.max_tokens) check.range("max_tokens", *s.max_tokens, 1, kIntMax);
  check.count("stop", s.stop.size(), Limits::kStops);
  for (const std::string& stop : s.stop) {
    if (stop.empty()) check.refuse("stop", "has an empty string");
    check.text("stop", stop, Limits::kStopBytes);
  }
  check.range("top_logprobs", s.top_logprobs, 0, Limits::kTopLogprobs);
}

bool is_role(std::string_view role) {
  return role == "system" || role == "developer" || role == "user" || role == "assistant" ||
         role == "tool";
}

// What the bytes hold is judged at the entrance (common/image).
bool is_image_type(std::string_view mime) {
  return mime == "image/png" || mime == "image/jpeg" || mime.starts_with("image/x-raw-rgb;");
}

bool is_raw_frame(const ContentPart& part) { return part.mime.starts_with("image/x-raw-rgb;"); }

// Returns the payload bytes; of raw frames, which image_info.h limits, only when the request
// crosses.
size_t check_messages(Checker& check, const Request& request, bool crosses) {
  check.count("messages", request.messages.size(), Limits::kMessages);
  size_t part_count = 0;
  size_t bytes = 0;
  for (const ChatMessage& message : request.messages) {
    if (!is_role(message.role)) {
      check.refuse("role", "\"" + printable(message.role) +
                               "\" is none of system, developer, user, assistant, tool");
    }
    part_count += message.parts.size();
    for (const ContentPart& part : message.parts) {
      bytes += part.text.size() + (crosses || !is_raw_frame(part) ? part.bytes.size() : 0);
      if (check.failed() || bytes > Limits::kPayloadBytes) return bytes;
      if (part.kind == ContentPart::Kind::kText) {
        check.text("content", part.text, Limits::kPayloadBytes);
      } else if (!is_image_type(part.mime)) {
        check.refuse("image_url",
                     "has type \"" + printable(part.mime) +
                         "\", only image/png, image/jpeg and image/x-raw-rgb;width=W;height=H "
                         "are accepted");
      } else if (part.bytes.empty()) {
        check.refuse("image_url", "is an empty image");
      }
    }
  }
  check.count("content", part_count, Limits::kParts);
  return bytes;
}

size_t check_prompts(Checker& check, const Request& request) {
  check.count("prompt", request.prompts.size() + request.prompt_ids.size(), Limits::kPrompts);
  size_t bytes = 0;
  for (const std::string& prompt : request.prompts) {
    bytes += prompt.size();
    if (check.failed() || bytes > Limits::kPayloadBytes) return bytes;
    check.text("prompt", prompt, Limits::kPayloadBytes);
  }
  for (const std::vector<int32_t>& ids : request.prompt_ids) {
    bytes += ids.size() * sizeof(int32_t);
    if (check.failed() || bytes > Limits::kPayloadBytes) return bytes;
    for (const int32_t id : ids) check.range("prompt", id, 0, std::numeric_limits<int32_t>::max());
  }
  return bytes;
}

// Returns the payload bytes; of embeddings only when the request crosses.
size_t check_parts(Checker& check, const Request& request, bool crosses) {
  check.count("prompt", request.prompt_parts.size(), Limits::kParts);
  size_t bytes = 0;
  int64_t embeddings = 0;
  for (const PromptPart& part : request.prompt_parts) {
    bytes += part.text.size() + part.ids.size() * sizeof(int32_t);
    if (crosses) bytes += part.rows.bytes.size();
    if (check.failed() || bytes > Limits::kPayloadBytes) return bytes;
    const bool rows = part.kind == PromptPart::Kind::kEmbeddings;
    if ((!part.text.empty() && part.kind != PromptPart::Kind::kText) ||
        (!part.ids.empty() && part.kind != PromptPart::Kind::kIds) ||
        (!part.rows.bytes.empty() && !rows)) {
      check.refuse("prompt", "has a part that is two things at once");
    }
    check.text("prompt", part.text, Limits::kPayloadBytes);
    for (const int32_t id : part.ids)
      check.range("prompt", id, 0, std::numeric_limits<int32_t>::max());
    if (!rows) continue;
    check.range("embedding rows", part.rows.row_count, 1, Limits::kEmbeddingRows);
    check.range("embedding values per row", part.rows.dim, 1, Limits::kEmbeddingDim);
    if (check.failed()) return bytes;
    embeddings += embedding_bytes(part.rows);
    if (embeddings > Limits::kEmbeddingBytes) {
      check.refuse(
          "prompt",
          "has more than " + std::to_string(Limits::kEmbeddingBytes) + " bytes of embeddings",
          ErrorCode::kPayloadTooLarge);
    }
    if (part.rows.bytes.empty()) continue;
    if (const auto problem = embedding_problem(part.rows))
      check.refuse("prompt", "has an embeddings part that " + *problem);
  }
  return bytes;
}

void check_shape(Checker& check, const Request& request) {
  if (request.kind == Request::Kind::kChat) {
    if (request.messages.empty()) check.refuse("messages", "is empty");
    if (!request.prompts.empty() || !request.prompt_ids.empty() || !request.prompt_parts.empty())
      check.refuse("prompt", "does not belong into a chat");
  } else {
    if (!request.messages.empty()) check.refuse("messages", "does not belong into a completion");
    const int given = (request.prompts.empty() ? 0 : 1) + (request.prompt_ids.empty() ? 0 : 1) +
                      (request.prompt_parts.empty() ? 0 : 1);
    if (given == 0) check.refuse("prompt", "is empty");
    if (given > 1) {
      check.refuse("prompt", request.prompt_parts.empty() ? "is both text and token ids"
                                                          : "is both parts and something else");
    }
    if (request.echo && has_embeddings(request))
      check.refuse("echo", "is not possible: embeddings in the prompt have no text");
  }
}

}  // namespace

std::optional<std::string> embedding_problem(const EmbeddingRows& rows) {
  if (static_cast<int64_t>(rows.bytes.size()) == embedding_bytes(rows)) return std::nullopt;
  return "has " + std::to_string(rows.bytes.size()) + " bytes, but " +
         std::to_string(rows.row_count) + " rows of " + std::to_string(rows.dim) + " " +
         embedding_type_name(rows.type) + " values have " + std::to_string(embedding_bytes(rows));
}

namespace {

std::optional<RequestError> check_all(const Request& request, bool crosses) {
  Checker check;
  check_id(check, request.id);
  check.text("model", request.model, Limits::kNameBytes);
  check.text("session", request.hints.session, Limits::kNameBytes);
  check.text("tenant", request.tenant, Limits::kNameBytes);
  check.text("trace", request.trace, Limits::kNameBytes);
  check.text("trace_state", request.trace_state, Limits::kNameBytes);
  check.range("deadline_ms", request.hints.deadline_ms, int64_t{0}, Limits::kDeadlineMs);
  check.range("n", request.choice_count, 1, Limits::kChoices);
  check_sampling(check, request.sampling);
  check_shape(check, request);
  const size_t bytes = check_messages(check, request, crosses) + check_prompts(check, request) +
                       check_parts(check, request, crosses);
  if (bytes > Limits::kPayloadBytes) {
    check.refuse(request.kind == Request::Kind::kChat ? "messages" : "prompt",
                 "has more than " + std::to_string(Limits::kPayloadBytes) + " bytes" +
                     (crosses ? ", as many as travel between nodes" : ""),
                 ErrorCode::kPayloadTooLarge);
  }
  return check.take();
}

}  // namespace

std::optional<RequestError> check_request(const Request& request) {
  return check_all(request, false);
}
std::optional<RequestError> check_crossing(const Request& request) {
  return check_all(request, true);
}

}  // namespace updraft
