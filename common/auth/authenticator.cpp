// See the header.
#include "common/auth/authenticator.h"

#include <algorithm>
#include <utility>

namespace updraft {
namespace {

// The credential of "Bearer <credential>", any case of the scheme; nothing for another scheme.
std::string_view bearer_of(std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() < kScheme.size()) return {};
  for (size_t i = 0; i < kScheme.size(); ++i) {
    const char c = authorization[i];
    if ((c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c) != kScheme[i]) return {};
  }
  authorization.remove_prefix(kScheme.size());
  while (authorization.starts_with(' ')) authorization.remove_prefix(1);
  return authorization;
}

std::string_view view_of(const Sha256Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

}  // namespace

Authenticator::Authenticator(std::vector<ApiKey> keys, JwtPolicy tokens)
    : keys_(std::move(keys)), tokens_(std::move(tokens)) {}

bool Authenticator::has_admin() const {
  return std::any_of(keys_.begin(), keys_.end(),
                     [](const ApiKey& key) { return key.role == Role::kAdmin; }) ||
         std::any_of(tokens_.keys.begin(), tokens_.keys.end(),
                     [](const JwtKey& key) { return key.role_max == Role::kAdmin; });
}

std::variant<Principal, Unauthenticated> Authenticator::authenticate(std::string_view authorization,
                                                                     int64_t now_unix_s) const {
  if (authorization.empty())
    return Unauthenticated{"an API key is needed: Authorization: Bearer <key>"};
  const std::string_view credential = bearer_of(authorization);
  if (credential.empty()) return Unauthenticated{"the Authorization header must be: Bearer <key>"};
  const Sha256Digest given = sha256(credential);
  const ApiKey* found = nullptr;
  for (const ApiKey& key : keys_) {
    if (equal_in_constant_time(view_of(key.digest), view_of(given))) found = &key;
  }
  if (found != nullptr)
    return Principal{tenant_of(*found), found->name, found->role, found->limits};
  if (tokens_.keys.empty() || !looks_like_jwt(credential))
    return Unauthenticated{"this API key is not known here"};
  Result<Principal> principal = verify_jwt(tokens_, credential, now_unix_s);
  if (!principal) return Unauthenticated{principal.message()};
  return std::move(*principal);
}

std::string tenant_of(const ApiKey& key) { return hex_of(key.digest).substr(0, 16); }

}  // namespace updraft
