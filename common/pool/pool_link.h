// A node's side of the pool, used by edge and cloud alike: dials the router, says hello, beats,
// takes work in for the node's own service, and (edge) sends work up. Reconnects for ever; a router
// restart is noticed (Welcome.router_epoch).
//
// Threads: one of its own, which owns the socket and all tables; public methods are for any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/message/node_status.h"
#include "common/message/service.h"
#include "common/net/pool_socket.h"
#include "common/pool/grant_ledger.h"

namespace updraft {

struct PoolLinkConfig {
  std::string router_endpoint;    // "tcp://10.0.0.1:7070"
  std::string router_public_key;  // Z85
  CurveKeys keys;
  int32_t beat_interval_ms = 100;  // cloud 100, edge 250
  int32_t lease_ttl_ms = 2000;
  // What the node grants, one for all its links; null for a node with one router.
  std::shared_ptr<GrantLedger> grants;
};

class PoolLink {
 public:
  virtual ~PoolLink() = default;

  // local: answers work that comes from the router (Submit -> local.submit); outlives the link. The
  // service's kContextLength becomes Rejected{kRejectedTooLong}, kOverloaded before the start
  // becomes Rejected{kRejectedBusy}. hello: what to announce. fill_beat: called on the link's
  // thread before each beat; fills the load fields. The state is kLoading until set_state().
  static Result<std::unique_ptr<PoolLink>> start(const PoolLinkConfig& config, NodeHello hello,
                                                 InferenceService& local,
                                                 std::function<void(NodeBeat&)> fill_beat);

  // Requests that rise: an InferenceService that sends them to the router. kOverloaded with
  // retry_after when the link is down or the router refuses. Lives as long as the link. Never
  // offers them back to this node (Submit carries hints.tier = cloud).
  virtual InferenceService& upward() = 0;

  virtual bool connected() const = 0;                      // authenticated and welcomed
  virtual std::vector<ModelInfo> pool_models() const = 0;  // from the last Welcome
  // Announce a state change at once (coalesced to 20 ms).
  virtual void set_state(NodeState state) = 0;
  // Says Drain to the router, lets running work end for at most grace_ms, then returns. What still
  // runs then is cancelled and ends at the router with kNodeLost. One caller.
  virtual void drain(int grace_ms) = 0;
};

}  // namespace updraft
