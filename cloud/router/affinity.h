// Which nodes hold which beginnings of prompts, as they report it in their beats. Answers for a new
// prompt: who holds how much of it.
//
// The one idea: an index from hash to holders, so that a placement looks at the few nodes that hold
// something and never asks the thousands that do not.
//
// Owner: the thread that drives RouterCore.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cloud/router/registry.h"
#include "common/message/node_status.h"

namespace updraft {

class AffinityIndex {
 public:
  // What a node says has changed. Dropped when it does not go on from what is known of it: the node
  // then counts as holding nothing until it begins anew.
  void apply(NodeIndex node, const PrefixDelta& delta);
  // The node is gone, or another life or connection of it has begun.
  void drop(NodeIndex node);

  bool empty() const { return holders_.empty(); }
  size_t hashes() const { return holders_.size(); }

  struct Match {
    NodeIndex node = kNoNode;
    int64_t bytes = 0;  // of the prompt's form (prefix_chain.h)
  };
  // The nodes that hold the most of it first, at most kMatchesMax. Valid until the next call.
  static constexpr size_t kMatchesMax = 64;
  const std::vector<Match>& match(const std::vector<uint64_t>& chain);
  const std::vector<Match>& matches() const { return matches_; }  // of the last match()

 private:
  struct Node {
    uint64_t generation = 0;
    std::unordered_set<uint64_t> hashes;
  };
  void add(NodeIndex node, Node& known, uint64_t hash);
  void remove(NodeIndex node, Node& known, uint64_t hash);
  void clear(NodeIndex node, Node& known);

  std::unordered_map<NodeIndex, Node> nodes_;
  std::unordered_map<uint64_t, std::vector<NodeIndex>> holders_;
  std::vector<Match> matches_;  // scratch
};

}  // namespace updraft
