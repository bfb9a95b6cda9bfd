// Llama 2, Llama 3 (and 3.1 and later), Mistral: the templates that spell BOS themselves.
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include "common/text/chat_families.h"
#include "common/text/prompt_builder.h"

namespace updraft {
namespace {

std::string in_family(const char* family, const std::string& what) {
  return "chat template " + std::string(family) + ": " + what;
}

// user, assistant, user ... from `first` on.
Result<void> check_alternation(const char* family, std::span<const TemplateMessage> messages,
                               size_t first, const char* known) {
  for (size_t i = first; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "user" && role != "assistant" && role != "system")
      return unknown_role(family, i, role, known);
    const char* wanted = (i - first) % 2 == 0 ? "user" : "assistant";
    if (role == wanted) continue;
    return fail(in_family(family, "messages[" + std::to_string(i) + "] has role '" + role +
                                      "' where '" + wanted + "' must come (turns alternate" +
                                      (first == 0 ? ")" : " after the system message)")));
  }
  if (first == messages.size()) return fail(in_family(family, "there is no user message"));
  return {};
}

class Llama2 final : public ChatTemplate {
 public:
  const char* name() const override { return "llama2"; }
  bool contains_bos() const override { return true; }
  std::string_view bos_text() const override { return "<s>"; }

  Result<std::vector<PromptSegment>> render(std::span<const TemplateMessage> messages,
                                            const TemplateOptions& /*options*/) const override {
    const bool system = !messages.empty() && messages[0].role == "system";
    const size_t first = system ? 1 : 0;
    const auto checked = check_alternation(name(), messages, first, "system, user, assistant");
    if (!checked) return checked.error();
    PromptBuilder prompt;
    for (size_t i = first; i < messages.size(); ++i) {
      if (messages[i].role == "assistant") {
        prompt.own(" ").content(strip_blanks(messages[i].content)).own(" </s>");
        continue;
      }
      prompt.own("<s>[INST] ");
      if (i == first && system) {
        add_first(prompt, messages[0].content, messages[i].content);
      } else {
        prompt.content(strip_blanks(messages[i].content));
      }
      prompt.own(" [/INST]");
    }
    return prompt.take();
  }

 private:
  // The template strips system block and question as one text, so blanks before the question stay,
  // and a blank question takes the block's last line ends with it.
  static void add_first(PromptBuilder& prompt, std::string_view system, std::string_view question) {
    const std::string_view kept = strip_blanks_back(question);
    prompt.own("<<SYS>>\n")
        .content(system)
        .own(kept.empty() ? "\n<</SYS>>" : "\n<</SYS>>\n\n")
        .content(kept);
  }
};

class Mistral final : public ChatTemplate {
 public:
  explicit Mistral(MistralStyle style) : style_(style) {}
  const char* name() const override { return "mistral"; }
  bool contains_bos() const override { return true; }
  std::string_view bos_text() const override { return "<s>"; }

  Result<std::vector<PromptSegment>> render(std::span<const TemplateMessage> messages,
                                            const TemplateOptions& /*options*/) const override {
    const bool system = style_.system && !messages.empty() && messages[0].role == "system";
    const size_t first = system ? 1 : 0;
    const char* known = style_.system ? "system, user, assistant" : "user, assistant";
    for (size_t i = 0; i < messages.size() && !style_.system; ++i) {
      if (messages[i].role == "system") return unknown_role(name(), i, "system", known);
    }
    const auto checked = check_alternation(name(), messages, first, known);
    if (!checked) return checked.error();
    if (system && style_.system_in_last_turn && messages.back().role != "user") {
      // The template would leave the system message out without a word.
      return fail(in_family(name(), "with a system message the last message must be the user's"));
    }
    const size_t system_turn = style_.system_in_last_turn ? messages.size() - 1 : first;
    PromptBuilder prompt;
    prompt.own("<s>");
    for (size_t i = first; i < messages.size(); ++i) {
      const std::string& text = messages[i].content;
      if (messages[i].role == "assistant") {
        prompt.own(style_.before_answer)
            .content(style_.trims_answers ? strip_blanks(text) : std::string_view(text));
        prompt.own(style_.after_answer);
        continue;
      }
      prompt.own(style_.before_user);
      if (i == system_turn && system) prompt.content(messages[0].content).own("\n\n");
      prompt.content(text).own(style_.after_user);
    }
    return prompt.take();
  }

 private:
  MistralStyle style_;
};

class Llama3 final : public ChatTemplate {
 public:
  explicit Llama3(Llama3Style style) : style_(std::move(style)) {}
  const char* name() const override { return style_.dated_system ? "llama3.1" : "llama3"; }
  bool contains_bos() const override { return true; }
  std::string_view bos_text() const override { return "<|begin_of_text|>"; }

  Result<std::vector<PromptSegment>> render(std::span<const TemplateMessage> messages,
                                            const TemplateOptions& options) const override {
    if (messages.empty()) return fail(in_family(name(), "no messages"));
    PromptBuilder prompt;
    prompt.own("<|begin_of_text|>");
    size_t first = 0;
    if (style_.dated_system) {
      prompt.own(
          "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
          "2023\nToday Date: ");
      prompt.own(style_.date).own("\n\n");
      if (messages[0].role == "system") prompt.content(strip_blanks(messages[first++].content));
      prompt.own("<|eot_id|>");
    }
    for (size_t i = first; i < messages.size(); ++i) {
      if (!add_turn(prompt, messages[i])) {
        return unknown_role(
            name(), i, messages[i].role,
            style_.dated_system ? "system, user, assistant, tool" : "system, user, assistant");
      }
    }
    if (options.add_generation_prompt)
      prompt.own("<|start_header_id|>assistant<|end_header_id|>\n\n");
    return prompt.take();
  }

 private:
  bool add_turn(PromptBuilder& prompt, const TemplateMessage& message) const {
    const std::string& role = message.role;
    if (style_.dated_system && (role == "tool" || role == "ipython")) {
      // The template writes every answer of a tool as JSON, a text as a JSON string.
      prompt.own("<|start_header_id|>ipython<|end_header_id|>\n\n");
      prompt.content(boost::json::serialize(boost::json::value(message.content))).own("<|eot_id|>");
      return true;
    }
    if (role != "system" && role != "user" && role != "assistant") return false;
    prompt.own("<|start_header_id|>").own(role).own("<|end_header_id|>\n\n");
    prompt.content(strip_blanks(message.content)).own("<|eot_id|>");
    return true;
  }

  Llama3Style style_;
};

}  // namespace

SharedTemplate make_llama2() { return std::make_shared<Llama2>(); }
SharedTemplate make_mistral(MistralStyle style) { return std::make_shared<Mistral>(style); }
SharedTemplate make_llama3(Llama3Style style) { return std::make_shared<Llama3>(std::move(style)); }

}  // namespace updraft
