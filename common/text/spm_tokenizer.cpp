// Symbols are slices of the spelled text, so joining two neighbours only widens a slice. Candidates
// wait in a heap ordered by (score, position); one whose slices have changed since is dropped when
// it comes up.
#include "common/text/spm_tokenizer.h"

#include <algorithm>
#include <string>

#include "common/text/utf8.h"

namespace updraft {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

// The byte that "<0xE4>" names, or -1.
int32_t named_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return -1;
  int32_t value = 0;
  for (const char c : token.substr(3, 2)) {
    const int32_t digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                                 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

std::string with_spaces(std::string_view token) {
  std::string text;
  for (size_t at = 0; at < token.size();) {
    if (token.substr(at).starts_with(kSpace)) {
      text.push_back(' ');
      at += kSpace.size();
    } else {
      text.push_back(token[at++]);
    }
  }
  return text;
}

}  // namespace

// A slice of the spelled text that is one token so far (or one character that may be none).
struct SpmTokenizer::Symbol {
  size_t begin = 0;
  size_t bytes = 0;  // 0: joined into its left neighbour
  int32_t previous = -1, next = -1;
};

struct SpmTokenizer::Candidate {
  float score;
  int32_t left;  // symbol index; the right one is its neighbour
  size_t bytes;  // of both together when offered: differs once either has changed
  // Heap order: the best candidate is the greatest; of equal scores the leftmost.
  bool operator<(const Candidate& other) const {
    return score != other.score ? score < other.score : left > other.left;
  }
};

SpmTokenizer::SpmTokenizer(const TokenizerData& data) : Tokenizer(data) {
  std::fill(std::begin(byte_ids_), std::end(byte_ids_), -1);
  space_prefix_ = data_.add_space_prefix.value_or(true);
}

Result<std::shared_ptr<const Tokenizer>> SpmTokenizer::create(const TokenizerData& data) {
  if (data.scores.empty())
    return fail("tokenizer: a llama (SentencePiece) vocabulary needs scores, the file has none");
  std::shared_ptr<SpmTokenizer> made(new SpmTokenizer(data));
  if (const auto mapped = made->map_tokens(); !mapped) return mapped.error();
  if (const auto bos = made->resolve_bos(true); !bos) return bos.error();
  return std::shared_ptr<const Tokenizer>(std::move(made));
}

Result<void> SpmTokenizer::map_tokens() {
  const bool typed = !data_.types.empty();
  pieces_.resize(data_.tokens.size());
  for (int32_t id = 0; id < vocab_count(); ++id) {
    const std::string& text = token_text(id);
    std::string& piece = pieces_[static_cast<size_t>(id)];
    const bool may_be_byte = type(id) == Type::kByte || (!typed && type(id) == Type::kNormal);
    if (const int32_t byte = may_be_byte ? named_byte(text) : -1; byte >= 0) {
      types_[static_cast<size_t>(id)] = Type::kByte;
      piece = std::string(1, static_cast<char>(byte));
      if (byte_ids_[byte] < 0) byte_ids_[byte] = id;
      continue;
    }
    if (type(id) == Type::kByte) {
      return fail("tokenizer: token " + std::to_string(id) + " '" + text +
                  "' is of type byte but not named <0xHH>");
    }
    if (!from_text(id)) continue;
    piece = with_spaces(text);
    if (text.empty()) continue;
    by_text_.emplace(text, id);
    longest_token_bytes_ = std::max(longest_token_bytes_, text.size());
  }
  const int32_t unknown = data_.unknown_id;
  for (size_t byte = 0; byte < 256; ++byte) {
    if (byte_ids_[byte] >= 0) continue;
    if (unknown < 0) {
      return fail("tokenizer: no byte token <0x" + std::string(1, "0123456789ABCDEF"[byte >> 4]) +
                  std::string(1, "0123456789ABCDEF"[byte & 15]) +
                  "> and no unknown token to stand in for it");
    }
    if (std::binary_search(stop_ids().begin(), stop_ids().end(), unknown)) {
      return fail("tokenizer: the vocabulary lacks byte tokens and its unknown token " +
                  std::to_string(unknown) + " ends a text, so a user could end one");
    }
    byte_ids_[byte] = unknown;
  }
  return {};
}

int32_t SpmTokenizer::find(std::string_view spelled) const {
  if (spelled.size() > longest_token_bytes_) return -1;
  const auto found = by_text_.find(spelled);
  return found == by_text_.end() ? -1 : found->second;
}

void SpmTokenizer::append_leftover(std::string_view bytes, std::vector<int32_t>& out) const {
  const int32_t unknown = data_.unknown_id;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(bytes[i])];
    // One unknown token per character, not one per byte of it.
    if (id == unknown && i > 0 && out.back() == unknown) continue;
    out.push_back(id);
  }
}

std::string SpmTokenizer::spell(std::string_view text, bool at_start) const {
  std::string spelled;
  spelled.reserve(text.size() + text.size() / 2);
  if (space_prefix_ && at_start) spelled += kSpace;
  for (const char c : text) {
    if (c == ' ') {
      spelled += kSpace;
    } else {
      spelled.push_back(c);
    }
  }
  return spelled;
}

std::vector<SpmTokenizer::Symbol> SpmTokenizer::characters(std::string_view spelled) {
  std::vector<Symbol> symbols;
  symbols.reserve(spelled.size());
  for (size_t at = 0; at < spelled.size();) {
    const size_t bytes = std::max<size_t>(1, utf8_character_bytes(spelled, at));
    const int32_t index = static_cast<int32_t>(symbols.size());
    symbols.push_back({at, bytes, index - 1, at + bytes < spelled.size() ? index + 1 : -1});
    at += bytes;
  }
  return symbols;
}

void SpmTokenizer::encode_text(std::string_view text, bool at_start,
                               std::vector<int32_t>& out) const {
  const std::string spelled = spell(text, at_start);
  std::vector<Symbol> symbols = characters(spelled);
  merge(spelled, symbols);
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    const Symbol& symbol = symbols[static_cast<size_t>(i)];
    const std::string_view slice = std::string_view(spelled).substr(symbol.begin, symbol.bytes);
    const int32_t id = find(slice);
    if (id >= 0) {
      out.push_back(id);
    } else {
      append_leftover(slice, out);
    }
  }
}

void SpmTokenizer::merge(std::string_view spelled, std::vector<Symbol>& symbols) const {
  std::vector<Candidate> heap;
  const auto offer = [&](int32_t left_index) {
    if (left_index < 0) return;
    const Symbol& left = symbols[static_cast<size_t>(left_index)];
    if (left.next < 0) return;
    const size_t bytes = left.bytes + symbols[static_cast<size_t>(left.next)].bytes;
    const int32_t id = find(spelled.substr(left.begin, bytes));
    if (id < 0) return;
    heap.push_back({data_.scores[static_cast<size_t>(id)], left_index, bytes});
    std::push_heap(heap.begin(), heap.end());
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) offer(static_cast<int32_t>(i));
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate best = heap.back();
    heap.pop_back();
    Symbol& left = symbols[static_cast<size_t>(best.left)];
    if (left.bytes == 0 || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (left.bytes + right.bytes != best.bytes) continue;
    left.bytes = best.bytes;
    right.bytes = 0;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.left;
    offer(left.previous);
    offer(best.left);
  }
}

}  // namespace updraft
