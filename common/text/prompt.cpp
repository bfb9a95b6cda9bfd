// Segments to spans, and the question who brings BOS.
#include "common/text/prompt.h"

namespace updraft {

Result<std::vector<int32_t>> encode_segments(const Tokenizer& tokenizer,
                                             const ChatTemplate& chat_template,
                                             std::span<const PromptSegment> segments) {
  std::vector<TextSpan> spans;
  spans.reserve(segments.size());
  for (const PromptSegment& segment : segments) {
    spans.push_back({segment.text, segment.trusted ? SpecialText::kParse : SpecialText::kPlain});
  }
  const std::string_view bos_text = chat_template.bos_text();
  if (!bos_text.empty() && !spans.empty() && spans[0].special == SpecialText::kParse &&
      spans[0].text.starts_with(bos_text)) {
    spans[0].text.remove_prefix(bos_text.size());
  }
  const bool wants_bos = chat_template.contains_bos() || tokenizer.add_bos();
  std::vector<int32_t> ids;
  tokenizer.encode_spans(spans, true, ids);
  if (ids.empty())
    return fail("chat template " + std::string(chat_template.name()) + ": the prompt is empty");
  if (wants_bos && tokenizer.bos_id() >= 0 && ids.front() != tokenizer.bos_id()) {
    ids.insert(ids.begin(), tokenizer.bos_id());
  }
  return ids;
}

}  // namespace updraft
