// The graphs of steps of single rows, one for each way in which such steps differ on the device.
// The first step of a kind runs as it is named (kernels are loaded, products choose their ways),
// the second is captured, and the others are replayed; what was captured is compared with what is
// named.
#pragma once

#include <compare>
#include <cstdint>
#include <map>

#include "kernels/cuda/runtime.h"

namespace updraft::cuda {

struct GraphKey {
  int32_t rows = 0;        // padded
  int32_t length_max = 0;  // padded
  int32_t logit_rows = 0;  // padded
  bool samples = false;
  bool sequences_share = false;  // see StepShape
  auto operator<=>(const GraphKey&) const = default;
};

class GraphCache {
 public:
  // A graph of a large model takes about a megabyte of the device's memory.
  static constexpr size_t kGraphsMax = 128;

  enum class Use : uint8_t { kName, kCapture, kReplay };
  // What the step that begins is to do.
  Use begin(const GraphKey& key);
  // After kCapture: `names` is the digest of the operations that were named.
  void keep(const GraphKey& key, Graph graph, uint64_t names);
  // After kReplay: the graph; checks that the same operations were named.
  const Graph& replay(const GraphKey& key, uint64_t names);
  // All graphs are of no use any more: memory moved.
  void clear() { entries_.clear(); }

  size_t graph_count() const;
  int64_t replay_count() const { return replays_; }

 private:
  struct Entry {
    Graph graph;  // empty: one step of the kind has been
    uint64_t names = 0;
    int64_t used = 0;
  };
  std::map<GraphKey, Entry> entries_;
  int64_t uses_ = 0;
  int64_t replays_ = 0;
};

}  // namespace updraft::cuda
