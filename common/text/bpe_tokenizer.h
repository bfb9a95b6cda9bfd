// Byte-level BPE ("gpt2"): bytes are spelled as printable characters in the vocabulary, a splitter
// cuts the text, and inside a piece the pair with the lowest merge rank is joined until none is
// left. Immutable: any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/text/splitter.h"
#include "common/text/tokenizer.h"

namespace updraft {

// How a byte-level vocabulary spells a byte: " " is "\xC4\xA0" (U+0120).
std::string byte_spelling(uint8_t byte);

// (left id, right id) -> rank, for some 100,000 merges looked up once per byte of text: one flat
// table, linear probing.
class MergeTable {
 public:
  explicit MergeTable(size_t merge_count);
  // The first rank given to a pair stays.
  void add(int32_t left, int32_t right, int32_t rank);
  // -1: the pair does not merge.
  int32_t rank(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key = 0;  // (left + 1) << 32 | right; 0: free
    int32_t rank = -1;
  };
  size_t first_slot(uint64_t key) const;

  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t mask_;
};

class BpeTokenizer final : public Tokenizer {
 public:
  // `data` has passed Tokenizer::create's checks. Errors: unknown splitter, a merge without a space
  // or of unknown tokens, a vocabulary in which a printable character has no token.
  static Result<std::shared_ptr<const Tokenizer>> create(const TokenizerData& data);

 private:
  struct Merge {
    int32_t left, right, result;
  };
  // One token in a piece that is being merged: a doubly linked list in piece order.
  struct Symbol {
    int32_t id;  // -1: joined into its left neighbour, or a byte that the vocabulary cannot spell
    int32_t previous, next;
  };
  struct Scratch;

  BpeTokenizer(const TokenizerData& data, Splitter splitter, size_t merge_count);
  void encode_text(std::string_view text, bool at_start, std::vector<int32_t>& out) const override;
  void encode_piece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;
  void offer(Scratch& scratch, int32_t left_symbol) const;
  Result<void> read_merges();
  Result<void> map_bytes();

  Splitter splitter_;
  MergeTable table_;
  std::vector<Merge> merges_;  // by rank
  int32_t byte_ids_[256];      // -1: no token
  bool ignore_merges_ = false;
  std::unordered_map<std::string_view, int32_t>
      by_bytes_;  // views into pieces_; only when ignore_merges_
};

}  // namespace updraft
