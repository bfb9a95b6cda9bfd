// Tokens signed by others (golden/jwt_vectors.json), the RFCs' examples, and the list of keys.
#include "common/auth/jwt.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <fstream>
#include <string>

#include "tests/common/auth/vectors.h"

using namespace updraft;
using namespace updraft::testing;

TEST_CASE("every token of the vectors is accepted or refused as it should be") {
  const auto vectors = jwt_vectors();
  const JwtPolicy policy = vector_policy(vectors);
  const int64_t now = vectors.at("now").as_int64();
  int accepted = 0;
  int refused = 0;
  for (const auto& vector : vectors.at("tokens").as_array()) {
    const std::string token = text_at(vector, "token");
    const std::string says = text_at(vector, "says");
    CAPTURE(text_at(vector, "name"));
    const auto principal = verify_jwt(policy, token, now);
    if (says.empty()) {
      REQUIRE_MESSAGE(principal.ok(), principal.message());
      CHECK(role_name(principal->role) == text_at(vector, "role"));
      CHECK(principal->name == text_at(vector, "subject"));
      CHECK(principal->tenant.size() == 16);
      ++accepted;
    } else {
      REQUIRE_FALSE(principal.ok());
      CHECK_MESSAGE(principal.message().find(says) != std::string::npos, principal.message());
      CHECK_MESSAGE((token.size() < 20 || principal.message().find(token) == std::string::npos),
                    "the message repeats the token");
      ++refused;
    }
  }
  CHECK(accepted >= 9);
  CHECK(refused >= 45);
}

TEST_CASE("the signatures of RFC 7515 and RFC 8037 hold, with any bit changed they do not") {
  const auto vectors = jwt_vectors();
  for (const auto& example : vectors.at("rfc").as_array()) {
    CAPTURE(text_at(example, "name"));
    const auto algorithm = parse_algorithm(text_at(example, "alg"));
    REQUIRE(algorithm);
    const std::string key_text = text_at(example, "key");
    const auto key = *algorithm == SignatureAlgorithm::kHs256
                         ? VerificationKey::from_secret(*base64url_decoded(key_text))
                         : VerificationKey::from_pem(*algorithm, key_text);
    REQUIRE_MESSAGE(key.ok(), key.message());
    const std::string jws = text_at(example, "jws");
    const size_t dot = jws.rfind('.');
    const std::string message = jws.substr(0, dot);
    const auto signature = base64url_decoded(jws.substr(dot + 1));
    REQUIRE(signature);
    CHECK(key->verify(message, *signature));
    for (size_t byte = 0; byte < signature->size(); ++byte) {
      std::string other = *signature;
      other[byte] = static_cast<char>(other[byte] ^ 4);
      CHECK_FALSE(key->verify(message, other));
    }
    CHECK_FALSE(key->verify(message + "x", *signature));
    CHECK_FALSE(key->verify(message, *signature + "x"));
    CHECK_FALSE(key->verify(message, ""));
  }
}

TEST_CASE("a token without kid is for the only key there is, if there is one") {
  const auto vectors = jwt_vectors();
  JwtPolicy policy = vector_policy(vectors);
  policy.keys.resize(1, policy.keys[0]);
  const int64_t now = vectors.at("now").as_int64();
  bool seen = false;
  for (const auto& vector : vectors.at("tokens").as_array()) {
    if (text_at(vector, "name") != "no kid") continue;
    seen = true;
    CHECK(verify_jwt(policy, text_at(vector, "token"), now).ok());
    policy.keys.clear();
    CHECK_FALSE(verify_jwt(policy, text_at(vector, "token"), now).ok());
  }
  CHECK(seen);
}

TEST_CASE("an empty audience matches nothing, and a guest's token has a guest's limits") {
  const auto vectors = jwt_vectors();
  JwtPolicy policy = vector_policy(vectors);
  const int64_t now = vectors.at("now").as_int64();
  for (const auto& vector : vectors.at("tokens").as_array()) {
    const std::string name = text_at(vector, "name");
    if (name == "no role is a guest")
      CHECK(verify_jwt(policy, text_at(vector, "token"), now)->limits ==
            default_limits(Role::kGuest));
    if (name != "good EdDSA") continue;
    CHECK(verify_jwt(policy, text_at(vector, "token"), now)->limits == KeyLimits{});
    policy.audience = "";
    CHECK_FALSE(verify_jwt(policy, text_at(vector, "token"), now).ok());
    policy.audience = text_at(vectors, "audience");
  }
}

