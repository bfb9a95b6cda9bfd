// tokenizer.json and its companions -> TokenizerData. Structure: huggingface/tokenizers'
// serialisation.
#include "common/model/hf_tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <unordered_map>

#include "common/base/bytes.h"
#include "common/model/hf_pre_tokenizer.h"
#include "common/model/hyperparameters.h"
#include "common/model/json.h"
#include "common/model/mapped_file.h"

namespace updraft {
namespace {

constexpr uint64_t kTokenizerBytesMax = 512ULL << 20;
constexpr uint64_t kSmallFileBytesMax = 16ULL << 20;
constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6;
const std::string kSpaceMark = "\u2581";  // SentencePiece's visible space

std::string text_of(const JsonValue* value, const char* key) {
  const JsonValue* found = value == nullptr ? nullptr : value->find(key);
  return found != nullptr && found->text() != nullptr ? *found->text() : std::string();
}

const JsonValue::Array& elements_of(const JsonValue* value) {
  static const JsonValue::Array kNone;
  return value != nullptr && value->array() != nullptr ? *value->array() : kNone;
}

// A step of a normalizer, pre_tokenizer, decoder or post_processor: the value itself, or one of its
// sequence.
const JsonValue* find_step(const JsonValue* value, const char* list, const char* type) {
  if (text_of(value, "type") == type) return value;
  if (value == nullptr) return nullptr;
  for (const JsonValue& step : elements_of(value->find(list))) {
    if (text_of(&step, "type") == type) return &step;
  }
  return nullptr;
}

bool is_byte_token(const std::string& token) {
  return token.size() == 6 && token.starts_with("<0x") && token.back() == '>';
}

// Reads one tokenizer.json. The first failure sticks.
class TokenizerReader {
 public:
  TokenizerReader(const JsonValue& root, int32_t vocab_count)
      : root_(root), vocab_count_(vocab_count) {}

  Result<TokenizerData> run() {
    model_ = root_.find("model");
    const std::string type = text_of(model_, "type");
    if (model_ == nullptr || model_->object() == nullptr) return fail("key model is missing");
    if (type != "BPE" && !(type.empty() && model_->find("merges") != nullptr)) {
      data_.model = type.empty() ? "unnamed" : type;  // refused when a tokenizer is built from it
      return data_;
    }
    if (!(read_vocab() && read_added_tokens() && read_kind())) return fail(error_);
    read_post_processor();
    return std::move(data_);
  }

 private:
  bool refuse(std::string message) {
    error_ = std::move(message);
    return false;
  }

  // Sets a token; false when the id already means another one.
  bool place(int64_t id, const std::string& token, int32_t type) {
    const auto index = static_cast<size_t>(id);
    if (index >= data_.tokens.size()) {
      data_.tokens.resize(index + 1);
      data_.types.resize(index + 1, 0);
    }
    if (data_.types[index] != 0 && data_.tokens[index] != token) {
      return refuse("token id " + std::to_string(id) + " is both \"" +
                    printable(data_.tokens[index]) + "\" and \"" + printable(token) + "\"");
    }
    data_.tokens[index] = token;
    data_.types[index] = type;
    return true;
  }

  // Ids are dense in practice; the limit keeps one huge id from costing memory.
  int64_t id_limit(size_t entries) const {
    return vocab_count_ > 0
               ? vocab_count_
               : std::min<int64_t>(2 * static_cast<int64_t>(entries) + 65536, kVocabMax);
  }

  bool read_vocab() {
    const JsonValue* vocab = model_->find("vocab");
    if (vocab == nullptr || vocab->object() == nullptr)
      return refuse("key model.vocab is missing or no object");
    const int64_t limit = id_limit(vocab->object()->size());
    const bool has_bytes = model_->find("byte_fallback") != nullptr &&
                           model_->find("byte_fallback")->boolean() == true;
    for (const JsonMember& entry : *vocab->object()) {
      const auto id = entry.value.integer();
      if (!id || *id < 0 || *id >= limit) {
        return refuse("key model.vocab gives \"" + printable(entry.key) + "\" the id " +
                      entry.value.describe() + ", expected an integer from 0 to " +
                      std::to_string(limit - 1));
      }
      if (!place(*id, entry.key, has_bytes && is_byte_token(entry.key) ? kByte : kNormal))
        return false;
    }
    return true;
  }

  bool read_added_tokens() {
    const JsonValue::Array& added = elements_of(root_.find("added_tokens"));
    const int64_t limit = id_limit(data_.tokens.size() + added.size());
    for (const JsonValue& token : added) {
      const JsonValue* id_value = token.find("id");
      const auto id = id_value == nullptr ? std::nullopt : id_value->integer();
      const std::string content = text_of(&token, "content");
      if (!id || *id < 0 || content.empty()) {
        return refuse("key added_tokens has the element \"" + printable(content) +
                      "\" with the id " + (id_value == nullptr ? "null" : id_value->describe()));
      }
      if (*id >= limit) continue;  // the model has no row for it: it stays plain text
      const JsonValue* special = token.find("special");
      const bool is_special = special != nullptr && special->boolean() == true;
      if (!place(*id, content, is_special ? kControl : kUserDefined)) return false;
    }
    fill_gaps();
    return true;
  }

