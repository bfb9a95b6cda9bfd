// See the header.
#include "common/auth/jwt.h"

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cmath>
#include <filesystem>
#include <optional>
#include <utility>

#include "common/auth/key_file.h"
#include "common/base/bytes.h"
#include "common/json/json_reader.h"

namespace updraft {
namespace {

namespace json = boost::json;
using std::string;
using std::string_view;

// Fields of a header that would let a token bring or point to its own key.
constexpr std::array<const char*, 4> kForeignKeys = {"jku", "jwk", "x5u", "x5c"};
constexpr size_t kNameBytesMax = 256;

struct Parts {
  string_view signed_part;  // header.payload
  string header, payload, signature;
};

Result<Parts> split(string_view token) {
  if (token.size() > kJwtBytesMax) {
    return fail("the token has " + std::to_string(token.size()) + " bytes; at most " +
                std::to_string(kJwtBytesMax) + " are accepted");
  }
  const size_t first = token.find('.');
  const size_t second = first == string_view::npos ? first : token.find('.', first + 1);
  if (second == string_view::npos || token.find('.', second + 1) != string_view::npos)
    return fail("the token is not of the form header.payload.signature");
  auto header = base64url_decoded(token.substr(0, first));
  auto payload = base64url_decoded(token.substr(first + 1, second - first - 1));
  auto signature = base64url_decoded(token.substr(second + 1));
  if (!header || !payload || !signature) return fail("a part of the token is not base64url");
  return Parts{token.substr(0, second), std::move(*header), std::move(*payload),
               std::move(*signature)};
}

Result<json::object> read_object(string_view text, const char* what) {
  auto parsed = parse_strict_json(text);
  if (std::holds_alternative<JsonFault>(parsed))
    return fail(string("the token's ") + what + " is not JSON");
  auto& value = std::get<json::value>(parsed);
  if (!value.is_object()) return fail(string("the token's ") + what + " is not a JSON object");
  return std::move(value.get_object());
}

std::optional<string> text_of(const json::object& object, const char* name) {
  const json::value* value = object.if_contains(name);
  if (value == nullptr || !value->is_string()) return std::nullopt;
  return string(value->get_string().data(), value->get_string().size());
}

string shown(const std::optional<string>& text) {
  return text ? "'" + printable(*text, 60) + "'" : "none";
}

Result<const JwtKey*> find_key(const JwtPolicy& policy, const json::object& header) {
  if (header.if_contains("crit") != nullptr)
    return fail("the token's 'crit' names extensions that are not understood here");
  for (const char* name : kForeignKeys) {
    if (header.if_contains(name) != nullptr)
      return fail(string("the token brings its own key ('") + name + "')");
  }
  const auto algorithm = text_of(header, "alg");
  const auto id = text_of(header, "kid");
  const JwtKey* key = nullptr;
  if (!id && header.if_contains("kid") == nullptr && policy.keys.size() == 1) {
    key = &policy.keys[0];  // no doubt whose it is
  } else if (id) {
    const auto at = std::find_if(policy.keys.begin(), policy.keys.end(),
                                 [&](const JwtKey& known) { return known.id == *id; });
    if (at != policy.keys.end()) key = &*at;
  }
  if (key == nullptr) return fail("no key is known by the token's 'kid', " + shown(id));
  if (algorithm != algorithm_name(key->key.algorithm())) {
    return fail("the token's 'alg' is " + shown(algorithm) + ", its key is for " +
                algorithm_name(key->key.algorithm()));
  }
  if (const auto type = text_of(header, "typ")) {
    string lower = *type;
    for (char& c : lower) {
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c | 0x20);
    }
    if (lower != "jwt" && lower != "at+jwt" && lower != "application/jwt" &&
        lower != "application/at+jwt")
      return fail("the token's 'typ' is " + shown(type) + ", not JWT");
  }
  return key;
}

// Seconds since 1970; a fraction is allowed (RFC 7519 section 2), infinities are not JSON.
std::optional<double> time_of(const json::object& claims, const char* name, bool* malformed) {
  const json::value* value = claims.if_contains(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || value->to_number<double>() < 0) {
    *malformed = true;
    return std::nullopt;
  }
  return value->to_number<double>();
}

Result<void> check_times(const json::object& claims, int64_t now_unix_s, int64_t leeway_s) {
  bool malformed = false;
  const auto expires = time_of(claims, "exp", &malformed);
  const auto not_before = time_of(claims, "nbf", &malformed);
  if (malformed) return fail("the token's 'exp' or 'nbf' is not a time in seconds");
  if (!expires) return fail("the token has no 'exp'");
  const auto now = static_cast<double>(now_unix_s);
  const auto leeway = static_cast<double>(leeway_s);
  if (now >= *expires + leeway) return fail("the token has expired");
  if (not_before && now + leeway < *not_before) return fail("the token is not valid yet");
  return {};
}

bool has_audience(const json::object& claims, const string& audience) {
  const json::value* value = claims.if_contains("aud");
  if (value == nullptr || audience.empty()) return false;
  const json::string_view wanted(audience.data(), audience.size());
  if (value->is_string()) return value->get_string() == wanted;
  if (!value->is_array()) return false;
  return std::any_of(value->get_array().begin(), value->get_array().end(), [&](const auto& one) {
    return one.is_string() && one.get_string() == wanted;
  });
}

Result<Role> role_of(const json::object& claims, const JwtKey& key) {
  const json::value* value = claims.if_contains("role");
  if (value == nullptr) return Role::kGuest;
  const auto name = text_of(claims, "role");
  const auto role = name ? parse_role(*name) : std::nullopt;
  if (!role) return fail("the token's 'role' is none of guest, developer, admin");
  if (*role > key.role_max) {
    return fail(string("the token claims to be ") + role_name(*role) + ", its key gives " +
                role_name(key.role_max) + " at most");
  }
  return *role;
}

}  // namespace

