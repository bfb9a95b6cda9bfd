// Merging in O(n log n): candidates wait in a heap ordered by (rank, position), so the lowest rank,
// leftmost first, is on top; a candidate whose two sides have changed since is dropped when it
// comes up.
#include "common/text/bpe_tokenizer.h"

#include <algorithm>
#include <array>
#include <functional>
#include <optional>

#include "common/text/utf8.h"

namespace updraft {
namespace {

constexpr char32_t kNoCharacter = 0xFFFFFFFF;

// GPT-2's alphabet: bytes that print stand for themselves, the others get U+0100, U+0101 ... in
// order.
std::array<char32_t, 256> byte_alphabet() {
  std::array<char32_t, 256> characters{};
  char32_t next = 256;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    characters[byte] = prints ? byte : next++;
  }
  return characters;
}

std::string to_utf8(char32_t character) {  // below U+0800
  if (character < 0x80) return std::string(1, static_cast<char>(character));
  return {static_cast<char>(0xC0 | character >> 6), static_cast<char>(0x80 | (character & 0x3F))};
}

// The character that begins at text[at] and its length; kNoCharacter when it cannot be of the byte
// alphabet (< U+0144).
std::pair<char32_t, size_t> alphabet_character(std::string_view text, size_t at) {
  const size_t bytes = utf8_character_bytes(text, at);
  const auto byte = [&](size_t i) {
    return static_cast<char32_t>(static_cast<uint8_t>(text[at + i]));
  };
  if (bytes == 1) return {byte(0), 1};
  if (bytes == 2) return {(byte(0) & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  return {kNoCharacter, 1};
}

// The bytes that a vocabulary entry spells, or nothing when it is not written in the byte alphabet.
std::optional<std::string> spelled_bytes(std::string_view token) {
  static const std::array<int16_t, 512> byte_of = [] {
    std::array<int16_t, 512> table{};
    table.fill(-1);
    const auto alphabet = byte_alphabet();
    for (size_t byte = 0; byte < 256; ++byte) table[alphabet[byte]] = static_cast<int16_t>(byte);
    return table;
  }();
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const auto [character, length] = alphabet_character(token, at);
    if (character >= byte_of.size() || byte_of[character] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte_of[character]));
    at += length;
  }
  return bytes;
}

}  // namespace

std::string byte_spelling(uint8_t byte) { return to_utf8(byte_alphabet()[byte]); }

MergeTable::MergeTable(size_t merge_count) {
  size_t size = 16;
  while (size < merge_count * 2) size *= 2;
  slots_.resize(size);
  mask_ = size - 1;
}

size_t MergeTable::first_slot(uint64_t key) const {
  return static_cast<size_t>((key * 0x9E3779B97F4A7C15ULL) >> 32) & mask_;  // Fibonacci hashing
}

void MergeTable::add(int32_t left, int32_t right, int32_t rank) {
  const uint64_t key = static_cast<uint64_t>(left + 1) << 32 | static_cast<uint32_t>(right);
  size_t slot = first_slot(key);
  while (slots_[slot].key != 0 && slots_[slot].key != key) slot = (slot + 1) & mask_;
  if (slots_[slot].key == 0) slots_[slot] = {key, rank};
}

int32_t MergeTable::rank(int32_t left, int32_t right) const {
  const uint64_t key = static_cast<uint64_t>(left + 1) << 32 | static_cast<uint32_t>(right);
  for (size_t slot = first_slot(key);; slot = (slot + 1) & mask_) {
    if (slots_[slot].key == key) return slots_[slot].rank;
    if (slots_[slot].key == 0) return -1;
  }
}

struct BpeTokenizer::Scratch {
  std::vector<Symbol> symbols;
  std::vector<uint64_t> heap;  // rank << 32 | index of the left symbol; a min-heap
};

BpeTokenizer::BpeTokenizer(const TokenizerData& data, Splitter splitter, size_t merge_count)
    : Tokenizer(data), splitter_(std::move(splitter)), table_(merge_count) {
  pieces_.resize(data_.tokens.size());
  for (int32_t id = 0; id < vocab_count(); ++id) {
    if (!from_text(id)) continue;
    const std::string& text = token_text(id);
    std::optional<std::string> bytes;
    if (type(id) == Type::kNormal) bytes = spelled_bytes(text);
    pieces_[static_cast<size_t>(id)] = bytes ? std::move(*bytes) : text;
  }
}

Result<std::shared_ptr<const Tokenizer>> BpeTokenizer::create(const TokenizerData& data) {
  Result<Splitter> splitter = Splitter::by_name(data.pre);
  if (!splitter) return splitter.error("tokenizer");
  const SplitterDefaults defaults = splitter->defaults();
  std::shared_ptr<BpeTokenizer> made(
      new BpeTokenizer(data, std::move(*splitter), data.merges.size()));
  if (const auto read = made->read_merges(); !read) return read.error();
  if (const auto mapped = made->map_bytes(); !mapped) return mapped.error();
  if (const auto bos = made->resolve_bos(defaults.add_bos); !bos) return bos.error();
  made->ignore_merges_ = data.ignore_merges.value_or(defaults.ignore_merges);
  if (made->ignore_merges_) {
    made->by_bytes_.reserve(made->pieces_.size());
    for (int32_t id = 0; id < made->vocab_count(); ++id) {
      if (made->from_text(id)) made->by_bytes_.emplace(made->pieces_[static_cast<size_t>(id)], id);
    }
  }
  return std::shared_ptr<const Tokenizer>(std::move(made));
}

