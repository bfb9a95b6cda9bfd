// Who sent a request: API keys, stored only as SHA-256 digests. Pure: header bytes in, a tenant
// out.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace updraft {

// SHA-256 of `text` as 64 lower-case hex digits: what stands in a configuration for a key.
std::string sha256_hex(std::string_view text);

class KeyRing {
 public:
  // digests: 64 hex digits each. None: everyone is let in, with an empty tenant. Errors name the
  // entry.
  static Result<KeyRing> parse(const std::vector<std::string>& digests);

  bool empty() const { return digests_.empty(); }

  // The tenant of an Authorization field ("Bearer <key>"), or nothing when the key is missing or
  // unknown. The time taken tells nothing about how much of a key was right: digests are compared,
  // each in full, and all of them.
  std::optional<std::string> tenant_of(std::string_view authorization) const;

 private:
  std::vector<std::array<uint8_t, 32>> digests_;
};

}  // namespace updraft
