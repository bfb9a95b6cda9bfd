// The vocabulary of a model file without a tokenizer: ids that have no text (Tokenizer::of_ids()).
// Immutable: any thread.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/text/tokenizer.h"

namespace updraft {

class IdTokenizer final : public Tokenizer {
 public:
  // `data`: one name per id, no model; its ids have been checked.
  explicit IdTokenizer(TokenizerData data) : Tokenizer(std::move(data)) {
    pieces_.assign(data_.tokens.size(), "");
  }

 private:
  void encode_text(std::string_view, bool, std::vector<int32_t>&) const override {
    UPDRAFT_CHECK(false, "text for a vocabulary without text");
  }
};

}  // namespace updraft