  void fill_gaps() {
    if (vocab_count_ > 0) {
      data_.tokens.resize(static_cast<size_t>(vocab_count_));
      data_.types.resize(static_cast<size_t>(vocab_count_), 0);
    }
    for (size_t i = 0; i < data_.tokens.size(); ++i) {
      if (data_.types[i] != 0) continue;
      data_.tokens[i] = "[PAD" + std::to_string(i) + "]";
      data_.types[i] = kUnused;
    }
  }

  bool read_kind() {
    const JsonValue* pre_tokenizer = root_.find("pre_tokenizer");
    const JsonValue* ignore = model_->find("ignore_merges");
    const bool ignore_merges = ignore != nullptr && ignore->boolean() == true;
    if (pre_tokenizer != nullptr && is_byte_level(*pre_tokenizer)) {
      data_.model = "gpt2";
      data_.pre = splitter_name(*pre_tokenizer, ignore_merges);
      data_.ignore_merges = ignore_merges;
      data_.add_bos = false;  // unless the post-processor says otherwise
      if (has_foreign_normalizer()) data_.pre = "unknown normalizer";
      for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
        if (!text_of(model_, key).empty()) data_.pre = std::string("unknown ") + key;
      }
      return read_merges([&](std::string left, const std::string& right) {
        data_.merges.push_back(std::move(left) + " " + right);
        return true;
      });
    }
    const JsonValue* fallback = model_->find("byte_fallback");
    if (fallback != nullptr && fallback->boolean() == true)
      return read_sentencepiece(pre_tokenizer);
    data_.model = "BPE without bytes";  // refused when a tokenizer is built from it
    return true;
  }

  // NFC leaves almost all text as it is and is ignored, as llama.cpp does; anything else would
  // change the ids.
  bool has_foreign_normalizer() const {
    const JsonValue* normalizer = root_.find("normalizer");
    if (normalizer == nullptr || normalizer->is_null()) return false;
    const std::string type = text_of(normalizer, "type");
    return type != "NFC" &&
           !(type == "Sequence" && elements_of(normalizer->find("normalizers")).empty());
  }

  // Merges come as "a b" or as ["a", "b"].
  template <typename Take>
  bool read_merges(Take take) {
    const JsonValue* merges = model_->find("merges");
    if (merges == nullptr || merges->array() == nullptr)
      return refuse("key model.merges is missing or no array");
    for (const JsonValue& merge : *merges->array()) {
      std::string left;
      std::string right;
      if (const std::string* line = merge.text()) {
        const size_t space = line->find(' ', 1);
        if (space != std::string::npos) {
          left = line->substr(0, space);
          right = line->substr(space + 1);
        }
      } else if (elements_of(&merge).size() == 2 && elements_of(&merge)[0].text() &&
                 elements_of(&merge)[1].text()) {
        left = *elements_of(&merge)[0].text();
        right = *elements_of(&merge)[1].text();
      }
      const bool has_space = (left + right).find(' ') != std::string::npos;
      if (left.empty() || right.empty() || has_space) {
        return refuse("key model.merges has the element " + merge.describe() +
                      ", expected two halves without spaces");
      }
      if (!take(std::move(left), right)) return false;
    }
    return true;
  }

  // SentencePiece vocabularies have a score per token, tokenizer.json has merges by rank instead.
  // The converter lists the pairs of a token by its score, so minus the first rank that makes a
  // token orders the tokens as the scores did.
  bool read_sentencepiece(const JsonValue* pre_tokenizer) {
    data_.model = "llama";
    std::unordered_map<std::string_view, size_t> ids;
    for (size_t i = 0; i < data_.tokens.size(); ++i) ids.emplace(data_.tokens[i], i);
    const float never = -1e9F;  // no merge makes it
    data_.scores.assign(data_.tokens.size(), never);
    float rank = 0;
    const bool read = read_merges([&](std::string left, const std::string& right) {
      const auto found = ids.find(left += right);
      if (found == ids.end())
        return refuse("key model.merges makes \"" + printable(left) + "\", which is no token");
      float& score = data_.scores[found->second];
      if (score == never) score = -rank;
      rank += 1;
      return true;
    });
    if (!read) return false;
    const std::string unknown = text_of(model_, "unk_token");
    if (const auto found = ids.find(unknown); !unknown.empty() && found != ids.end()) {
      data_.unknown_id = static_cast<int32_t>(found->second);
      data_.types[found->second] = kUnknown;
    }
    data_.add_space_prefix = has_space_prefix(pre_tokenizer);
    return true;
  }

