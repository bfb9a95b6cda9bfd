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
// untrusted text is the user's and is tokenized as plain text. Neighbours differ in trust and none
// is empty.
struct PromptSegment {
  std::string text;
  bool trusted = false;
};

struct TemplateOptions {
  bool add_generation_prompt = true;
  bool enable_thinking = true;  // qwen3
};

// Immutable: any thread.
class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;

  // Family names: see known_chat_templates(). A family with variants gives its newest one.
  static Result<std::shared_ptr<const ChatTemplate>> by_name(std::string_view family);
  // Recognises the Jinja source of a model file by its shape (jinja_shape.h): short templates as a
  // whole, long ones by every statement that a conversation without tools passes through. So a
  // template that merely uses a family's markers is not taken for it. Unknown: an error that quotes
  // the beginning of the template and says to set chat_template in the configuration to one of the
  // known families.
  static Result<std::shared_ptr<const ChatTemplate>> recognise(std::string_view jinja_source);

  // The family's name.
  virtual const char* name() const = 0;
  // Errors: no messages, a role the family does not know, an order it refuses (for example
  // Mistral's alternation).
  virtual Result<std::vector<PromptSegment>> render(std::span<const TemplateMessage> messages,
                                                    const TemplateOptions& options) const = 0;
  // The prompt begins with BOS by the template's own words: the tokenizer must not add another.
  virtual bool contains_bos() const = 0;
  // How the rendered text spells that BOS in front; empty when it leaves it to whoever tokenizes.
  virtual std::string_view bos_text() const = 0;
};

// "chatml, glm4, llama2, ...": for messages and configuration checks.
std::string known_chat_templates();

}  // namespace updraft
