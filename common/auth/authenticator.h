// Who a request comes from, by its Authorization field: an API key (its digest is known) or a JSON
// Web Token. Immutable once made: a reload makes another one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/auth/jwt.h"
#include "common/auth/key_file.h"
#include "common/auth/principal.h"

namespace updraft {

// Why nobody was recognised: one sentence for the client.
struct Unauthenticated {
  std::string message;
};

class Authenticator {
 public:
  // Nobody can be recognised without keys.
  Authenticator() = default;
  Authenticator(std::vector<ApiKey> keys, JwtPolicy tokens);

  bool empty() const { return keys_.empty() && tokens_.keys.empty(); }
  // At least one key is, or may make, an admin.
  bool has_admin() const;
  const std::vector<ApiKey>& keys() const { return keys_; }
  const std::vector<JwtKey>& token_keys() const { return tokens_.keys; }

  // authorization: the field's value, "Bearer <key or token>". The time taken tells nothing about
  // how much of a key was right: digests are compared, each in full, and all of them.
  std::variant<Principal, Unauthenticated> authenticate(std::string_view authorization,
                                                        int64_t now_unix_s) const;

 private:
  std::vector<ApiKey> keys_;
  JwtPolicy tokens_;
};

// The tenant of an API key: the first 16 digits of its digest.
std::string tenant_of(const ApiKey& key);

}  // namespace updraft
