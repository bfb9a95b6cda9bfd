// What both tokenizers share: checking the file's data, cutting at special tokens, stop and banned
// ids, decoding.
#include "common/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "common/text/bpe_tokenizer.h"
#include "common/text/id_tokenizer.h"
#include "common/text/spm_tokenizer.h"

namespace updraft {
namespace {

// Tokens that end a turn or a text in the families served, by name, because converted files often
// name only one of them.
constexpr std::array kStopNames = {"<|eot_id|>",    "<|im_end|>",      "<|end|>",
                                   "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>",
                                   "</s>",          "<end_of_turn>",   "<EOT>"};

std::string at_token(const char* what, size_t index) {
  return std::string(what) + "[" + std::to_string(index) + "]";
}

Result<void> check_id(const char* key, int32_t id, size_t token_count) {
  if (id >= -1 && id < static_cast<int64_t>(token_count)) return {};
  return fail("tokenizer: " + std::string(key) + " " + std::to_string(id) +
              " is not an id of a vocabulary of " + std::to_string(token_count) + " tokens");
}

Result<void> check_lengths(const TokenizerData& data) {
  const size_t count = data.tokens.size();
  if (count == 0) return fail("tokenizer: the vocabulary has no tokens");
  if (count > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return fail("tokenizer: " + std::to_string(count) + " tokens are more than ids can name");
  }
  const auto unequal = [count](const char* what, size_t length) {
    return fail("tokenizer: " + std::string(what) + " has " + std::to_string(length) +
                " entries for " + std::to_string(count) + " tokens");
  };
  if (!data.scores.empty() && data.scores.size() != count)
    return unequal("scores", data.scores.size());
  if (!data.types.empty() && data.types.size() != count)
    return unequal("token_type", data.types.size());
  return {};
}

Result<void> check_ids(const TokenizerData& data) {
  const size_t count = data.tokens.size();
  const std::pair<const char*, int32_t> ids[] = {
      {"bos_token_id", data.bos_id},         {"eos_token_id", data.eos_id},
      {"eot_token_id", data.eot_id},         {"eom_token_id", data.eom_id},
      {"unknown_token_id", data.unknown_id}, {"padding_token_id", data.padding_id},
  };
  for (const auto& [key, id] : ids) {
    if (const auto checked = check_id(key, id, count); !checked) return checked;
  }
  for (const int32_t id : data.extra_eos_ids) {
    if (const auto checked = check_id("eos_token_id", id, count); !checked) return checked;
  }
  return {};
}

Result<void> check_data(const TokenizerData& data) {
  if (data.model.empty()) {
    return fail(
        "tokenizer: the model has none (a GGUF file names it in tokenizer.ggml.model, a folder of "
        "safetensors has it in tokenizer.json); without it only updraft run --prompt-ids can use "
        "the model");
  }
  if (data.model != "gpt2" && data.model != "llama") {
    return fail("tokenizer: model '" + data.model + "' is not supported (known: gpt2, llama)");
  }
  if (const auto lengths = check_lengths(data); !lengths) return lengths;
  for (size_t i = 0; i < data.types.size(); ++i) {
    if (data.types[i] < 1 || data.types[i] > 6) {
      return fail("tokenizer: " + at_token("token_type", i) + " is " +
                  std::to_string(data.types[i]) + ", not one of 1..6");
    }
  }
  for (size_t i = 0; i < data.scores.size(); ++i) {
    if (std::isnan(data.scores[i]))
      return fail("tokenizer: " + at_token("scores", i) + " is not a number");
  }
  return check_ids(data);
}

bool is_padding_name(const std::string& name) {
  if (name.size() < 5 || !name.starts_with("[PAD") || name.back() != ']') return false;
  return std::all_of(name.begin() + 4, name.end() - 1, [](char c) { return c >= '0' && c <= '9'; });
}

void sort_unique(std::vector<int32_t>& ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::create(const TokenizerData& data) {
  if (const auto checked = check_data(data); !checked) return checked.error();
  if (data.model == "llama") return SpmTokenizer::create(data);
  return BpeTokenizer::create(data);
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::of_ids(const TokenizerData& data,
                                                           int32_t vocab_count) {
  TokenizerData ids = data;
  ids.model.clear();
  ids.scores.clear();
  ids.types.clear();
  ids.tokens.clear();
  for (int32_t id = 0; id < vocab_count; ++id) ids.tokens.push_back("<" + std::to_string(id) + ">");
  if (const auto checked = check_ids(ids); !checked) return checked.error();
  return std::shared_ptr<const Tokenizer>(std::make_shared<IdTokenizer>(std::move(ids)));
}

Tokenizer::Tokenizer(TokenizerData data) : data_(std::move(data)) {
  const size_t count = data_.tokens.size();
  types_.assign(count, Type::kNormal);
  for (size_t i = 0; i < data_.types.size(); ++i) types_[i] = static_cast<Type>(data_.types[i]);
  // A file may list the ends of turns as ordinary words (or list no types at all); as such a user
  // could type them.
  const auto make_control = [this](int32_t id) {
    if (id < 0) return;
    Type& type = types_[static_cast<size_t>(id)];
    if (type == Type::kNormal || type == Type::kUnused || type == Type::kUserDefined)
      type = Type::kControl;
  };
  for (const int32_t id : {data_.bos_id, data_.eos_id, data_.eot_id, data_.eom_id})
    make_control(id);
  for (size_t i = 0; i < count; ++i) {
    const std::string& text = data_.tokens[i];
    if (std::find(kStopNames.begin(), kStopNames.end(), text) != kStopNames.end())
      make_control(static_cast<int32_t>(i));
  }
  for (size_t i = 0; i < count; ++i) {
    const Type type = types_[i];
    if (type == Type::kUnknown || type == Type::kControl || type == Type::kUserDefined) {
      specials_.add(data_.tokens[i], static_cast<int32_t>(i), type == Type::kUserDefined);
    }
  }
  find_stop_ids();
  find_banned_ids();
  add_eos_ = data_.add_eos.value_or(false) && data_.eos_id >= 0;
}

Result<void> Tokenizer::resolve_bos(bool add_bos_by_default) {
  if (data_.add_bos.value_or(false) && data_.bos_id < 0) {
    return fail("tokenizer: add_bos_token is true but the file names no bos_token_id");
  }
  add_bos_ = data_.add_bos.value_or(add_bos_by_default) && data_.bos_id >= 0;
  return {};
}

void Tokenizer::find_stop_ids() {
  for (const int32_t id : {data_.eos_id, data_.eot_id, data_.eom_id}) {
    if (id >= 0) stop_ids_.push_back(id);
  }
  for (const int32_t id : data_.extra_eos_ids) {
    if (id >= 0) stop_ids_.push_back(id);
  }
  int32_t user = -1, observation = -1, answer_end = -1;
  for (int32_t id = 0; id < vocab_count(); ++id) {
    const std::string& text = token_text(id);
    if (std::find(kStopNames.begin(), kStopNames.end(), text) != kStopNames.end())
      stop_ids_.push_back(id);
    if (text == "<|user|>") user = id;
    if (text == "<|observation|>") observation = id;
    if (text == "</answer>") answer_end = id;
  }
  // GLM ends its turn by opening the next one; converted files name only two of its four ends.
  if (user >= 0 && observation >= 0) {
    stop_ids_.insert(stop_ids_.end(), {user, observation});
    if (answer_end >= 0) stop_ids_.push_back(answer_end);
  }
  sort_unique(stop_ids_);
}

void Tokenizer::find_banned_ids() {
  for (int32_t id = 0; id < vocab_count(); ++id) {
    if (type(id) != Type::kUnused && !is_padding_name(token_text(id))) continue;
    if (!std::binary_search(stop_ids_.begin(), stop_ids_.end(), id)) banned_ids_.push_back(id);
  }
}

void Tokenizer::encode(std::string_view text, SpecialText special, bool at_start,
                       std::vector<int32_t>& out) const {
  const TextSpan span{text, special};
  encode_spans({&span, 1}, at_start, out);
}

void Tokenizer::encode_spans(std::span<const TextSpan> spans, bool at_start,
                             std::vector<int32_t>& out) const {
  std::string joined;
  std::string_view text = spans.size() == 1 ? spans[0].text : std::string_view();
  if (spans.size() > 1) {
    size_t bytes = 0;
    for (const TextSpan& span : spans) bytes += span.text.size();
    joined.reserve(bytes);
    for (const TextSpan& span : spans) joined += span.text;
    text = joined;
  }
  UPDRAFT_CHECK(text.size() < static_cast<size_t>(std::numeric_limits<int32_t>::max()),
                "texts are below 2 GiB");

  // [trust_begin, trust_end) is the trusted stretch that holds or follows `at`; neighbouring
  // trusted spans are one stretch.
  size_t next_span = 0, span_end = 0, trust_begin = 0, trust_end = 0;
  const auto advance_trust = [&](size_t at) {
    while (at >= trust_end && next_span < spans.size()) {
      const TextSpan& span = spans[next_span++];
      const size_t begin = span_end;
      span_end += span.text.size();
      if (span.special != SpecialText::kParse) continue;
      trust_begin = begin;
      trust_end = span_end;
      while (next_span < spans.size() && spans[next_span].special == SpecialText::kParse) {
        span_end += spans[next_span++].text.size();
        trust_end = span_end;
      }
    }
  };

  size_t run = 0;  // begin of the text since the last special token
  size_t at = 0;
  while (at < text.size()) {
    advance_trust(at);
    const bool trusted = at >= trust_begin && at < trust_end;
    const SpecialMatcher::Match match = specials_.longest_at(text, at, trusted ? trust_end : at);
    if (match.id < 0) {
      ++at;
      continue;
    }
    if (at > run) encode_text(text.substr(run, at - run), at_start, out);
    out.push_back(match.id);
    at_start = true;
    at += match.bytes;
    run = at;
  }
  if (at > run) encode_text(text.substr(run), at_start, out);
}

std::vector<int32_t> Tokenizer::encode_all(std::string_view text, SpecialText special,
                                           bool add_special) const {
  std::vector<int32_t> out;
  if (add_special && add_bos_) out.push_back(data_.bos_id);
  encode(text, special, true, out);
  if (add_special && add_eos_) out.push_back(data_.eos_id);
  return out;
}

const std::string& Tokenizer::token_text(int32_t id) const {
  UPDRAFT_CHECK(id >= 0 && id < vocab_count(), "token id outside the vocabulary");
  return data_.tokens[static_cast<size_t>(id)];
}

std::string_view Tokenizer::piece(int32_t id) const {
  UPDRAFT_CHECK(id >= 0 && id < vocab_count(), "token id outside the vocabulary");
  return pieces_[static_cast<size_t>(id)];
}

bool Tokenizer::is_control(int32_t id) const {
  UPDRAFT_CHECK(id >= 0 && id < vocab_count(), "token id outside the vocabulary");
  return type(id) == Type::kControl || type(id) == Type::kUnknown;
}

int32_t Tokenizer::special_id(std::string_view text) const {
  if (text.empty()) return -1;
  const SpecialMatcher::Match match = specials_.longest_at(text, 0, text.size());
  return match.bytes == text.size() ? match.id : -1;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool first_is_start) const {
  std::string text;
  bool drop_space = first_is_start && space_prefix_;
  for (const int32_t id : ids) {
    std::string_view bytes = piece(id);
    if (drop_space && !bytes.empty()) {
      if (bytes.front() == ' ') bytes.remove_prefix(1);
      drop_space = false;
    }
    text += bytes;
  }
  return text;
}

}  // namespace updraft
