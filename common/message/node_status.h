// What a node says of itself to the router: NodeHello once and on change, NodeBeat every 100 ms
// (cloud) or 250 ms (edge).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/message/request.h"
#include "common/message/service.h"

namespace updraft {

inline constexpr uint32_t kPoolProtocolVersion = 1;

// The form of a node's id: [a-z0-9-]{1,64}, safe in file names, metrics and logs.
inline constexpr size_t kNodeIdBytesMax = 64;
bool is_node_id(std::string_view id);

struct NodeHello {
  uint32_t protocol_version = kPoolProtocolVersion;
  std::string node_id;      // unique in the pool, is_node_id()
  uint64_t boot_epoch = 0;  // larger at each start of the node (unix ms at start)
  Tier tier = Tier::kCloud;
  std::vector<ModelInfo> models;
  std::string device;  // "cpu avx512 x2", "NVIDIA H200"
  std::string software_version;
  float price = 0.0F;       // of a request here, in the operator's unit; 0..1e6
  bool wants_echo = false;  // it knows Echo and tells by its absence that the router has gone
};

// How much more work a router may send to a node, and until when: a window over the slots of all
// Submits of this session, in the order of their arrival. The node has counted `first` slots so far
// and takes `count` more; KV tokens are for what it has not counted yet.
struct Credit {
  uint64_t epoch = 0;  // grows with each grant of a session: the largest is in force
  uint64_t first = 0;
  int32_t count = 0;  // slots, 0..slots_total
  int64_t kv_tokens = 0;
  int32_t ttl_ms = 0;  // from its arrival on, 1..60000; then nothing is granted
};

// Which beginnings of prompts a node holds (prefix_chain.h), as a change of what it said before:
// the set of generation `since` (0: the empty set) becomes that of `generation`. A router that has
// another generation than `since` or a later one up to `generation` cannot use it.
struct PrefixDelta {
  uint64_t generation = 0;
  uint64_t since = 0;
  std::vector<uint64_t> added;  // at most kPrefixesReported each
  std::vector<uint64_t> dropped;
};
inline constexpr size_t kPrefixesReported = 1024;

enum class NodeState : uint8_t { kLoading, kReady, kDraining };

struct NodeBeat {
  uint64_t boot_epoch = 0;
  uint64_t seq = 0;            // +1 per beat
  int64_t sender_mono_ns = 0;  // the node's own monotonic clock, for rate computations only
  int32_t interval_ms = 0;
  int32_t lease_ttl_ms = 0;  // the node is dead when nothing arrived for that long
  NodeState state = NodeState::kLoading;
  int32_t slots_total = 0;  // sequences that can run at once
  int32_t slots_free = 0;
  int32_t running = 0;  // sequences
  int32_t waiting = 0;
  int64_t kv_tokens_total = 0;
  int64_t kv_tokens_free = 0;    // cached prefixes count as free
  int64_t kv_tokens_cached = 0;  // of the free ones, how many hold a prefix
  int64_t prefill_tokens_queued = 0;
  int64_t decode_tokens_reserved = 0;
  float prefill_tokens_per_s = 0.0F;  // measured, moving average; 0: unknown
  float decode_tokens_per_s = 0.0F;   // per sequence
  float bytes_per_token = 0.0F;       // prompt text bytes per token, moving average
  int64_t requests_done = 0;          // since boot
  int64_t requests_failed = 0;
  float cpu_load = 0.0F;  // 0..1 of the machine
  int64_t memory_free_bytes = 0;
  int64_t memory_total_bytes = 0;
  // Newest Submit sequence number from this router which the figures above already count.
  uint64_t last_assignment_seq = 0;
  // Absent: a node that grants nothing, whose free slots are taken for granted.
  std::optional<Credit> credit;
  std::optional<PrefixDelta> prefixes;
};

}  // namespace updraft
