// A node's links to all its routers: one PoolLink each. Requests that rise take the first router
// that is there.
//
// Threads: start() and drain() on the daemon's own thread, the rest on any.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/memory_watch.h"
#include "common/daemon/node_config.h"
#include "common/pool/pool_link.h"

namespace updraft {

class PoolLinks {
 public:
  // No routers: an object without links, whose service refuses. `make_filler` gives each link a
  // load reporter of its own. While `memory` (outlives the links) is short, nothing is granted, see
  // GrantLedger::set_memory(). Errors name the key file or the endpoint.
  static Result<std::unique_ptr<PoolLinks>> start(
      const PoolSection& pool, const NodeHello& hello, InferenceService& local, MemoryWatch& memory,
      const std::function<std::function<void(NodeBeat&)>()>& make_filler);
  ~PoolLinks();

  InferenceService& upward();
  bool configured() const { return !links_.empty(); }
  int connected_count() const;
  void set_state(NodeState state);
  // All links at the same time; returns when every link's work has ended or grace_ms is over.
  void drain(int grace_ms);

 private:
  class Upward;
  PoolLinks();

  std::vector<std::unique_ptr<PoolLink>> links_;
  std::unique_ptr<Upward> upward_;
};

// The key files that [pool] names can be read; nothing to check without routers. Errors name the
// file. For daemons to ask before they load a model, which takes its time.
Result<void> check_pool_keys(const PoolSection& pool);

// What a node says of itself at the start. Aliases are announced as models of their own, so that a
// router finds them.
NodeHello make_hello(const std::string& node_id, Tier tier, const LocalModel& model,
                     const std::vector<std::string>& aliases);

}  // namespace updraft