  bool has_space_prefix(const JsonValue* pre_tokenizer) const {
    const JsonValue* prepend = find_step(root_.find("normalizer"), "normalizers", "Prepend");
    if (prepend != nullptr) return text_of(prepend, "prepend") == kSpaceMark;
    const JsonValue* metaspace = find_step(pre_tokenizer, "pretokenizers", "Metaspace");
    if (metaspace == nullptr) return false;
    const std::string scheme = text_of(metaspace, "prepend_scheme");
    if (!scheme.empty()) return scheme != "never";
    const JsonValue* add = metaspace->find("add_prefix_space");
    return add == nullptr || add->boolean() != false;
  }

  // A template like [<bos>, A]: the special token in front is BOS. Several in front (GLM's
  // [gMASK]<sop>) belong to the chat template, which spells them itself.
  void read_post_processor() {
    const JsonValue* processor =
        find_step(root_.find("post_processor"), "processors", "TemplateProcessing");
    if (processor == nullptr) return;
    std::vector<std::string> before;
    bool seen_text = false;
    bool after = false;
    for (const JsonValue& piece : elements_of(processor->find("single"))) {
      const JsonValue* special = piece.find("SpecialToken");
      if (special == nullptr) {
        seen_text = true;
      } else if (seen_text) {
        after = true;
      } else {
        before.push_back(text_of(special, "id"));
      }
    }
    data_.add_eos = after;
    data_.add_bos = before.size() == 1;
    if (before.size() != 1) return;
    const auto found = std::find(data_.tokens.begin(), data_.tokens.end(), before.front());
    if (found == data_.tokens.end()) {
      data_.add_bos = false;
    } else {
      data_.bos_id = static_cast<int32_t>(found - data_.tokens.begin());
    }
  }

  const JsonValue& root_;
  const int32_t vocab_count_;
  const JsonValue* model_ = nullptr;
  TokenizerData data_;
  std::string error_;
};

// bos_token and the like: a text, or an object with content. Leaves `id` alone when absent or not
// in the vocabulary.
void read_named_token(const JsonValue& config, const char* key, const TokenizerData& data,
                      int32_t& id) {
  const JsonValue* value = config.find(key);
  if (value == nullptr) return;
  const std::string token = value->text() != nullptr ? *value->text() : text_of(value, "content");
  if (token.empty()) return;
  const auto found = std::find(data.tokens.begin(), data.tokens.end(), token);
  if (found != data.tokens.end()) id = static_cast<int32_t>(found - data.tokens.begin());
}

// chat_template: a text, or a list of named ones of which "default" counts.
std::string template_of(const JsonValue& config) {
  const JsonValue* value = config.find("chat_template");
  if (value == nullptr) return "";
  if (value->text() != nullptr) return *value->text();
  for (const JsonValue& named : elements_of(value)) {
    if (text_of(&named, "name") == "default") return text_of(&named, "template");
  }
  return "";
}

Result<void> read_config(const std::string& path, TokenizerData& data) {
  const auto config = read_json_file(path, kSmallFileBytesMax);
  if (!config) return config.error();
  read_named_token(*config, "bos_token", data, data.bos_id);
  read_named_token(*config, "eos_token", data, data.eos_id);
  read_named_token(*config, "pad_token", data, data.padding_id);
  read_named_token(*config, "unk_token", data, data.unknown_id);
  if (const JsonValue* add = config->find("add_bos_token"); add != nullptr && add->boolean()) {
    data.add_bos = add->boolean();
  }
  data.chat_template = template_of(*config);
  return {};
}

}  // namespace

Result<TokenizerData> read_tokenizer_json(const JsonValue& root, int32_t vocab_count) {
  return TokenizerReader(root, vocab_count).run();
}

Result<TokenizerData> read_hf_tokenizer(const std::string& folder, int32_t vocab_count) {
  const auto path_of = [&](const char* name) { return folder + "/" + name; };
  TokenizerData data;
  if (!std::filesystem::exists(path_of("tokenizer.json"))) return data;
  const auto root = read_json_file(path_of("tokenizer.json"), kTokenizerBytesMax);
  if (!root) return root.error();
  auto read = read_tokenizer_json(*root, vocab_count);
  if (!read) return read.error(path_of("tokenizer.json"));
  data = std::move(*read);
  if (std::filesystem::exists(path_of("tokenizer_config.json"))) {
    const auto config = read_config(path_of("tokenizer_config.json"), data);
    if (!config) return config.error();
  }
  if (data.chat_template.empty() && std::filesystem::exists(path_of("chat_template.jinja"))) {
    auto source = read_text_file(path_of("chat_template.jinja"), kSmallFileBytesMax);
    if (!source) return source.error();
    data.chat_template = std::move(*source);
  }
  return data;
}

}  // namespace updraft
