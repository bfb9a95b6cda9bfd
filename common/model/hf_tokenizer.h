// Tokenizer files of a Hugging Face folder -> TokenizerData: tokenizer.json (byte-level BPE, and
// SentencePiece-style BPE with byte fallback), tokenizer_config.json, chat_template.jinja.
#pragma once

#include <string>

#include "common/base/result.h"
#include "common/model/json.h"
#include "common/model/model.h"

namespace updraft {

// A folder without tokenizer.json gives empty data. A kind of tokenizer that Updraft does not have
// gives data whose `model` or `pre` names it, so that the refusal comes when a tokenizer is built,
// and the weights stay usable without one. Malformed files are errors. vocab_count: rows of the
// embedding table, or 0 when not known; ids beyond it are refused (in the vocabulary) or dropped
// (added tokens), missing ids become unused "[PAD<id>]" tokens.
Result<TokenizerData> read_hf_tokenizer(const std::string& folder, int32_t vocab_count);

// The same from a parsed tokenizer.json alone; errors do not name the file.
Result<TokenizerData> read_tokenizer_json(const JsonValue& root, int32_t vocab_count);

}  // namespace updraft
