// Chat templates: conversations to prompt text. The template in a model file is recognised, not
// executed (no Jinja interpreter, so a hostile file cannot run anything); each known family is
// rendered natively.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace updraft {

struct TemplateMessage {
  std::string role;  // "system", "user", "assistant", "tool"
  std::string content;
};

// Prompt text in order. Trusted text comes from the template and may contain special tokens;
// untrusted text is the user's and is tokenized as plain text.
struct PromptSegment {
  std::string text;
  bool trusted = false;
};

struct TemplateOptions {
  bool add_generation_prompt = true;
  bool enable_thinking = true;  // qwen3
};

class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;

  // family names: "glm4", "chatml", "qwen2.5", "qwen3", "llama2", "llama3", "mistral".
  static Result<std::shared_ptr<const ChatTemplate>> by_name(std::string_view family);
  // Recognises the Jinja source of a model file. Unknown: an error that quotes the beginning of the
  // template and says to set chat_template in the configuration to one of the known families.
  static Result<std::shared_ptr<const ChatTemplate>> recognise(std::string_view jinja_source);

  virtual const char* name() const = 0;
  // Errors: a role the family does not know, an order it refuses (for example Mistral's
  // alternation).
  virtual Result<std::vector<PromptSegment>> render(std::span<const TemplateMessage> messages,
                                                    const TemplateOptions& options) const = 0;
  // The rendered text already begins with BOS: the tokenizer must not add another.
  virtual bool contains_bos() const = 0;
};

}  // namespace updraft
