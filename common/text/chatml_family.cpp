// ChatML, Qwen2, Qwen2.5 and Qwen3: turns between <|im_start|> and <|im_end|>.
#include "common/text/chat_families.h"
#include "common/text/prompt_builder.h"

namespace updraft {
namespace {

constexpr const char* kRoles = "system, user, assistant, tool";

void add_turn(PromptBuilder& prompt, const TemplateMessage& message) {
  prompt.own("<|im_start|>")
      .own(message.role)
      .own("\n")
      .content(message.content)
      .own("<|im_end|>\n");
}

// Answers of tools that follow each other share one user turn.
void add_tool_answer(PromptBuilder& prompt, std::span<const TemplateMessage> messages,
                     size_t index) {
  if (index == 0 || messages[index - 1].role != "tool") prompt.own("<|im_start|>user");
  prompt.own("\n<tool_response>\n").content(messages[index].content).own("\n</tool_response>");
  if (index + 1 == messages.size() || messages[index + 1].role != "tool")
    prompt.own("<|im_end|>\n");
}

// The role goes into trusted text, so only these may.
Result<void> check_roles(const char* family, std::span<const TemplateMessage> messages) {
  if (messages.empty()) return fail("chat template " + std::string(family) + ": no messages");
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
      return unknown_role(family, i, role, kRoles);
    }
  }
  return {};
}

class Chatml final : public ChatTemplate {
 public:
  explicit Chatml(ChatmlStyle style) : style_(std::move(style)) {}
  const char* name() const override { return style_.name; }
  bool contains_bos() const override { return style_.begins_with_bos; }
  std::string_view bos_text() const override { return {}; }

  Result<std::vector<PromptSegment>> render(std::span<const TemplateMessage> messages,
                                            const TemplateOptions& options) const override {
    if (const auto checked = check_roles(name(), messages); !checked) return checked.error();
    PromptBuilder prompt;
    if (!style_.default_system.empty() && messages[0].role != "system") {
      prompt.own("<|im_start|>system\n").own(style_.default_system).own("<|im_end|>\n");
    }
    for (size_t i = 0; i < messages.size(); ++i) {
      if (style_.tool_answers_in_user && messages[i].role == "tool") {
        add_tool_answer(prompt, messages, i);
      } else {
        add_turn(prompt, messages[i]);
      }
    }
    if (options.add_generation_prompt) prompt.own("<|im_start|>assistant\n");
    return prompt.take();
  }

 private:
  ChatmlStyle style_;
};

class Qwen3 final : public ChatTemplate {
 public:
  const char* name() const override { return "qwen3"; }
  bool contains_bos() const override { return false; }
  std::string_view bos_text() const override { return {}; }

  Result<std::vector<PromptSegment>> render(std::span<const TemplateMessage> messages,
                                            const TemplateOptions& options) const override {
    if (const auto checked = check_roles(name(), messages); !checked) return checked.error();
    const size_t question = last_question(messages);
    PromptBuilder prompt;
    for (size_t i = 0; i < messages.size(); ++i) {
      const TemplateMessage& message = messages[i];
      if (message.role == "tool") {
        add_tool_answer(prompt, messages, i);
      } else if (message.role == "assistant") {
        add_answer(prompt, message.content, i > question, i + 1 == messages.size());
      } else {
        add_turn(prompt, message);
      }
    }
    if (options.add_generation_prompt) {
      prompt.own("<|im_start|>assistant\n");
      if (!options.enable_thinking) prompt.own("<think>\n\n</think>\n\n");
    }
    return prompt.take();
  }

 private:
  // The last user message that is not a tool's answer in disguise; the last message when there is
  // none.
  static size_t last_question(std::span<const TemplateMessage> messages) {
    for (size_t i = messages.size(); i-- > 0;) {
      const std::string& text = messages[i].content;
      const bool tool_answer =
          text.starts_with("<tool_response>") && text.ends_with("</tool_response>");
      if (messages[i].role == "user" && !tool_answer) return i;
    }
    return messages.size() - 1;
  }

  static void add_answer(PromptBuilder& prompt, std::string_view text, bool after_question,
                         bool last) {
    constexpr std::string_view kOpen = "<think>", kClose = "</think>";
    std::string_view answer = text, thoughts;
    if (const size_t close = text.find(kClose); close != std::string_view::npos) {
      answer = strip_newlines_front(text.substr(text.rfind(kClose) + kClose.size()));
      thoughts = strip_newlines_back(text.substr(0, close));
      const size_t open = thoughts.rfind(kOpen);
      if (open != std::string_view::npos) thoughts.remove_prefix(open + kOpen.size());
      thoughts = strip_newlines_front(thoughts);
    }
    prompt.own("<|im_start|>assistant\n");
    if (after_question && (last || !thoughts.empty())) {
      prompt.own("<think>\n").content(strip_newlines(thoughts)).own("\n</think>\n\n");
      answer = strip_newlines_front(answer);
    }
    prompt.content(answer).own("<|im_end|>\n");
  }
};

}  // namespace

SharedTemplate make_chatml(ChatmlStyle style) { return std::make_shared<Chatml>(std::move(style)); }
SharedTemplate make_qwen3() { return std::make_shared<Qwen3>(); }

}  // namespace updraft
