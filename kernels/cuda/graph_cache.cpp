// Which graph is there, and which gives way.
#include "kernels/cuda/graph_cache.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace updraft::cuda {

GraphCache::Use GraphCache::begin(const GraphKey& key) {
  const auto found = entries_.find(key);
  if (found != entries_.end()) {
    found->second.used = ++uses_;
    return found->second.graph ? Use::kReplay : Use::kCapture;
  }
  if (entries_.size() >= kGraphsMax) {
    entries_.erase(std::min_element(
        entries_.begin(), entries_.end(),
        [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
  }
  entries_[key].used = ++uses_;
  return Use::kName;
}

void GraphCache::keep(const GraphKey& key, Graph graph, uint64_t names) {
  Entry& entry = entries_.at(key);
  entry.graph = std::move(graph);
  entry.names = names;
}

const Graph& GraphCache::replay(const GraphKey& key, uint64_t names) {
  const Entry& entry = entries_.at(key);
  UPDRAFT_CHECK(entry.names == names,
                "a step names the operations that were captured for its kind");
  ++replays_;
  return entry.graph;
}

size_t GraphCache::graph_count() const {
  return static_cast<size_t>(std::count_if(entries_.begin(), entries_.end(), [](const auto& entry) {
    return static_cast<bool>(entry.second.graph);
  }));
}

}  // namespace updraft::cuda
