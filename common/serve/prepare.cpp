// Checks first, cheapest first; then the prompt is rendered and tokenized, and only then its length
// is known.
#include "common/serve/prepare.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string_view>
#include <utility>

#include "common/base/bytes.h"
#include "common/message/request_check.h"
#include "common/text/prompt.h"

namespace updraft {
namespace {

RequestError invalid(std::string param, std::string message) {
  RequestError error;
  error.code = ErrorCode::kInvalidRequest;
  error.message = std::move(message);
  error.param = std::move(param);
  return error;
}

RequestError with_code(ErrorCode code, std::string param, std::string message) {
  RequestError error = invalid(std::move(param), std::move(message));
  error.code = code;
  return error;
}

std::string content_place(size_t message, size_t part) {
  return "messages[" + std::to_string(message) + "].content[" + std::to_string(part) + "]";
}

// Parts of one message become one text, a line each, as vLLM joins them.
std::string joined_text(const ChatMessage& message) {
  std::string text;
  bool first = true;
  for (const ContentPart& part : message.parts) {
    if (!std::exchange(first, false)) text += '\n';
    text += part.text;
  }
  return text;
}

RequestError too_long(const PreparerConfig& config, size_t prompt_tokens, int32_t wanted) {
  const int64_t total = static_cast<int64_t>(prompt_tokens) + wanted;
  std::string message = "the prompt has " + std::to_string(prompt_tokens) + " tokens";
  if (static_cast<int64_t>(prompt_tokens) >= config.context_tokens) {
    message += ", which leaves no room for an answer in the " +
               std::to_string(config.context_tokens) + " tokens of context that " +
               config.model_name + " serves";
  } else {
    message += " and max_tokens asks for " + std::to_string(wanted) + ", together " +
               std::to_string(total) + ", but " + config.model_name + " serves a context of " +
               std::to_string(config.context_tokens);
  }
  RequestError error = with_code(ErrorCode::kContextLength, "messages", std::move(message));
  error.prompt_tokens = static_cast<int32_t>(std::min<int64_t>(total, INT32_MAX));
  error.limit_tokens = config.context_tokens;
  return error;
}

bool needs_text(const Request& request) {
  if (request.prompt_parts.empty()) return request.prompt_ids.empty();
  return std::any_of(request.prompt_parts.begin(), request.prompt_parts.end(),
                     [](const PromptPart& p) { return p.kind == PromptPart::Kind::kText; });
}

std::string part_place(size_t part) { return "prompt_parts[" + std::to_string(part) + "]"; }

// The first value of the prompt's rows that is no finite number.
std::optional<RequestError> check_finite(const Request& request) {
  std::vector<float> scratch;
  for (size_t i = 0; i < request.prompt_parts.size(); ++i) {
    const PromptPart& part = request.prompt_parts[i];
    if (part.kind != PromptPart::Kind::kEmbeddings) continue;
    scratch.resize(static_cast<size_t>(part.rows.dim));
    for (int32_t row = 0; row < part.rows.row_count; ++row) {
      const auto bad = copy_rows(part.rows, row, 1, scratch);
      if (!bad) continue;
      return invalid("prompt", part_place(i) + " holds a value that is no finite number: row " +
                                   std::to_string(bad->row) + ", column " +
                                   std::to_string(bad->column));
    }
  }
  return std::nullopt;
}

// The ranges that need no model are check_request()'s.
std::optional<RequestError> check_bias_ids(const Sampling& sampling, int32_t vocab_count) {
  for (const auto& [id, bias] : sampling.logit_bias) {
    if (id < vocab_count) continue;
    return invalid("logit_bias", "logit_bias names token " + std::to_string(id) +
                                     ", but the vocabulary has " + std::to_string(vocab_count));
  }
  return std::nullopt;
}

}  // namespace

Preparer::Preparer(PreparerConfig config, std::shared_ptr<const Tokenizer> tokenizer,
                   std::shared_ptr<const ChatTemplate> chat_template)
    : config_(std::move(config)),
      tokenizer_(std::move(tokenizer)),
      chat_template_(std::move(chat_template)) {}

std::variant<PreparedPrompts, RequestError> Preparer::prepare(const Request& request) const {
  const auto& names = config_.accepted_names;
  if (!request.model.empty() &&
      std::find(names.begin(), names.end(), request.model) == names.end()) {
    return with_code(ErrorCode::kModelNotFound, "model",
                     "the model \"" + printable(request.model) + "\" is not served here; " +
                         config_.model_name + " is");
  }
  if (auto error = check_request(request)) return *error;
  const size_t prompt_count = std::max({request.prompts.size(), request.prompt_ids.size(),
                                        request.prompt_parts.empty() ? size_t{0} : size_t{1}});
  if (prompt_count * static_cast<size_t>(request.choice_count) > static_cast<size_t>(kChoicesMax)) {
    return invalid("prompt", std::to_string(prompt_count) +
                                 " prompts with n = " + std::to_string(request.choice_count) +
                                 " are more than " + std::to_string(kChoicesMax) + " choices");
  }
  if (auto error = check_bias_ids(request.sampling, config_.vocab_count)) return *error;

  auto outcome = tokenize(request);
  const auto* prompts = std::get_if<PreparedPrompts>(&outcome);
  if (prompts == nullptr) return outcome;
  const int32_t wanted = request.sampling.max_tokens.value_or(0);
  for (const PreparedPrompt& prompt : *prompts) {
    const auto tokens = static_cast<int64_t>(prompt.ids.size());
    if (tokens >= config_.context_tokens || tokens + wanted > config_.context_tokens) {
      RequestError error = too_long(config_, prompt.ids.size(), wanted);
      if (request.kind == Request::Kind::kCompletion) error.param = "prompt";
      return error;
    }
  }
  if (auto error = check_finite(request)) return *error;
  return outcome;
}

std::variant<PreparedPrompts, RequestError> Preparer::tokenize(const Request& request) const {
  if (!tokenizer_->has_text() && needs_text(request)) {
    return with_code(
        ErrorCode::kUnsupported, request.kind == Request::Kind::kChat ? "messages" : "prompt",
        config_.model_name + " has no tokenizer: a prompt can only be token ids or embeddings");
  }
  auto outcome =
      request.kind == Request::Kind::kChat ? tokenize_chat(request) : tokenize_completion(request);
  auto* prompts = std::get_if<PreparedPrompts>(&outcome);
  if (prompts == nullptr) return outcome;
  for (PreparedPrompt& prompt : *prompts) {
    bool only_control = prompt.inputs.empty();
    for (const int32_t id : prompt.ids) {
      // Ids of the client's own that are below 0 were refused where its parts were joined.
      if (id == kNoToken && !prompt.inputs.empty()) continue;
      if (id < 0 || id >= std::min(config_.vocab_count, tokenizer_->vocab_count())) {
        return invalid(
            "prompt", "the prompt contains token " + std::to_string(id) +
                          ", but the vocabulary has " +
                          std::to_string(std::min(config_.vocab_count, tokenizer_->vocab_count())));
      }
      only_control = only_control && tokenizer_->is_control(id);
    }
    prompt.answer_starts_text = only_control;
  }
  return outcome;
}

std::variant<PreparedPrompts, RequestError> Preparer::tokenize_chat(const Request& request) const {
  if (request.messages.empty()) return invalid("messages", "messages is empty");
  std::vector<TemplateMessage> messages;
  for (size_t i = 0; i < request.messages.size(); ++i) {
    const ChatMessage& message = request.messages[i];
    for (size_t j = 0; j < message.parts.size(); ++j) {
      if (message.parts[j].kind == ContentPart::Kind::kText) continue;
      return with_code(
          ErrorCode::kUnsupported, content_place(i, j),
          content_place(i, j) + " is an image, but " + config_.model_name + " reads text only");
    }
    messages.push_back(
        {message.role == "developer" ? "system" : message.role, joined_text(message)});
  }
  if (chat_template_ == nullptr) {
    return with_code(ErrorCode::kUnsupported, "messages", config_.no_template_reason);
  }
  TemplateOptions options;
  options.enable_thinking = request.enable_thinking;
  const auto segments = chat_template_->render(messages, options);
  if (!segments) return invalid("messages", segments.message());
  auto ids = encode_segments(*tokenizer_, *chat_template_, *segments);
  if (!ids) return invalid("messages", ids.message());
  PreparedPrompts out(1);
  out[0].ids = std::move(*ids);
  return out;
}

// One prompt of the parts as they follow each other. A text is tokenized by itself: words do not
// cross the border to ids or rows.
std::variant<PreparedPrompts, RequestError> Preparer::tokenize_parts(const Request& request) const {
  PreparedPrompts out(1);
  PreparedPrompt& prompt = out[0];
  for (size_t i = 0; i < request.prompt_parts.size(); ++i) {
    const PromptPart& part = request.prompt_parts[i];
    switch (part.kind) {
      case PromptPart::Kind::kText:
        if (i == 0 && tokenizer_->add_bos() && tokenizer_->bos_id() >= 0)
          prompt.ids.push_back(tokenizer_->bos_id());
        tokenizer_->encode(part.text, SpecialText::kParse, i == 0, prompt.ids);
        break;
      case PromptPart::Kind::kIds:
        for (const int32_t id : part.ids) {
          if (id < 0) {
            return invalid("prompt",
                           part_place(i) + " contains " + std::to_string(id) + ", no token's id");
          }
        }
        prompt.ids.insert(prompt.ids.end(), part.ids.begin(), part.ids.end());
        break;
      case PromptPart::Kind::kEmbeddings: {
        const EmbeddingRows& rows = part.rows;
        if (rows.dim != config_.hidden_dim) {
          return invalid("prompt", part_place(i) + " has rows of " + std::to_string(rows.dim) +
                                       " values, but " + config_.model_name +
                                       " takes embeddings of " +
                                       std::to_string(config_.hidden_dim));
        }
        if (const auto problem = embedding_problem(rows); problem || rows.row_count < 1) {
          return invalid("prompt", part_place(i) + " " + problem.value_or("has no rows"));
        }
        prompt.inputs.push_back({static_cast<int32_t>(prompt.ids.size()), rows});
        prompt.ids.insert(prompt.ids.end(), static_cast<size_t>(rows.row_count), kNoToken);
        break;
      }
    }
  }
  if (prompt.ids.empty()) return invalid("prompt", "prompt is empty");
  return out;
}

// Raw prompts are the caller's own template: special tokens written in them count, as with the
// peers' /v1/completions.
std::variant<PreparedPrompts, RequestError> Preparer::tokenize_completion(
    const Request& request) const {
  if (!request.prompt_parts.empty()) return tokenize_parts(request);
  PreparedPrompts out;
  for (const std::string& prompt : request.prompts) {
    out.push_back({tokenizer_->encode_all(prompt, SpecialText::kParse, true), {}, false});
  }
  for (const std::vector<int32_t>& ids : request.prompt_ids) out.push_back({ids, {}, false});
  if (out.empty()) return invalid("prompt", "prompt is empty");
  for (PreparedPrompt& prompt : out) {
    if (!prompt.ids.empty()) continue;
    if (tokenizer_->bos_id() < 0) {
      return invalid("prompt", "prompt is empty, and " + config_.model_name +
                                   " has no token to begin a text with");
    }
    prompt.ids = {tokenizer_->bos_id()};
  }
  return out;
}

}  // namespace updraft
