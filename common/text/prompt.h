// From a rendered conversation to prompt ids. The one idea: the rendered text is tokenized as one
// text, as the model saw it in training (a template's "user\n" and the user's words are one run
// between two special tokens), yet only the template's own bytes can become control tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/base/result.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"

namespace updraft {

// Ids of the whole prompt, BOS once where the template or the tokenizer asks for it and the
// vocabulary has one. A BOS that the template spells in front is replaced by the vocabulary's own.
// Error: a prompt without any text.
Result<std::vector<int32_t>> encode_segments(const Tokenizer& tokenizer,
                                             const ChatTemplate& chat_template,
                                             std::span<const PromptSegment> segments);

}  // namespace updraft
