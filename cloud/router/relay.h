// What the pure core decides, carried out. The relay owns the pool's socket, the core, one queue of
// outgoing frames per connection and the clients' sinks; nobody else touches them.
//
// The one idea: it works in short turns on an EventLoop and never blocks. A turn takes what was
// handed in, the pool's messages for a bounded time, and sends; with more to do it comes again
// behind whoever else is due. The loop may be the HTTP surface's as well: that saves a request two
// wake-ups (a fifth of the added latency), but costs a fifth of the tokens that one core relays,
// because the words of a stream no longer come together while they wait; the router gives it one of
// its own. A connection that takes nothing keeps its frames in its own queue,
// and after a while counts as gone; everything from other threads comes through bounded mailboxes.
//
// Threads: start() and stop() by the owner; the methods marked "any thread"; the rest is the
// loop's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cloud/router/core.h"
#include "common/base/memory_watch.h"
#include "common/base/result.h"
#include "common/http/event_loop.h"
#include "common/message/service.h"
#include "common/metrics/metrics.h"
#include "common/net/pool_socket.h"

namespace updraft {

struct RelayConfig {
  RouterCoreConfig core;
  std::string endpoint;
  CurveKeys keys;
  std::vector<AllowedKey> allowed;
  size_t submissions_max = 4096;                       // waiting for the relay's next turn
  size_t peer_queue_bytes_max = 2 * kMessageBytesMax;  // frames waiting for one connection
  int32_t peer_stall_ms_max =
      10'000;  // a connection that takes nothing for that long counts as gone
};

class Relay {
 public:
  virtual ~Relay() = default;  // stops
  // Binds the pool's socket and begins to work on `loop`. New requests are taken as far as `memory`
  // allows. All three outlive the relay.
  static Result<std::unique_ptr<Relay>> start(RelayConfig config, Metrics& metrics,
                                              MemoryWatch& memory, EventLoop& loop);

  // Any thread. Requests of this router's clients; sinks run on the loop's thread. Lives as long
  // as the relay.
  virtual InferenceService& service() = 0;
  virtual std::string endpoint() const = 0;
  // Any thread but the loop's, as the next three. Empty when the relay has stopped.
  virtual std::vector<RouterCore::NodeInfo> nodes() = 0;
  // Nothing new for this node (grace_ms: how long it may finish what it has), or work
  // again. False: unknown id, or the relay has stopped.
  virtual bool drain_node(const std::string& node_id, int32_t grace_ms) = 0;
  virtual bool undrain_node(const std::string& node_id) = 0;
  // Empty when the relay has stopped.
  virtual std::vector<RouterCore::BreakerView> breakers() = 0;
  // Any thread.
  virtual void set_allowed(const std::vector<AllowedKey>& allowed) = 0;
  // Any thread. New requests get kOverloaded, ready() is false; what is under way goes on.
  virtual void stop_taking() = 0;
  // Any thread but the loop's, which must still run. Ends what is under way with kOverloaded,
  // cancels it on its nodes and leaves the loop.
  virtual void stop() = 0;
};

}  // namespace updraft
