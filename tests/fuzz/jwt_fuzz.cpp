// Fuzzes JSON Web Tokens. The input is a token as a client sends it; the keys are of the fuzzer's
// own making. Nobody may be let in but by the HMAC of the one known secret, whatever the rest says.
#include <cstdint>
#include <string>
#include <string_view>

#include "common/auth/authenticator.h"
#include "common/base/bytes.h"
#include "common/base/check.h"

using namespace updraft;

namespace {

constexpr int64_t kNow = 1'800'000'000;

JwtPolicy make_policy() {
  auto secret = VerificationKey::from_secret(std::string(40, 's'));
  auto ed =
      VerificationKey::from_pem(SignatureAlgorithm::kEdDsa,
                                "-----BEGIN PUBLIC KEY-----\n"
                                "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n"
                                "-----END PUBLIC KEY-----\n");
  UPDRAFT_CHECK(secret.ok() && ed.ok());
  JwtPolicy policy;
  policy.audience = "updraft";
  policy.keys.push_back({"hs", std::move(*secret), "me", Role::kDeveloper, {}});
  policy.keys.push_back({"ed", std::move(*ed), "me", Role::kDeveloper, {}});
  return policy;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const JwtPolicy policy = make_policy();
  static const Authenticator door({}, policy);
  const std::string_view token(reinterpret_cast<const char*>(data), size);
  const auto principal = verify_jwt(policy, token, kNow);
  if (principal) {
    UPDRAFT_CHECK(principal->role >= Role::kGuest && principal->role <= Role::kDeveloper);
    UPDRAFT_CHECK(principal->tenant.size() == 16);
    const size_t dot = token.rfind('.');
    const auto signature = base64url_decoded(token.substr(dot + 1));
    UPDRAFT_CHECK(signature && policy.keys[0].key.verify(token.substr(0, dot), *signature));
  } else {
    UPDRAFT_CHECK(!principal.message().empty() && is_utf8(principal.message()));
  }
  (void)door.authenticate(token, kNow);
  const auto decoded = base64url_decoded(token);
  if (decoded) UPDRAFT_CHECK(base64url_encoded(*decoded) == token);
  return 0;
}
