// A byte trie. Its first level is an array, because almost every byte of a text fails right there.
#include "common/text/special_matcher.h"

namespace updraft {

int32_t SpecialMatcher::child(int32_t node, uint8_t byte) const {
  const auto found = children_.find(static_cast<uint64_t>(node) << 8 | byte);
  return found == children_.end() ? -1 : found->second;
}

void SpecialMatcher::add(std::string_view text, int32_t id, bool anywhere) {
  if (text.empty()) return;
  int32_t node = -1;
  for (size_t i = 0; i < text.size(); ++i) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    int32_t next = i == 0 ? root_[byte] : child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
      if (i == 0) {
        root_[byte] = next;
      } else {
        children_[static_cast<uint64_t>(node) << 8 | byte] = next;
      }
    }
    node = next;
  }
  Node& last = nodes_[static_cast<size_t>(node)];
  if (last.id < 0) last = {id, anywhere};
}

SpecialMatcher::Match SpecialMatcher::longest_at(std::string_view text, size_t at,
                                                 size_t trusted_end) const {
  Match best;
  int32_t node = root_[static_cast<uint8_t>(text[at])];
  for (size_t end = at + 1; node >= 0; ++end) {
    const Node& here = nodes_[static_cast<size_t>(node)];
    if (here.id >= 0 && (here.anywhere || end <= trusted_end)) best = {here.id, end - at};
    if (end == text.size()) break;
    node = child(node, static_cast<uint8_t>(text[end]));
  }
  return best;
}

}  // namespace updraft
