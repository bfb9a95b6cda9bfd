// Finds special tokens in text: leftmost first, longest among those that begin at one place, as
// Hugging Face's added vocabulary does. Immutable once built: any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace updraft {

class SpecialMatcher {
 public:
  SpecialMatcher() { root_.fill(-1); }

  // `anywhere`: also found in text that is not trusted (user-defined tokens). An empty text is
  // ignored; of two tokens with the same text the first added stays.
  void add(std::string_view text, int32_t id, bool anywhere);

  struct Match {
    int32_t id = -1;  // -1: none
    size_t bytes = 0;
  };
  // The longest token that begins at text[at]. A token that is not `anywhere` must end at or before
  // trusted_end.
  Match longest_at(std::string_view text, size_t at, size_t trusted_end) const;

 private:
  struct Node {
    int32_t id = -1;
    bool anywhere = false;
  };
  int32_t child(int32_t node, uint8_t byte) const;

  std::vector<Node> nodes_;
  std::array<int32_t, 256> root_{};                 // first byte -> node, -1: none
  std::unordered_map<uint64_t, int32_t> children_;  // node << 8 | byte -> node
};

}  // namespace updraft
