// Collects a prompt's segments while a template renders, and the text operations that templates
// share. One owner thread.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/text/chat_template.h"

namespace updraft {

class PromptBuilder {
 public:
  // Text of the template.
  PromptBuilder& own(std::string_view text) { return add(text, true); }
  // Text of a message.
  PromptBuilder& content(std::string_view text) { return add(text, false); }
  std::vector<PromptSegment> take() { return std::move(segments_); }

 private:
  PromptBuilder& add(std::string_view text, bool trusted) {
    if (text.empty()) return *this;
    if (segments_.empty() || segments_.back().trusted != trusted)
      segments_.push_back({"", trusted});
    segments_.back().text += text;
    return *this;
  }

  std::vector<PromptSegment> segments_;
};

// Python's str.strip(): blanks as Unicode (and Python) count them.
std::string_view strip_blanks(std::string_view text);
std::string_view strip_blanks_back(std::string_view text);
// Python's strip('\n') and its halves.
std::string_view strip_newlines(std::string_view text);
std::string_view strip_newlines_front(std::string_view text);
std::string_view strip_newlines_back(std::string_view text);

// "chat template glm4: messages[2] has role 'critic', which the family does not know (it knows
// system, user, assistant)".
Error unknown_role(const char* family, size_t index, std::string_view role, const char* known);

}  // namespace updraft
