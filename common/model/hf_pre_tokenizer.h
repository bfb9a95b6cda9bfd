// The pre_tokenizer of tokenizer.json -> the name of a splitter that the tokenizer knows
// ("llama-bpe", "qwen2", ...).
#pragma once

#include <string>

#include "common/model/json.h"

namespace updraft {

// Whether the value is, or holds in its sequence, a ByteLevel step.
bool is_byte_level(const JsonValue& pre_tokenizer);

// The splitter's name by comparing the list of its expressions with the known ones; for an unknown
// one a text that says what is not known and that is nobody's name.
std::string splitter_name(const JsonValue& pre_tokenizer, bool ignore_merges);

}  // namespace updraft
