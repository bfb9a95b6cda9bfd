// The golden tokens and their keys (make_vectors.py says where they come from).
#pragma once

#include <doctest/doctest.h>

#include <boost/json/value.hpp>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>

#include "common/auth/jwt.h"
#include "common/json/json_reader.h"
#include "tests/support/shared_data.h"

namespace updraft::testing {

inline std::string text_at(const boost::json::value& object, const char* name) {
  const auto& text = object.at(name).as_string();
  return {text.data(), text.size()};
}

inline boost::json::value jwt_vectors() {
  std::ifstream in(repo_file("tests/common/auth/golden/jwt_vectors.json"));
  std::stringstream text;
  text << in.rdbuf();
  auto parsed = parse_strict_json(text.str());
  REQUIRE(std::holds_alternative<boost::json::value>(parsed));
  return std::get<boost::json::value>(std::move(parsed));
}

// One key of each algorithm, known as "eddsa", "es256" and "hs256"; only that of ES256 makes
// admins.
inline JwtPolicy vector_policy(const boost::json::value& vectors) {
  const boost::json::value& keys = vectors.at("keys");
  const std::string issuer = text_at(vectors, "issuer");
  auto ed = VerificationKey::from_pem(SignatureAlgorithm::kEdDsa, text_at(keys, "eddsa"));
  auto es = VerificationKey::from_pem(SignatureAlgorithm::kEs256, text_at(keys, "es256"));
  auto hs = VerificationKey::from_secret(*base64url_decoded(text_at(keys, "hs256")));
  REQUIRE_MESSAGE(ed.ok(), ed.message());
  REQUIRE_MESSAGE(es.ok(), es.message());
  REQUIRE_MESSAGE(hs.ok(), hs.message());
  JwtPolicy policy;
  policy.audience = text_at(vectors, "audience");
  policy.keys.push_back({"eddsa", std::move(*ed), issuer, Role::kDeveloper, {}});
  policy.keys.push_back({"es256", std::move(*es), issuer, Role::kAdmin, {}});
  policy.keys.push_back({"hs256", std::move(*hs), issuer, Role::kDeveloper, {}});
  return policy;
}

}  // namespace updraft::testing
