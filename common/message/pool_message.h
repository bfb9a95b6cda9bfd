// The pool protocol's messages as plain values (schemas/pool.fbs on the wire). Both directions
// between router and node. FlatBuffers stays inside codec.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/message/event.h"
#include "common/message/node_status.h"
#include "common/message/request.h"

namespace updraft {

// A request for the other side. Router -> node: work. Edge node -> router: work that rises
// (answered by Tokens etc. from the router). `epoch` fences generations of one request: answers
// that carry an older epoch are dropped.
struct Submit {
  Request request;
  uint32_t epoch = 1;
  uint64_t assignment_seq = 0;  // per router and node, ascending
  int32_t slots = 0;            // of the node's grant that it uses; 0: a router without grants
};
struct Accepted {
  RequestId id;
  uint32_t epoch = 1;
  int32_t prompt_tokens = 0;  // counted with the node's tokenizer
  Started started;            // towards an edge that asked upward: who serves it
  // Node -> router: how long the node had the Submit; what else passed since it was sent was the
  // network's.
  int32_t held_us = 0;
};
// Not taken; code is kRejectedTooLong, kRejectedBusy, kModelNotFound, kOverloaded (draining), ...
struct Rejected {
  RequestId id;
  uint32_t epoch = 1;
  RequestError error;
  std::optional<Credit> credit{};  // what ends makes room: the grant as it is from now on
};
struct Tokens {
  RequestId id;
  uint32_t epoch = 1;
  std::vector<TokenChunk> chunks;
};
struct Done {  // the wire's Finished
  RequestId id;
  uint32_t epoch = 1;
  Finished finished;
  std::optional<Credit> credit{};
};
struct Failed {  // an accepted request ended with an error
  RequestId id;
  uint32_t epoch = 1;
  RequestError error;
  std::optional<Credit> credit{};
};
struct Cancel {
  RequestId id;
  uint32_t epoch = 1;
};
struct Drain {  // router -> node: take no new work; node -> router: I am draining
  int32_t grace_ms = 30000;
  bool resume = false;  // router -> node: an earlier Drain of this router's is taken back
};
// router -> node, answer to a hello, and again when its words change: the id of the router, the
// models the whole pool serves, what waits there for this node.
struct Welcome {
  std::string router_id;
  uint64_t router_epoch = 0;  // changes when the router restarts: the node then says hello again
  std::vector<ModelInfo> pool_models;
  bool credits = false;  // this router sends nothing but what the node has granted
  int32_t echo_ms = 0;   // a node that beats and wants it gets an Echo so often; 0: it does not
  // What a request that waits needs here at once, more than the node has granted; 0: none does.
  int32_t wanted_slots = 0;
  int64_t wanted_kv_tokens = 0;
};
// router -> node: the router is there and takes this connection's beats.
struct Echo {
  uint64_t beat_seq = 0;  // of the last one
};
// A piece of a message too large to go in one frame (> kChunkBytes): the parts of `stream` in order
// make the encoded message. Beats are sent between parts.
struct Blob {
  uint64_t stream = 0;
  uint32_t index = 0;
  uint32_t count = 0;
  std::vector<std::byte> bytes;
};
inline constexpr size_t kChunkBytes = 256 * 1024;
inline constexpr size_t kMessageBytesMax = 24 * 1024 * 1024;  // an assembled message

using PoolMessage = std::variant<NodeHello, NodeBeat, Submit, Accepted, Rejected, Tokens, Done,
                                 Failed, Cancel, Drain, Welcome, Blob, Echo>;

// One frame as FlatBuffers (file identifier "UPPL").
std::vector<std::byte> encode(const PoolMessage& message);
// Verifies (depth 16, 1,000 tables... see codec.cpp) before any read, then range-checks every
// number and clamps nothing: an absurd value is an error that names the field and the value.
Result<PoolMessage> decode(ByteView frame);

}  // namespace updraft
