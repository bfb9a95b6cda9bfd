// Live requests: one entry from submit to its end, with everything that a retry, a check or a later
// hand-over needs.
//
// The one idea: a request's generation on a node is fenced by (node, epoch). What another node or
// an older epoch says of it is dropped; within a generation the offsets must be gapless, else the
// node has broken the protocol.
//
// Owner: the thread that drives RouterCore.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "cloud/router/placement.h"
#include "cloud/router/queue.h"
#include "common/message/event.h"
#include "common/message/request.h"

namespace updraft {

using ClientId = uint64_t;  // the relay's handle of a client request

struct Stream {
  enum class State : uint8_t {
    kQueued,      // waiting for a node
    kDispatched,  // sent, not yet accepted
    kRunning,     // accepted
  };
  uint32_t slot = 0;
  uint32_t generation = 0;
  bool live = false;

  Request request;
  int64_t payload_bytes = 0;
  Wish wish;
  // Who asked: a client of this router, or an edge node from which it rose (wish.origin) with its
  // own epoch.
  ClientId client = 0;
  uint32_t origin_epoch = 0;
  uint32_t origin_position = 0;

  int64_t arrived_ns = 0;
  int64_t queue_until_ns = 0;
  int64_t dispatched_ns = 0;
  int64_t timer_ns = 0;  // when its earliest timer is due; 0: none
  WaitQueue::Key queue_key;
  bool waiting = false;  // it is in the queue
  NodeRef wanted_at;     // that was told how much room it needs there
  int64_t wanted_until_ns = 0;
  State state = State::kQueued;

  NodeIndex node = kNoNode;  // while dispatched or running
  uint32_t node_position = 0;
  uint64_t node_boot_epoch = 0;   // of the node when it was sent there
  Tier tier_served = Tier::kAny;  // of the last node
  uint32_t epoch = 0;             // of the current or last generation; 0: no node has had it yet
  uint64_t assignment_seq = 0;
  int32_t assigned_slots = 0;
  int64_t assigned_kv_tokens = 0;
  bool probe = false;  // its node is on trial with it (breaker.h)

  Reason reason = Reason::kFitsEdge;  // why it went to its last node
  bool started = false;               // the requester has had a Started
  bool tokens_sent = false;           // and tokens: from then on no silent retry
  int32_t prompt_tokens = 0;          // counted by the node
  int32_t retries = 0;
  std::optional<RequestError> failure;  // what its last node said, should no other be there
  int32_t refusals = 0;                 // times a node answered Rejected
  struct Choice {
    std::vector<int32_t> ids;  // emitted so far: what another node would continue from
    bool finished = false;
  };
  std::vector<Choice> choices;

  bool rose() const { return wish.origin.index != kNoNode; }
  bool all_choices_finished() const;
};

// What a node's chunk is: fine, a repeat to be dropped, or a breach of the protocol (`why` names
// it).
enum class ChunkVerdict : uint8_t { kDeliver, kDrop, kFault };
// Records the chunk's ids when it is fine. tokens_max: more than this per choice is a breach; 0: no
// limit.
ChunkVerdict take_chunk(Stream& stream, const TokenChunk& chunk, int64_t tokens_max,
                        std::string* why);

class StreamTable {
 public:
  explicit StreamTable(size_t streams_max) : streams_max_(streams_max) {}

  bool full() const { return by_id_.size() >= streams_max_; }
  size_t size() const { return by_id_.size(); }
  int64_t payload_bytes() const { return payload_bytes_; }
  // The request's id must not be live. The pointer is valid until erase().
  Stream& create(Request request, int64_t payload_bytes);
  void erase(Stream& stream);
  Stream* find(const RequestId& id);
  Stream& at(uint32_t slot) { return streams_[slot]; }
  const Stream& at(uint32_t slot) const { return streams_[slot]; }
  Stream* at(uint32_t slot, uint32_t generation);

  void attach(Stream& stream, NodeIndex node);  // dispatched there
  void detach(Stream& stream);
  void set_origin(Stream& stream, NodeRef origin);
  // Slots of the streams dispatched to a node, and of those that rose from it. Valid until the next
  // change.
  const std::vector<uint32_t>& on_node(NodeIndex node) const;
  const std::vector<uint32_t>& risen_from(NodeIndex node) const;
  size_t dispatched() const { return dispatched_; }

 private:
  void drop_origin(Stream& stream);

  const size_t streams_max_;
  std::deque<Stream> streams_;  // [slot]
  std::vector<uint32_t> free_slots_;
  std::unordered_map<RequestId, uint32_t> by_id_;
  std::vector<std::vector<uint32_t>> on_node_;     // [node]
  std::vector<std::vector<uint32_t>> risen_from_;  // [node]
  int64_t payload_bytes_ = 0;
  size_t dispatched_ = 0;
};

}  // namespace updraft
