// Text <-> token ids: byte-level BPE ("gpt2") and SentencePiece-style BPE ("llama"). Immutable once
// made; any thread.
//
// One idea: special tokens cut the text first, and only where they are allowed to. Text that is not
// trusted can never become a control token, whatever it spells; what lies between special tokens
// goes through the model's own merging.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/model/model.h"
#include "common/text/special_matcher.h"

namespace updraft {

// Whether special tokens written in the text become their ids. User text is always kPlain: it
// cannot inject them. Tokens the vocabulary calls user-defined (<think>, <tool_call>) are ordinary
// words in this respect and are found in both.
enum class SpecialText : uint8_t { kPlain, kParse };

// A stretch of a longer text.
struct TextSpan {
  std::string_view text;
  SpecialText special = SpecialText::kPlain;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Errors: unknown model or splitter (names it and lists the known ones), bad merges, ids out of
  // range, arrays of unequal length, a vocabulary that cannot spell every text.
  static Result<std::shared_ptr<const Tokenizer>> create(const TokenizerData& data);

  // For a model file without a tokenizer: ids without text. Every id below vocab_count decodes to
  // nothing; what begins and ends a text are the file's ids. Nothing can be encoded with it.
  static Result<std::shared_ptr<const Tokenizer>> of_ids(const TokenizerData& data,
                                                         int32_t vocab_count);
  // False for of_ids(): no text may be encoded.
  bool has_text() const { return !data_.model.empty(); }

  // Appends the ids of `text`; no BOS. `at_start`: the text begins the input or follows a special
  // token (SPM's space prefix).
  void encode(std::string_view text, SpecialText special, bool at_start,
              std::vector<int32_t>& out) const;
  // The same for the spans joined into one text: words and merges cross the borders between spans,
  // a control token is found only where every byte of it lies in neighbouring kParse spans.
  void encode_spans(std::span<const TextSpan> spans, bool at_start,
                    std::vector<int32_t>& out) const;
  // Whole text with BOS/EOS as the model's defaults demand when add_special.
  std::vector<int32_t> encode_all(std::string_view text, SpecialText special,
                                  bool add_special) const;

  // The bytes of one token as they appear in decoded text; control tokens give "". May be part of a
  // UTF-8 character. 0 <= id < vocab_count(), as everywhere below.
  std::string_view piece(int32_t id) const;
  // Name of a token as the vocabulary spells it, for logprobs and messages.
  const std::string& token_text(int32_t id) const;
  bool is_control(int32_t id) const;
  // Decodes ids to their bytes (text that was valid comes back byte for byte); SPM drops the first
  // space when first_is_start.
  std::string decode(std::span<const int32_t> ids, bool first_is_start) const;

  // Ids that end a generation: eos, eot, eom, extra ids, and tokens with the names that families
  // use for it (<|im_end|>,
  // <|eot_id|> ...; for GLM vocabularies <|user|>, <|observation|> and </answer>). Ascending.
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }
  // Ids that must never be sampled: unused rows and "[PAD...]" fillers. Ascending, none of them a
  // stop id.
  const std::vector<int32_t>& banned_ids() const { return banned_ids_; }
  int32_t vocab_count() const { return static_cast<int32_t>(data_.tokens.size()); }
  int32_t bos_id() const { return data_.bos_id; }
  int32_t eos_id() const { return data_.eos_id; }
  bool add_bos() const { return add_bos_; }
  bool is_spm() const { return data_.model == "llama"; }
  // True when decoded text that starts a sequence begins with a space that the encoder put there.
  bool drops_first_space() const { return space_prefix_; }
  // Id of the special token spelled exactly so, or -1.
  int32_t special_id(std::string_view text) const;

 protected:
  // What a token is for; the numbers are those of the files (tokenizer.ggml.token_type).
  enum class Type : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

  // `data` has passed check_data(). Types come from the file, or are all normal when it has none.
  explicit Tokenizer(TokenizerData data);

  // Appends the ids of text that holds no special token; never a control id. `text` is not empty.
  virtual void encode_text(std::string_view text, bool at_start,
                           std::vector<int32_t>& out) const = 0;

  // Whether ordinary text may become this token (all others need trust, or are never made from
  // text).
  bool from_text(int32_t id) const {
    return type(id) == Type::kNormal || type(id) == Type::kUserDefined;
  }
  Type type(int32_t id) const { return types_[static_cast<size_t>(id)]; }
  Result<void> resolve_bos(bool add_bos_by_default);

  TokenizerData data_;
  std::vector<Type> types_;          // one per token
  std::vector<std::string> pieces_;  // decoded bytes, one per token; filled by the subclass
  bool add_bos_ = false;
  bool add_eos_ = false;
  bool space_prefix_ = false;

 private:
  void find_stop_ids();
  void find_banned_ids();

  SpecialMatcher specials_;
  std::vector<int32_t> stop_ids_;
  std::vector<int32_t> banned_ids_;
};

// Turns generated ids into text chunks as they come: holds back bytes that do not yet make whole
// UTF-8 characters. One owner thread.
class StreamDecoder {
 public:
  // first_is_start: the first id is the first of the whole text (SPM drops its space).
  StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool first_is_start);
  // Text that became complete with this id; may be empty. Always well-formed: malformed bytes come
  // as U+FFFD.
  std::string push(int32_t id);
  // What was held back, malformed bytes as U+FFFD.
  std::string flush();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool drop_space_;
  std::string pending_;  // at most 3 bytes between calls
};

}  // namespace updraft
