// JSON Web Tokens, checked: RFC 7515 (compact form), 7519, 8725. Pure: text, keys and the time in,
// claims or a reason out.
//
// The one idea: a key is bound to one algorithm, one issuer and one highest role, so nothing that a
// token says of itself can widen what it is checked by.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/auth/crypto.h"
#include "common/auth/principal.h"
#include "common/base/result.h"

namespace updraft {

struct JwtKey {
  std::string id;  // what a token's "kid" must be
  VerificationKey key;
  std::string issuer;  // what its "iss" must be
  Role role_max = Role::kDeveloper;
  KeyLimits limits;  // of each subject
};

struct JwtPolicy {
  std::vector<JwtKey> keys;
  std::string audience;   // one of a token's "aud"
  int64_t leeway_s = 30;  // by which clocks may differ, for exp and nbf
};

inline constexpr size_t kJwtBytesMax = 8 * 1024;

// Has the form of a token (three parts between dots), which no API key of ours has.
bool looks_like_jwt(std::string_view token);

// Who a token speaks for. Refused with one sentence that never repeats the token: another form, an
// algorithm that is not its key's (and "none"), a key id that is not known, "crit", "jku", "jwk",
// "x5u" or "x5c" in its header, a bad signature, "exp", "iss" or "aud" missing or wrong, "nbf" in
// the future, a "role" that is none, or is more than its key may give. No role: a guest.
// The tenant is a digest of issuer and subject.
Result<Principal> verify_jwt(const JwtPolicy& policy, std::string_view token, int64_t now_unix_s);

// The file of keys that sign tokens, one per line:
//
//   EdDSA|ES256|HS256 <kid> <file> iss=<issuer> [role=...] [rpm=N] [tpm=N] [concurrent=N]
//
// file: a public key in PEM, or for HS256 the secret's bytes (at least 32; one line feed at the end
// does not count; readable by its owner alone); relative to the list's folder. role: the highest
// that a token may claim, default developer. Refused with file and line.
Result<std::vector<JwtKey>> load_jwt_keys(const std::string& path);

}  // namespace updraft
