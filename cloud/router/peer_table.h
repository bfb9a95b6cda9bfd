// One entry per connection of the pool: frames on their way out, large messages on their way in.
//
// Owner: the loop's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "cloud/router/registry.h"
#include "common/message/chunker.h"
#include "common/net/pool_socket.h"

namespace updraft {

class PeerTable {
 public:
  struct Limits {
    size_t queue_bytes_max = 2 * kMessageBytesMax;
    int32_t stall_ms_max = 10'000;
    int64_t idle_ms_max = 60'000;  // an entry without traffic is dropped
  };
  // Connections that have ended, and why.
  struct Gone {
    PeerId peer;
    const char* why = "";
  };
  explicit PeerTable(Limits limits) : limits_(limits) {}

  // A frame of this peer; nothing while a large message is incomplete, an error when it breaks the
  // protocol.
  Result<std::optional<PoolMessage>> read(const PeerId& peer, ByteView frame, int64_t now_ns);
  // False when the message is larger than the pool's messages may be; everything else waits for
  // flush().
  [[nodiscard]] bool queue(const PeerId& peer, const PoolMessage& message, int64_t now_ns);
  // Sends what the socket takes. True when something was sent.
  bool flush(PoolListener& listener, int64_t now_ns, std::vector<Gone>& gone);
  // Drops entries without traffic.
  void sweep(int64_t now_ns);
  size_t size() const { return peers_.size(); }
  bool pending() const { return !waiting_.empty(); }

 private:
  struct Peer {
    SendQueue out;
    MessageReader reader;
    int64_t active_ns = 0;
    int64_t stalled_ns = 0;  // since when the socket takes nothing; 0: it does
    bool waiting = false;    // listed in waiting_
  };
  enum class Flushed : uint8_t { kAll, kSome, kGone };
  Flushed flush_one(PoolListener& listener, const PeerId& id, Peer& peer, bool* sent);

  const Limits limits_;
  std::unordered_map<PeerId, Peer> peers_;
  std::vector<PeerId> waiting_;  // those with frames to send
};

}  // namespace updraft