Result<void> BpeTokenizer::map_bytes() {
  const auto alphabet = byte_alphabet();
  std::unordered_map<std::string_view, int32_t> single;
  for (int32_t id = vocab_count() - 1; id >= 0; --id) {  // the lowest id of a text stays
    if (from_text(id) && token_text(id).size() <= 2) single[token_text(id)] = id;
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto found = single.find(to_utf8(alphabet[byte]));
    byte_ids_[byte] = found == single.end() ? -1 : found->second;
    // Rare bytes may be missing (trained away, or never part of UTF-8) and are then dropped, as
    // elsewhere; without a printable character this is no byte-level vocabulary.
    if (byte_ids_[byte] < 0 && byte >= 0x20 && byte < 0x7F) {
      return fail("tokenizer: the vocabulary has no token for the character '" +
                  std::string(1, static_cast<char>(byte)) +
                  "', so it is not a byte-level (gpt2) one");
    }
  }
  return {};
}

Result<void> BpeTokenizer::read_merges() {
  std::unordered_map<std::string_view, int32_t> by_text;
  by_text.reserve(data_.tokens.size());
  for (int32_t id = vocab_count() - 1; id >= 0;
       --id) {  // of equal texts the one that text may become, then the lowest id
    int32_t& slot = by_text.try_emplace(token_text(id), id).first->second;
    if (from_text(id) || !from_text(slot)) slot = id;
  }
  const auto place = [](size_t rank, const std::string& line) {
    return "tokenizer: merges[" + std::to_string(rank) + "] '" + line + "'";
  };
  merges_.reserve(data_.merges.size());
  for (size_t rank = 0; rank < data_.merges.size(); ++rank) {
    const std::string& line = data_.merges[rank];
    const size_t space = line.find(' ', 1);
    if (space == std::string::npos || space + 1 == line.size())
      return fail(place(rank, line) + " is not two tokens");
    const std::string left = line.substr(0, space), right = line.substr(space + 1);
    int32_t ids[3];
    size_t part = 0;
    for (const std::string& text : {left, right, left + right}) {
      const auto found = by_text.find(text);
      if (found == by_text.end())
        return fail(place(rank, line) + ": '" + text + "' is not in the vocabulary");
      ids[part++] = found->second;
    }
    merges_.push_back({ids[0], ids[1], ids[2]});
    // A merge that would spell a control token is never done: text alone must not make one.
    if (from_text(ids[2])) table_.add(ids[0], ids[1], static_cast<int32_t>(rank));
  }
  if (merges_.empty()) {
    for (int32_t id = 0; id < vocab_count(); ++id) {
      if (type(id) != Type::kNormal || pieces_[static_cast<size_t>(id)].size() < 2) continue;
      return fail("tokenizer: no merges, but the vocabulary has tokens of several bytes ('" +
                  token_text(id) + "')");
    }
  }
  data_.merges = {};  // not needed any more, and tens of megabytes
  return {};
}

void BpeTokenizer::encode_text(std::string_view text, bool /*at_start*/,
                               std::vector<int32_t>& out) const {
  std::vector<std::string_view> pieces;
  splitter_.split(text, pieces);
  Scratch scratch;
  for (const std::string_view piece : pieces) encode_piece(piece, scratch, out);
}

void BpeTokenizer::offer(Scratch& scratch, int32_t left_symbol) const {
  if (left_symbol < 0) return;
  const Symbol& left = scratch.symbols[static_cast<size_t>(left_symbol)];
  if (left.next < 0 || left.id < 0) return;
  const int32_t right_id = scratch.symbols[static_cast<size_t>(left.next)].id;
  if (right_id < 0) return;
  const int32_t rank = table_.rank(left.id, right_id);
  if (rank < 0) return;
  scratch.heap.push_back(static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(left_symbol));
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), std::greater<>());
}

void BpeTokenizer::encode_piece(std::string_view piece, Scratch& scratch,
                                std::vector<int32_t>& out) const {
  if (ignore_merges_) {
    const auto whole = by_bytes_.find(piece);
    if (whole != by_bytes_.end()) {
      out.push_back(whole->second);
      return;
    }
  }
  const int32_t count = static_cast<int32_t>(piece.size());
  std::vector<Symbol>& symbols = scratch.symbols;
  symbols.resize(piece.size());
  scratch.heap.clear();
  for (int32_t i = 0; i < count; ++i) {
    const uint8_t byte = static_cast<uint8_t>(piece[static_cast<size_t>(i)]);
    symbols[static_cast<size_t>(i)] = {byte_ids_[byte], i - 1, i + 1 < count ? i + 1 : -1};
  }
  for (int32_t i = 0; i + 1 < count; ++i) offer(scratch, i);

  while (!scratch.heap.empty()) {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), std::greater<>());
    const uint64_t top = scratch.heap.back();
    scratch.heap.pop_back();
    const Merge& merge = merges_[top >> 32];
    const int32_t left_index = static_cast<int32_t>(top & 0xFFFFFFFF);
    Symbol& left = symbols[static_cast<size_t>(left_index)];
    if (left.id != merge.left || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (right.id != merge.right) continue;
    left.id = merge.result;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = left_index;
    offer(scratch, left.previous);
    offer(scratch, left_index);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    const int32_t id = symbols[static_cast<size_t>(i)].id;
    if (id >= 0) out.push_back(id);
  }
}

}  // namespace updraft
