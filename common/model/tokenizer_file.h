// The tokenizer of a model file alone, for tools and tests that need no weights (vocabulary-only
// GGUF files included).
#pragma once

#include <string>

#include "common/base/result.h"
#include "common/model/model.h"

namespace updraft {

// A .gguf file of any architecture, with or without tensors, or a folder with tokenizer.json. An
// error when there is no tokenizer in it.
Result<TokenizerData> open_tokenizer_data(const std::string& path);

}  // namespace updraft
