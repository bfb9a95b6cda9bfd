// Who asks, and what they may: the answer of authentication, and all that the rest of the program
// knows of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace updraft {

// Each may all that those before it may. kNobody is what an unset role is: it opens nothing.
enum class Role : uint8_t { kNobody, kGuest, kDeveloper, kAdmin };
const char* role_name(Role role);
// "guest", "developer", "admin"; nothing for any other word.
std::optional<Role> parse_role(std::string_view name);

// What one tenant may use. 0: no limit.
struct KeyLimits {
  int64_t requests_per_minute = 0;
  int64_t tokens_per_minute = 0;  // prompt and answer
  int64_t concurrent = 0;         // requests that are being answered
  bool operator==(const KeyLimits&) const = default;
};
// Where a key says nothing: a guest may try things out, others are not limited.
KeyLimits default_limits(Role role);

struct Principal {
  std::string tenant;  // 16 hex digits of a digest; never the key, safe in logs and as a salt
  std::string name;    // as the key file or the token's subject calls it; for people, may be empty
  Role role = Role::kNobody;
  KeyLimits limits;
};

}  // namespace updraft
