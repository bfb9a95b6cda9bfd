// Vocabularies for the text tests: read from a GGUF file, or small ones made by hand.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/text/tokenizer.h"

namespace updraft::testing {

// The tokenizer keys of a vocabulary file in the shared data; nothing (and a printed reason) when
// it is not there.
std::optional<TokenizerData> shared_vocabulary(const std::string& name);
std::shared_ptr<const Tokenizer> shared_tokenizer(const std::string& name);

// A gpt2 vocabulary: the 256 byte tokens in byte order (ids 0..255), then one token per merge, then
// the control tokens.
TokenizerData byte_vocabulary(const std::vector<std::string>& merges,
                              const std::vector<std::string>& controls,
                              const std::string& pre = "gpt-2");

// A llama vocabulary: <unk>, <s>, </s>, the 256 byte tokens (ids 3..258), then `words` with falling
// scores.
TokenizerData spm_vocabulary(const std::vector<std::string>& words);

// The cases of a llama.cpp vector file and the ids expected for each.
struct VectorCase {
  std::string text;
  std::vector<int32_t> ids;
};
std::optional<std::vector<VectorCase>> vector_cases(const std::string& name);

}  // namespace updraft::testing
