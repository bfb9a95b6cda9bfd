// The handshake of the local handoff as plain values (schemas/local.fbs on the Unix socket).
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"

namespace updraft {

inline constexpr uint32_t kLocalProtocolVersion = 1;

struct LocalHello {
  uint32_t abi_version = 0;
  uint32_t protocol_version = kLocalProtocolVersion;
  std::string client_name;  // for the daemon's log, at most 64 bytes
  int32_t resume_ms = 0;    // 0..60000, see local.fbs
};
struct LocalModelName {
  std::string id;
  int32_t context_tokens = 0;
};
struct LocalWelcome {
  uint64_t boot_epoch = 0;
  std::string session_token;
  std::string control_endpoint;
  int32_t requests_max = 0;
  std::vector<LocalModelName> models;
};
struct LocalRefusal {
  std::string message;
};
using Handshake = std::variant<LocalHello, LocalWelcome, LocalRefusal>;

std::vector<std::byte> encode_handshake(const Handshake& handshake);
// Verified before any read; texts are UTF-8 and bounded, numbers in range. Errors name the field.
Result<Handshake> decode_handshake(ByteView bytes);

}  // namespace updraft
