// GGUF's tokenizer.* keys -> TokenizerData.
#include <limits>

#include "common/model/gguf_model.h"

namespace updraft {
namespace {

Error wrong(const GgufFile& file, const std::string& key, const std::string& what) {
  return fail(file.path() + ": key " + key + " " + what);
}

// An array with one element per token. Nothing in `out` when the key is absent.
template <typename T, typename Get>
Result<void> read_per_token(const GgufFile& file, const std::string& key, size_t token_count,
                            Get get, const char* element, std::vector<T>& out) {
  const GgufValue* value = file.find_key(key);
  if (value == nullptr) return {};
  auto values = get(*value);
  if (!values)
    return wrong(file, key, "is " + value->describe() + ", expected an array of " + element);
  if (values->size() != token_count) {
    return wrong(file, key,
                 "has " + std::to_string(values->size()) + " elements for " +
                     std::to_string(token_count) + " tokens");
  }
  out.reserve(token_count);
  for (const auto& one : *values) {
    if constexpr (std::is_integral_v<T>) {
      if (one < std::numeric_limits<T>::min() || one > std::numeric_limits<T>::max()) {
        return wrong(file, key,
                     "has the element " + std::to_string(one) + ", which is out of range");
      }
    }
    out.push_back(static_cast<T>(one));
  }
  return {};
}

Result<void> read_tokens(const GgufFile& file, TokenizerData& data) {
  const std::string key = "tokenizer.ggml.tokens";
  const GgufValue* value = file.find_key(key);
  if (value == nullptr) return wrong(file, key, "is missing");
  const auto texts = value->texts();
  if (!texts || texts->empty())
    return wrong(file, key, "is " + value->describe() + ", expected an array of text");
  if (texts->size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return wrong(file, key, "has " + std::to_string(texts->size()) + " elements, too many");
  }
  data.tokens.assign(texts->begin(), texts->end());
  return {};
}

Result<void> read_merges(const GgufFile& file, TokenizerData& data) {
  const std::string key = "tokenizer.ggml.merges";
  const GgufValue* value = file.find_key(key);
  if (value == nullptr) return {};
  const auto texts = value->texts();
  if (!texts) return wrong(file, key, "is " + value->describe() + ", expected an array of text");
  data.merges.reserve(texts->size());
  for (const std::string_view merge : *texts) {
    // Either half may itself begin with a space-like byte, so the separator is searched from the
    // second byte on.
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      return wrong(file, key,
                   "has the element " + std::to_string(data.merges.size()) + " \"" +
                       printable(merge) + "\", expected two halves and a space between them");
    }
    data.merges.emplace_back(merge);
  }
  return {};
}

Result<void> read_id(const GgufFile& file, const char* name, size_t token_count, int32_t& out) {
  const std::string key = std::string("tokenizer.ggml.") + name;
  const GgufValue* value = file.find_key(key);
  if (value == nullptr) return {};
  const auto id = value->integer();
  if (id == -1 || id == int64_t{std::numeric_limits<uint32_t>::max()})
    return {};  // written for "none"
  if (!id || *id < 0 || *id >= static_cast<int64_t>(token_count)) {
    return wrong(file, key,
                 "is " + value->describe() + ", expected the id of one of " +
                     std::to_string(token_count) + " tokens");
  }
  out = static_cast<int32_t>(*id);
  return {};
}

Result<void> read_flag(const GgufFile& file, const char* name, std::optional<bool>& out) {
  const std::string key = std::string("tokenizer.ggml.") + name;
  const GgufValue* value = file.find_key(key);
  if (value == nullptr) return {};
  out = value->boolean();
  if (!out) return wrong(file, key, "is " + value->describe() + ", expected a bool");
  return {};
}

Result<void> read_string(const GgufFile& file, const std::string& key, std::string& out) {
  const GgufValue* value = file.find_key(key);
  if (value == nullptr) return {};
  const auto text = value->text();
  if (!text) return wrong(file, key, "is " + value->describe() + ", expected text");
  out = *text;
  return {};
}

Result<void> read_ids_and_flags(const GgufFile& file, TokenizerData& data) {
  const std::pair<const char*, int32_t*> ids[] = {
      {"bos_token_id", &data.bos_id},         {"eos_token_id", &data.eos_id},
      {"eot_token_id", &data.eot_id},         {"eom_token_id", &data.eom_id},
      {"unknown_token_id", &data.unknown_id}, {"padding_token_id", &data.padding_id}};
  for (const auto& [name, id] : ids) {
    auto read = read_id(file, name, data.tokens.size(), *id);
    if (!read) return read;
  }
  const std::pair<const char*, std::optional<bool>*> flags[] = {
      {"add_bos_token", &data.add_bos},
      {"add_eos_token", &data.add_eos},
      {"add_space_prefix", &data.add_space_prefix}};
  for (const auto& [name, flag] : flags) {
    auto read = read_flag(file, name, *flag);
    if (!read) return read;
  }
  return {};
}

Result<void> read_all(const GgufFile& file, TokenizerData& data) {
  auto read = read_string(file, "tokenizer.ggml.model", data.model);
  if (!read) return read;
  if (data.model == "none" || data.model == "no_vocab") data.model.clear();
  if (data.model.empty()) return {};
  read = read_string(file, "tokenizer.ggml.pre", data.pre);
  if (read) read = read_string(file, "tokenizer.chat_template", data.chat_template);
  if (read) read = read_tokens(file, data);
  if (read) {
    read = read_per_token(
        file, "tokenizer.ggml.scores", data.tokens.size(),
        [](const GgufValue& v) { return v.numbers(); }, "f32", data.scores);
  }
  if (read) {
    read = read_per_token(
        file, "tokenizer.ggml.token_type", data.tokens.size(),
        [](const GgufValue& v) { return v.integers(); }, "i32", data.types);
  }
  if (read) read = read_merges(file, data);
  if (read) read = read_ids_and_flags(file, data);
  return read;
}

}  // namespace

Result<TokenizerData> read_tokenizer(const GgufFile& file) {
  TokenizerData data;
  auto read = read_all(file, data);
  if (!read) return read.error();
  return data;
}

}  // namespace updraft
