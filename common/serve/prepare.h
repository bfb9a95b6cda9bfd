// From a request to prompt ids, or to a typed error that names the field: the checks, the chat
// template, the tokenizer and the context limit. Immutable; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/engine/input_rows.h"
#include "common/message/request.h"
#include "common/message/request_error.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"

namespace updraft {

// Choices in all of one request at most (n for each prompt).
inline constexpr int32_t kChoicesMax = 128;

struct PreparedPrompt {
  std::vector<int32_t> ids;       // kNoToken where `inputs` says what stands there
  std::vector<InputRows> inputs;  // views of the request's bytes
  bool answer_starts_text =
      false;  // nothing but control tokens in front: SPM drops the answer's first space
};
using PreparedPrompts = std::vector<PreparedPrompt>;

struct PreparerConfig {
  std::string model_name;                   // as served, for messages
  std::vector<std::string> accepted_names;  // of `model`; an empty name is accepted too
  int32_t context_tokens = 0;
  int32_t vocab_count = 0;         // rows of the embedding table
  int32_t hidden_dim = 0;          // and the values of one
  std::string no_template_reason;  // why chat is not possible, when there is no template
};

class Preparer {
 public:
  // chat_template may be null: chat requests are then refused.
  Preparer(PreparerConfig config, std::shared_ptr<const Tokenizer> tokenizer,
           std::shared_ptr<const ChatTemplate> chat_template);

  // All checks and the ids, in the order of the request's prompts. Input embeddings are read and
  // must be finite; whoever copies them for good judges them again, because their client may write.
  std::variant<PreparedPrompts, RequestError> prepare(const Request& request) const;
  // The ids alone, however long; no check of the sampling parameters.
  std::variant<PreparedPrompts, RequestError> tokenize(const Request& request) const;

 private:
  std::variant<PreparedPrompts, RequestError> tokenize_chat(const Request& request) const;
  std::variant<PreparedPrompts, RequestError> tokenize_completion(const Request& request) const;
  std::variant<PreparedPrompts, RequestError> tokenize_parts(const Request& request) const;

  const PreparerConfig config_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const std::shared_ptr<const ChatTemplate> chat_template_;
};

}  // namespace updraft
