// Text <-> token ids: byte-level BPE ("gpt2") and SentencePiece-style BPE ("llama"). Immutable once made; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/model/model.h"

namespace updraft {

// Whether special tokens written in the text become their ids. User text is always kPlain: it cannot inject them.
enum class SpecialText : uint8_t { kPlain, kParse };

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Errors: unknown model or splitter (names it and lists the known ones), bad merges, ids out of range, arrays of unequal length.
  static Result<std::shared_ptr<const Tokenizer>> create(const TokenizerData& data);

  // Appends the ids of `text`; no BOS. `at_start`: the text begins the input or follows a special token (SPM's space prefix).
  virtual void encode(std::string_view text, SpecialText special, bool at_start,
                      std::vector<int32_t>& out) const = 0;
  // Whole text with BOS/EOS as the model's defaults demand when add_special.
  std::vector<int32_t> encode_all(std::string_view text, SpecialText special, bool add_special) const;

  // The bytes of one token as they appear in decoded text; control tokens give "". May be part of a UTF-8 character.
  virtual std::string_view piece(int32_t id) const = 0;
  // Name of a token as the vocabulary spells it, for logprobs and messages.
  const std::string& token_text(int32_t id) const;
  bool is_control(int32_t id) const;
  // Decodes ids; SPM drops the first space when first_is_start.
  std::string decode(std::span<const int32_t> ids, bool first_is_start) const;

  // Ids that end a generation (eos, eot, eom, extra ids, the names of model-formats: <|im_end|>, <|eot_id|>, </answer> ...).
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }
  // Ids that must never be sampled (padding, unused).
  const std::vector<int32_t>& banned_ids() const { return banned_ids_; }
  int32_t vocab_count() const { return static_cast<int32_t>(data_.tokens.size()); }
  int32_t bos_id() const { return data_.bos_id; }
  bool add_bos() const { return add_bos_; }
  bool is_spm() const { return data_.model == "llama"; }

 protected:
  explicit Tokenizer(TokenizerData data) : data_(std::move(data)) {}

  TokenizerData data_;
  bool add_bos_ = false;
  bool add_eos_ = false;
  std::vector<int32_t> stop_ids_;
  std::vector<int32_t> banned_ids_;
};

// Turns generated ids into text chunks as they come: holds back bytes that do not yet make whole UTF-8 characters.
class StreamDecoder {
 public:
  // first_is_start: the first id is the first of the whole text (SPM drops its space).
  StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool first_is_start);
  // Text that became complete with this id; may be empty.
  std::string push(int32_t id);
  // What was held back, malformed bytes as U+FFFD.
  std::string flush();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool drop_space_;
  std::string pending_;
};

}  // namespace updraft