bool looks_like_jwt(string_view token) { return std::count(token.begin(), token.end(), '.') == 2; }

Result<Principal> verify_jwt(const JwtPolicy& policy, string_view token, int64_t now_unix_s) {
  auto parts = split(token);
  if (!parts) return parts.error();
  auto header = read_object(parts->header, "header");
  if (!header) return header.error();
  const auto found = find_key(policy, *header);
  if (!found) return found.error();
  const JwtKey& key = **found;
  if (!key.key.verify(parts->signed_part, parts->signature))
    return fail("the token's signature is wrong");
  // From here on the words are the issuer's.
  auto claims = read_object(parts->payload, "payload");
  if (!claims) return claims.error();
  if (auto times = check_times(*claims, now_unix_s, policy.leeway_s); !times) return times.error();
  const auto issuer = text_of(*claims, "iss");
  if (issuer != key.issuer)
    return fail("the token's 'iss' is " + shown(issuer) + ", which its key does not sign for");
  if (!has_audience(*claims, policy.audience))
    return fail("the token's 'aud' does not name '" + printable(policy.audience, 60) + "'");
  const auto role = role_of(*claims, key);
  if (!role) return role.error();
  Principal principal;
  const string subject = text_of(*claims, "sub").value_or("");
  if (subject.size() > kNameBytesMax) return fail("the token's 'sub' is longer than 256 bytes");
  // The issuer's length keeps two pairs from being one text.
  const string who = std::to_string(issuer->size()) + ":" + *issuer + subject;
  principal.tenant = sha256_hex("jwt " + who).substr(0, 16);
  principal.name = subject.empty() ? *issuer : subject;
  principal.role = *role;
  // A key's own limits are for all of its subjects; a guest has no more than guests have.
  principal.limits = key.limits;
  if (*role == Role::kGuest && key.limits == KeyLimits{})
    principal.limits = default_limits(Role::kGuest);
  return principal;
}

namespace {

Result<JwtKey> read_jwt_line(string_view line, const std::filesystem::path& folder) {
  constexpr size_t kKeyFileBytesMax = 64 * 1024;
  std::vector<string> words;
  for (size_t begin = line.find_first_not_of(' '); begin != string_view::npos;) {
    const size_t end = std::min(line.find(' ', begin), line.size());
    words.emplace_back(line.substr(begin, end - begin));
    begin = line.find_first_not_of(' ', end);
  }
  if (words.size() < 4) return fail("is not \"<algorithm> <kid> <file> iss=<issuer> ...\"");
  const auto algorithm = parse_algorithm(words[0]);
  if (!algorithm) {
    return fail("the algorithm '" + printable(words[0], 20) + "' is none of EdDSA, ES256, HS256");
  }
  string issuer;
  KeyOptions options;
  for (size_t i = 3; i < words.size(); ++i) {
    if (words[i].starts_with("iss=")) {
      issuer = words[i].substr(4);
    } else if (auto read = read_key_option(words[i], options); !read) {
      return read.error();
    }
  }
  if (issuer.empty()) return fail("lacks iss=<issuer>");
  const bool is_secret = *algorithm == SignatureAlgorithm::kHs256;
  const std::filesystem::path given(words[2]);
  const string file = (given.is_relative() ? folder / given : given).lexically_normal().string();
  auto text = read_key_file(file, kKeyFileBytesMax, is_secret);
  if (!text) return text.error();
  if (is_secret && text->ends_with('\n')) text->pop_back();
  auto key = is_secret ? VerificationKey::from_secret(*text)
                       : VerificationKey::from_pem(*algorithm, *text);
  if (!key) return fail(file + " " + key.message());
  const Role role = options.role == Role::kNobody ? Role::kDeveloper : options.role;
  return JwtKey{words[1], std::move(*key), std::move(issuer), role, options.limits(role)};
}

}  // namespace

Result<std::vector<JwtKey>> load_jwt_keys(const string& path) {
  constexpr size_t kFileBytesMax = 1 << 20;
  const auto text = read_key_file(path, kFileBytesMax, false);
  if (!text) return text.error("file of token keys");
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::vector<JwtKey> keys;
  string_view rest = *text;
  for (int number = 1; !rest.empty(); ++number) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.front() == '#') continue;
    const string where = "file of token keys " + path + ":" + std::to_string(number);
    auto key = read_jwt_line(line, folder);
    if (!key) return key.error(where);
    for (const JwtKey& other : keys) {
      if (other.id == key->id) return fail(where + ": the kid '" + key->id + "' is there twice");
    }
    keys.push_back(std::move(*key));
  }
  return keys;
}

}  // namespace updraft
