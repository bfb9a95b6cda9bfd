// GLM-4, GLM-4-0414 and GLM-4.1V: role markers without closing marks; a turn ends where the next
// marker begins.
#include "common/text/chat_families.h"
#include "common/text/prompt_builder.h"

namespace updraft {
namespace {

class Glm4 final : public ChatTemplate {
 public:
  explicit Glm4(Glm4Style style) : style_(style) {}
  const char* name() const override { return "glm4"; }
  bool contains_bos() const override { return false; }
  std::string_view bos_text() const override { return {}; }

  Result<std::vector<PromptSegment>> render(std::span<const TemplateMessage> messages,
                                            const TemplateOptions& options) const override {
    if (messages.empty()) return fail("chat template glm4: no messages");
    for (size_t i = 0; i < messages.size(); ++i) {
      if (marker(messages[i].role) != nullptr) continue;
      return unknown_role(name(), i, messages[i].role,
                          style_.observations ? "system, user, assistant, tool, observation"
                                              : "system, user, assistant");
    }
    PromptBuilder prompt;
    prompt.own("[gMASK]<sop>");
    if (style_.system_first) {
      add_turns(prompt, messages,
                [](const TemplateMessage& message) { return message.role == "system"; });
      add_turns(prompt, messages,
                [](const TemplateMessage& message) { return message.role != "system"; });
    } else {
      add_turns(prompt, messages, [](const TemplateMessage&) { return true; });
    }
    if (options.add_generation_prompt)
      prompt.own(style_.newline_after_generation ? "<|assistant|>\n" : "<|assistant|>");
    return prompt.take();
  }

 private:
  const char* marker(std::string_view role) const {
    if (role == "system") return "<|system|>\n";
    if (role == "user") return "<|user|>\n";
    if (role == "assistant") return "<|assistant|>\n";
    if (style_.observations && (role == "tool" || role == "observation"))
      return "<|observation|>\n";
    return nullptr;
  }

  template <typename Wanted>
  void add_turns(PromptBuilder& prompt, std::span<const TemplateMessage> messages,
                 Wanted wanted) const {
    for (const TemplateMessage& message : messages) {
      if (!wanted(message) || (style_.skips_empty && message.content.empty())) continue;
      prompt.own(marker(message.role)).content(message.content);
    }
  }

  Glm4Style style_;
};

}  // namespace

SharedTemplate make_glm4(Glm4Style style) { return std::make_shared<Glm4>(style); }

}  // namespace updraft
