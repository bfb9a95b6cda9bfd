// API keys over OpenSSL's SHA-256 and constant-time comparison.
#include "common/http/auth.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include "common/base/bytes.h"
#include "common/base/check.h"
#include "common/http/strict.h"

namespace updraft {
namespace {

using Digest = std::array<uint8_t, 32>;

Digest sha256(std::string_view text) {
  Digest digest{};
  unsigned int size = 0;
  const int done =
      EVP_Digest(text.data(), text.size(), digest.data(), &size, EVP_sha256(), nullptr);
  UPDRAFT_CHECK(done == 1 && size == digest.size(), "SHA-256 failed");
  return digest;
}

std::string hex_of(const Digest& digest) { return to_hex(std::as_bytes(std::span(digest))); }

std::optional<Digest> digest_from_hex(std::string_view hex) {
  Digest digest{};
  if (hex.size() != digest.size() * 2) return std::nullopt;
  for (size_t i = 0; i < hex.size(); ++i) {
    const char c = hex[i];
    int value = 0;
    if (c >= '0' && c <= '9') {
      value = c - '0';
    } else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) {
      value = (c | 0x20) - 'a' + 10;
    } else {
      return std::nullopt;
    }
    digest[i / 2] = static_cast<uint8_t>(digest[i / 2] * 16 + value);
  }
  return digest;
}

}  // namespace

std::string sha256_hex(std::string_view text) { return hex_of(sha256(text)); }

Result<KeyRing> KeyRing::parse(const std::vector<std::string>& digests) {
  KeyRing ring;
  for (size_t i = 0; i < digests.size(); ++i) {
    const auto digest = digest_from_hex(digests[i]);
    // The entry itself is not shown: it may be a key that was pasted in place of its digest.
    if (!digest) {
      return fail("api_keys_sha256[" + std::to_string(i) +
                  "]: a SHA-256 digest has 64 hex digits, this entry has " +
                  std::to_string(digests[i].size()) + " characters or others than hex digits");
    }
    ring.digests_.push_back(*digest);
  }
  return ring;
}

std::optional<std::string> KeyRing::tenant_of(std::string_view authorization) const {
  if (digests_.empty()) return std::string();
  constexpr std::string_view kScheme = "bearer ";
  const bool is_bearer = ascii_lower(authorization.substr(0, kScheme.size())) == kScheme;
  std::string_view key = is_bearer ? authorization.substr(kScheme.size()) : std::string_view();
  while (key.starts_with(' ')) key.remove_prefix(1);
  const Digest given = sha256(key);
  const Digest* found = nullptr;
  for (const Digest& known : digests_) {
    if (CRYPTO_memcmp(known.data(), given.data(), known.size()) == 0) found = &known;
  }
  if (!is_bearer || key.empty() || found == nullptr) return std::nullopt;
  return hex_of(*found).substr(0, 16);
}

}  // namespace updraft