TEST_CASE("keys of the wrong kind are refused when they are read") {
  const auto vectors = jwt_vectors();
  const auto& keys = vectors.at("keys");
  const auto pem = [&](SignatureAlgorithm algorithm, const std::string& text) {
    return VerificationKey::from_pem(algorithm, text).message();
  };
  CHECK(pem(SignatureAlgorithm::kEdDsa, text_at(keys, "es256")).find("wants Ed25519") !=
        std::string::npos);
  CHECK(pem(SignatureAlgorithm::kEs256, text_at(keys, "eddsa")).find("wants P-256") !=
        std::string::npos);
  CHECK(pem(SignatureAlgorithm::kEs256, text_at(keys, "p384")).find("wants P-256") !=
        std::string::npos);
  CHECK(pem(SignatureAlgorithm::kHs256, text_at(keys, "eddsa")).find("secret") !=
        std::string::npos);
  CHECK(pem(SignatureAlgorithm::kEdDsa, "-----BEGIN PRIVATE KEY-----\n").find("private key") !=
        std::string::npos);
  CHECK(pem(SignatureAlgorithm::kEdDsa, "nothing").find("PEM") != std::string::npos);
  CHECK(VerificationKey::from_secret(std::string(31, 'x')).message().find("at least 32") !=
        std::string::npos);
  CHECK_FALSE(VerificationKey::from_secret(text_at(keys, "eddsa")).ok());
  CHECK(VerificationKey::from_secret(std::string(32, 'x')).ok());
}

TEST_CASE("base64url has one text for each value") {
  for (const std::string& bytes : {std::string(), std::string("f"), std::string("fo"),
                                   std::string("foo"), std::string("\xff\xfe\xfd\xfc")}) {
    const std::string text = base64url_encoded(bytes);
    CHECK(base64url_decoded(text) == bytes);
  }
  CHECK(base64url_encoded("\xff\xfe\xfd") == "__79");
  for (const char* bad : {"A", "AB=", "A=", "+/", "AB", "Zg==", "Zh", "a b"})
    CHECK_MESSAGE(!base64url_decoded(bad), bad);
}

TEST_CASE("the list of token keys is read, and a damaged line is named") {
  const auto vectors = jwt_vectors();
  const TempDir dir;
  const auto write = [&](const std::string& name, const std::string& text, int mode = 0600) {
    std::ofstream(dir.file(name)) << text;
    REQUIRE(chmod(dir.file(name).c_str(), static_cast<mode_t>(mode)) == 0);
  };
  write("ed.pem", text_at(vectors.at("keys"), "eddsa"), 0644);
  write("hs.key", *base64url_decoded(text_at(vectors.at("keys"), "hs256")) + "\n");
  write("open.key", std::string(40, 's'), 0644);
  write("short.key", std::string(31, 's') + "\n");
  const std::string good = "EdDSA eddsa ed.pem iss=https://login.example\n";
  write("jwt-keys", "# who signs\n\n" + good +
                        "HS256 hs256 hs.key iss=https://login.example role=admin rpm=5\r\n");
  const auto keys = load_jwt_keys(dir.file("jwt-keys"));
  REQUIRE_MESSAGE(keys.ok(), keys.message());
  REQUIRE(keys->size() == 2);
  CHECK((*keys)[0].role_max == Role::kDeveloper);
  CHECK((*keys)[1].role_max == Role::kAdmin);
  CHECK((*keys)[1].limits.requests_per_minute == 5);
  JwtPolicy policy{*keys, text_at(vectors, "audience"), 30};
  for (const auto& vector : vectors.at("tokens").as_array()) {
    const std::string name = text_at(vector, "name");
    if (name == "good EdDSA" || name == "good HS256")
      CHECK(verify_jwt(policy, text_at(vector, "token"), vectors.at("now").as_int64()).ok());
  }
  const std::pair<const char*, const char*> bad[] = {
      {"EdDSA x ed.pem", "is not"},
      {"RS256 x ed.pem iss=a", "RS256"},
      {"none x ed.pem iss=a", "none of"},
      {"EdDSA x ed.pem role=admin", "lacks iss"},
      {"EdDSA x ed.pem iss=a role=root", "role=root"},
      {"EdDSA x absent.pem iss=a", "absent.pem"},
      {"ES256 x ed.pem iss=a", "wants P-256"},
      {"EdDSA eddsa ed.pem iss=a", "there twice"},
      {"HS256 x open.key iss=a", "others may read"},
      {"HS256 x short.key iss=a", "at least 32"},
  };
  for (const auto& [line, says] : bad) {
    write("jwt-keys", good + line + "\n");
    const std::string message = load_jwt_keys(dir.file("jwt-keys")).message();
    CHECK_MESSAGE(message.find("jwt-keys:2: ") != std::string::npos, message);
    CHECK_MESSAGE(message.find(says) != std::string::npos, message);
  }
}
