// SentencePiece-style BPE ("llama"): spaces are U+2581, the adjacent pair whose concatenation is
// the token with the highest score is joined until none is left, what no token spells becomes byte
// tokens. Immutable: any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/text/tokenizer.h"

namespace updraft {

class SpmTokenizer final : public Tokenizer {
 public:
  // `data` has passed Tokenizer::create's checks. Errors: no scores, byte tokens missing and no
  // unknown token to stand in.
  static Result<std::shared_ptr<const Tokenizer>> create(const TokenizerData& data);

 private:
  struct Symbol;
  struct Candidate;

  explicit SpmTokenizer(const TokenizerData& data);
  void encode_text(std::string_view text, bool at_start, std::vector<int32_t>& out) const override;
  // ' ' -> U+2581, with one in front where the text starts.
  std::string spell(std::string_view text, bool at_start) const;
  static std::vector<Symbol> characters(std::string_view spelled);
  void merge(std::string_view spelled, std::vector<Symbol>& symbols) const;
  // Id of the token spelled so, or -1.
  int32_t find(std::string_view spelled) const;
  void append_leftover(std::string_view bytes, std::vector<int32_t>& out) const;
  Result<void> map_tokens();

  std::unordered_map<std::string_view, int32_t> by_text_;  // views into data_.tokens
  size_t longest_token_bytes_ = 0;
  int32_t byte_ids_[256];  // unknown_id where there is no byte token
};

}  // namespace updraft
