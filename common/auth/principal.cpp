// See the header.
#include "common/auth/principal.h"

namespace updraft {

const char* role_name(Role role) {
  switch (role) {
    case Role::kGuest:
      return "guest";
    case Role::kDeveloper:
      return "developer";
    case Role::kAdmin:
      return "admin";
    case Role::kNobody:
      break;
  }
  return "nobody";
}

std::optional<Role> parse_role(std::string_view name) {
  for (const Role role : {Role::kGuest, Role::kDeveloper, Role::kAdmin}) {
    if (name == role_name(role)) return role;
  }
  return std::nullopt;
}

KeyLimits default_limits(Role role) {
  if (role != Role::kGuest) return {};
  return {.requests_per_minute = 20, .tokens_per_minute = 20'000, .concurrent = 2};
}

}  // namespace updraft
