// The splitters' table. Patterns as the model families publish them, with one difference in
// spelling: \s is written out as Unicode's White_Space, because PCRE2's own \s still counts U+180E,
// which tokenizers trained on newer tables do not.
#include "common/text/splitter.h"

#include "common/text/utf8.h"

namespace updraft {
namespace {

// The inside of a character class: Unicode White_Space.
#define SPACE      \
  "\\x{9}-\\x{d} " \
  "\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define CONTRACTIONS "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
// The GPT-4 shape: a word with at most one other character in front, numbers of `digits`,
// punctuation with the line ends after it, line ends with the blanks before them, blanks up to the
// one that belongs to the next word.
#define GPT4_SHAPE(digits)                                            \
  CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" SPACE \
               "\\p{L}\\p{N}]+[\\r\\n]*"                              \
               "|[" SPACE "]*[\\r\\n]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"
#define GPT2_SHAPE                                                                  \
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+|[" SPACE \
  "]+(?![^" SPACE "])"

struct Known {
  std::vector<const char*> names;
  std::vector<const char*> patterns;
  SplitterDefaults defaults;
};

const std::vector<Known>& known() {
  static const std::vector<Known> table = {
      {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"},
       {GPT4_SHAPE("\\p{N}{1,3}")},
       {.ignore_merges = true, .add_bos = true}},
      {{"glm4", "chatglm-bpe"}, {GPT4_SHAPE("\\p{N}{1,3}")}, {}},
      {{"qwen2", "deepseek-r1-qwen", "megrez"}, {GPT4_SHAPE("\\p{N}")}, {}},
      {{"gpt-2", "phi-2"}, {GPT2_SHAPE}, {}},
      {{"starcoder", "refact", "command-r", "smollm"}, {"\\p{N}", GPT2_SHAPE}, {}},
      {{"falcon"}, {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2_SHAPE, "[0-9][0-9][0-9]"}, {}},
      {{"deepseek-coder"},
       {"[\\r\\n]", "[" SPACE "]?\\p{L}+", "[" SPACE "]?\\p{P}+",
        "[\\x{4E00}-\\x{9FA5}\\x{0800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+", "\\p{N}"},
       {}},
  };
  return table;
}

#undef SPACE
#undef CONTRACTIONS
#undef GPT4_SHAPE
#undef GPT2_SHAPE

}  // namespace

std::string known_splitters() {
  std::string names;
  for (const Known& entry : known()) {
    for (const char* name : entry.names) names += (names.empty() ? "" : ", ") + std::string(name);
  }
  return names;
}

Result<Splitter> Splitter::by_name(std::string_view name) {
  for (const Known& entry : known()) {
    for (const char* known_name : entry.names) {
      if (name != known_name) continue;
      Splitter splitter;
      splitter.defaults_ = entry.defaults;
      for (const char* pattern : entry.patterns) {
        Result<Regex> regex = Regex::compile(pattern);
        if (!regex) return regex.error("splitter " + std::string(name));
        splitter.stages_.push_back(std::move(*regex));
      }
      return splitter;
    }
  }
  return fail("tokenizer.ggml.pre '" + std::string(name) +
              "' is not a known splitter (known: " + known_splitters() + ")");
}

void Splitter::split(std::string_view text, std::vector<std::string_view>& pieces) const {
  // The patterns see well-formed stretches only; the bytes between them are pieces of their own.
  size_t at = 0;
  while (at < text.size()) {
    const size_t begin = at;
    for (size_t bytes = 0; at < text.size(); at += bytes) {
      bytes = utf8_character_bytes(text, at);
      if (bytes == 0) break;
    }
    if (at > begin) split_stage(0, text.substr(begin, at - begin), pieces);
    const size_t broken = at;
    while (at < text.size() && utf8_character_bytes(text, at) == 0) ++at;
    if (at > broken) pieces.push_back(text.substr(broken, at - broken));
  }
}

void Splitter::split_stage(size_t stage, std::string_view text,
                           std::vector<std::string_view>& pieces) const {
  if (stage == stages_.size()) {
    pieces.push_back(text);
    return;
  }
  size_t at = 0;
  while (at < text.size()) {
    const Regex::Match match = stages_[stage].find(text, at);
    if (!match.found) break;
    UPDRAFT_CHECK(match.end > match.begin, "no splitter pattern matches the empty text");
    if (match.begin > at) split_stage(stage + 1, text.substr(at, match.begin - at), pieces);
    split_stage(stage + 1, text.substr(match.begin, match.end - match.begin), pieces);
    at = match.end;
  }
  if (at < text.size()) split_stage(stage + 1, text.substr(at), pieces);
}

}  // namespace updraft
