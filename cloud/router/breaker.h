// Circuit breakers, one per node and model: a node that fails what it is given gets nothing for a
// while, then one request to prove itself.
//
// The one idea: what counts is how a request ended, once, at its end. A fault says something about
// the node (it vanished, timed out, cut a stream, failed inside); busy, cancelled and too slow for
// a caller's deadline say nothing; everything else, a caller's mistake included, shows that it
// works.
//
//   closed --(10 s: >= 5 faults and >= 50 %, or 3 connections lost in a row)--> open
//   open --(2 s, doubling to 60 s, +-20 %; or a new boot)--> half-open
//   half-open --(two successes)--> closed; --(one fault)--> open
//
// Never are more than half of a model's nodes open, and never the last one: that all of them fail
// is better found out by asking than taken for granted.
//
// Owner: the thread that drives RouterCore.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "cloud/router/registry.h"

namespace updraft {

class BreakerTable {
 public:
  enum class State : uint8_t { kClosed, kOpen, kHalfOpen };
  enum class Outcome : uint8_t {
    kSuccess,
    kFault,
    kConnectFault,  // the connection ended before the node had answered at all
    kNeutral,
  };
  struct Rules {
    int32_t faults_min = 5;
    double fault_share_min = 0.5;
    int32_t connect_faults_max = 3;  // in a row
    int32_t open_ms_first = 2000;
    int32_t open_ms_max = 60'000;
    double jitter = 0.2;
    int32_t successes_to_close = 2;
  };
  BreakerTable(Rules rules, const Registry& registry, uint64_t seed)
      : rules_(rules), registry_(registry), random_(seed) {}

  // Any breaker that is not closed; while false, admits() need not be asked.
  bool any_tripped() const { return tripped_count_ > 0; }
  // May this node be given a request of this model now?
  bool admits(NodeIndex node, ModelIndex model, int64_t now_ns) const;
  // It is given one. True: this is the probe of a half-open breaker, to be scored as such.
  bool dispatched(NodeIndex node, ModelIndex model, int64_t now_ns);
  // How it ended.
  void score(NodeIndex node, ModelIndex model, Outcome outcome, bool probe, int64_t now_ns);
  // A new life of the node: what is open becomes half-open.
  void rebooted(NodeIndex node, int64_t now_ns);
  // A model has lost a node: closes what would now be too many, the longest open first.
  void nodes_changed(ModelIndex model);

  State state(NodeIndex node, ModelIndex model, int64_t now_ns) const;
  struct View {
    NodeIndex node = kNoNode;
    ModelIndex model = kNoModel;
    State state = State::kClosed;
    int32_t faults = 0;    // of the last ten seconds
    int32_t requests = 0;  // that were scored then
    int64_t retry_ms = 0;  // kOpen: until it is half-open
  };
  // Those that are not closed, and closed ones with faults in their window.
  std::vector<View> views(int64_t now_ns) const;
  size_t open_count(int64_t now_ns) const;
  uint64_t opened_total() const { return opened_total_; }

 private:
  static constexpr int kWindowSeconds = 10;
  struct Second {
    int64_t at = -1;  // which second its counts are of
    int32_t faults = 0;
    int32_t requests = 0;
  };
  struct Breaker {
    uint32_t generation = 0;  // of the node's slot
    std::array<Second, kWindowSeconds> window{};
    State state = State::kClosed;
    bool probing = false;
    int32_t connect_faults = 0;  // in a row
    int32_t successes = 0;       // while half-open
    int32_t opened = 0;          // times in a row
    int64_t opened_ns = 0;
    int64_t open_until_ns = 0;
  };
  static uint64_t key(NodeIndex node, ModelIndex model) { return (uint64_t{model} << 32) | node; }
  const Breaker* find(NodeIndex node, ModelIndex model) const;
  Breaker* find(NodeIndex node, ModelIndex model);
  Breaker& at(NodeIndex node, ModelIndex model);
  State state_of(const Breaker& breaker, int64_t now_ns) const;
  void count(Breaker& breaker, bool fault, int64_t now_ns);
  void sum(const Breaker& breaker, int64_t now_ns, int32_t* faults, int32_t* requests) const;
  bool may_eject(ModelIndex model) const;
  size_t ejected(ModelIndex model) const;
  void open(Breaker& breaker, int64_t now_ns);
  void close(Breaker& breaker);
  double next_random();

  const Rules rules_;
  const Registry& registry_;
  uint64_t random_;
  std::unordered_map<uint64_t, Breaker> breakers_;
  size_t tripped_count_ = 0;  // not kClosed
  uint64_t opened_total_ = 0;
};
const char* breaker_state_name(BreakerTable::State state);

}  // namespace updraft
