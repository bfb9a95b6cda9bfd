// Recognition of splitters. Expressions: the tokenizer.json files of the published models; names:
// GGUF's tokenizer.ggml.pre.
#include "common/model/hf_pre_tokenizer.h"

#include <vector>

#include "common/base/bytes.h"

namespace updraft {
namespace {

using Expressions = std::vector<std::string>;

const std::string kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string kContractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const std::string kContractionsSpelled =
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
const std::string kWord = R"(|[^\r\n\p{L}\p{N}]?\p{L}+|)";
const std::string kRest = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Splitter {
  const char* name;
  Expressions expressions;
};

const std::vector<Splitter>& known_splitters() {
  static const std::vector<Splitter> kSplitters = {
      {"llama-bpe", {kContractions + kWord + R"(\p{N}{1,3})" + kRest}},
      {"qwen2", {kContractions + kWord + R"(\p{N})" + kRest}},
      {"gpt-2", {kGpt2}},
      {"starcoder", {R"(\p{N})", kGpt2}},
      {"deepseek-coder",
       {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        R"(\p{N})"}},
  };
  return kSplitters;
}

std::string text_of(const JsonValue& object, const char* key) {
  const JsonValue* value = object.find(key);
  return value != nullptr && value->text() != nullptr ? *value->text() : std::string();
}

bool flag_of(const JsonValue& object, const char* key, bool fallback) {
  const JsonValue* value = object.find(key);
  return value == nullptr ? fallback : value->boolean().value_or(fallback);
}

// The steps of a sequence, or the value itself.
std::vector<const JsonValue*> steps_of(const JsonValue& pre_tokenizer) {
  std::vector<const JsonValue*> out;
  const JsonValue* sequence = pre_tokenizer.find("pretokenizers");
  if (text_of(pre_tokenizer, "type") != "Sequence" || sequence == nullptr ||
      sequence->array() == nullptr) {
    return {&pre_tokenizer};
  }
  for (const JsonValue& step : *sequence->array()) out.push_back(&step);
  return out;
}

// The expression of a Split step that keeps every piece: isolated matches, or removed gaps. Empty
// otherwise.
std::string split_expression(const JsonValue& step) {
  const std::string behavior = text_of(step, "behavior");
  const bool invert = flag_of(step, "invert", false);
  if (!(behavior == "Isolated" && !invert) && !(behavior == "Removed" && invert)) return "";
  const JsonValue* pattern = step.find("pattern");
  std::string out = pattern == nullptr ? "" : text_of(*pattern, "Regex");
  if (out.starts_with(kContractionsSpelled))
    out = kContractions + out.substr(kContractionsSpelled.size());
  return out;
}

// Appends the expressions of one step; false when it is none that the known splitters use.
bool add_expressions(const JsonValue& step, Expressions& out) {
  const std::string type = text_of(step, "type");
  if (type == "Split") {
    out.push_back(split_expression(step));
    return !out.back().empty();
  }
  if (type == "Digits") {
    out.push_back(R"(\p{N})");
    return flag_of(step, "individual_digits", false);
  }
  if (type != "ByteLevel" || flag_of(step, "add_prefix_space", false)) return false;
  if (flag_of(step, "use_regex", true)) out.push_back(kGpt2);
  return true;
}

}  // namespace

bool is_byte_level(const JsonValue& pre_tokenizer) {
  for (const JsonValue* step : steps_of(pre_tokenizer)) {
    if (text_of(*step, "type") == "ByteLevel") return true;
  }
  return false;
}

std::string splitter_name(const JsonValue& pre_tokenizer, bool ignore_merges) {
  Expressions expressions;
  for (const JsonValue* step : steps_of(pre_tokenizer)) {
    if (!add_expressions(*step, expressions)) {
      return "unknown pre_tokenizer step " + printable(text_of(*step, "type"), 40);
    }
  }
  for (const Splitter& splitter : known_splitters()) {
    if (expressions != splitter.expressions) continue;
    // One expression, two families: Llama 3 looks whole words up before merging, GLM-4 does not.
    if (std::string_view(splitter.name) == "llama-bpe" && !ignore_merges) return "glm4";
    return splitter.name;
  }
  return "unknown pre_tokenizer" +
         (expressions.empty() ? "" : " " + printable(expressions.front(), 80));
}

}  // namespace updraft
