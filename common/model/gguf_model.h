// The mapping from GGUF's keys and tensors to hyperparameters, tokenizer and weights. Key names:
// ggml's docs/gguf.md and the converters of llama.cpp. Tools that need only a part (plan, doctor,
// tests of tokenizers) use these functions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/model/gguf.h"
#include "common/model/model.h"

namespace updraft {

// Everything but tied_embeddings, which the tensors tell. vocab_count comes from the embedding
// table, or for files without tensors from <arch>.vocab_size or the tokenizer. Errors name the
// file, the key and the value.
Result<Hyperparameters> read_hyperparameters(const GgufFile& file);

// Model is empty when the file has no tokenizer. Sizes of arrays agree, ids are within the
// vocabulary, each merge has two halves; the rest is checked where a tokenizer is built from it.
Result<TokenizerData> read_tokenizer(const GgufFile& file);

// The model that the parts of a split file, or the one file, describe. `path` is what was asked
// for.
Result<std::shared_ptr<const Model>> make_gguf_model(
    const std::vector<std::shared_ptr<const GgufFile>>& parts, const std::string& path);

}  // namespace updraft
