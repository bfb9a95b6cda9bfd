// See the header.
#include "cloud/router/affinity.h"

#include <algorithm>

#include "common/message/prefix_chain.h"

namespace updraft {

void AffinityIndex::add(NodeIndex node, Node& known, uint64_t hash) {
  if (known.hashes.size() >= kPrefixesReported) return;
  if (known.hashes.insert(hash).second) holders_[hash].push_back(node);
}

void AffinityIndex::remove(NodeIndex node, Node& known, uint64_t hash) {
  if (known.hashes.erase(hash) == 0) return;
  const auto at = holders_.find(hash);
  std::vector<NodeIndex>& list = at->second;
  *std::find(list.begin(), list.end(), node) = list.back();
  list.pop_back();
  if (list.empty()) holders_.erase(at);
}

void AffinityIndex::clear(NodeIndex node, Node& known) {
  while (!known.hashes.empty()) remove(node, known, *known.hashes.begin());
  known.generation = 0;
}

void AffinityIndex::apply(NodeIndex node, const PrefixDelta& delta) {
  Node& known = nodes_[node];
  if (delta.since == 0) {
    clear(node, known);
  } else if (known.generation < delta.since || known.generation > delta.generation) {
    clear(node, known);
    return;
  }
  for (const uint64_t hash : delta.dropped) remove(node, known, hash);
  for (const uint64_t hash : delta.added) add(node, known, hash);
  known.generation = delta.generation;
}

void AffinityIndex::drop(NodeIndex node) {
  const auto at = nodes_.find(node);
  if (at == nodes_.end()) return;
  clear(node, at->second);
  nodes_.erase(at);
}

const std::vector<AffinityIndex::Match>& AffinityIndex::match(const std::vector<uint64_t>& chain) {
  matches_.clear();
  for (size_t i = chain.size(); i-- > 0 && matches_.size() < kMatchesMax;) {
    const auto at = holders_.find(chain[i]);
    if (at == holders_.end()) continue;
    for (const NodeIndex node : at->second) {
      if (matches_.size() == kMatchesMax) break;
      const bool found = std::any_of(matches_.begin(), matches_.end(),
                                     [&](const Match& match) { return match.node == node; });
      if (!found) matches_.push_back({node, prefix_block_end(i)});
    }
  }
  return matches_;
}

}  // namespace updraft
