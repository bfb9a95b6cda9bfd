// The handshake of the local handoff as plain values (schemas/local.fbs on the Unix socket).
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"

namespace updraft {

inline constexpr uint32_t kLocalProtocolVersion = 2;
// A client that leaves for good may say so by a message of this many bytes: no handshake is so
// short.
inline constexpr size_t kGoodbyeBytes = 1;

struct LocalHello {
  uint32_t abi_version = 0;
  uint32_t protocol_version = kLocalProtocolVersion;
  std::string client_name;  // for the daemon's log, at most 64 bytes
  int32_t resume_ms = 0;    // 0..60000, see local.fbs
};
struct LocalModelName {
  std::string id;
  int32_t context_tokens = 0;
  int32_t embedding_dim = 0;  // values of one row of input embeddings; 0: none are taken
};
struct LocalWelcome {
  uint64_t boot_epoch = 0;
  std::string session_token;
  std::string control_endpoint;
  int32_t requests_max = 0;
  std::vector<LocalModelName> models;
  uint64_t segment_bytes_max = 0;  // of all segments of this session; 0: unknown
};
struct LocalRefusal {
  std::string message;
};
// After the welcome: a further segment (common/ipc/payload_segment.h), and that it was taken.
struct LocalAddSegment {
  uint32_t number = 0;
  bool one_off = false;
};
struct LocalSegmentAdded {
  uint32_t number = 0;
};
using Handshake =
    std::variant<LocalHello, LocalWelcome, LocalRefusal, LocalAddSegment, LocalSegmentAdded>;

std::vector<std::byte> encode_handshake(const Handshake& handshake);
// Verified before any read; texts are UTF-8 and bounded, numbers in range. Errors name the field.
Result<Handshake> decode_handshake(ByteView bytes);

}  // namespace updraft
