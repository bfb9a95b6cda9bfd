// The few operations of cryptography that authentication needs, behind one header; OpenSSL's names
// stay in crypto.cpp. Values in, a verdict out; nothing here keeps a secret longer than it must.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace updraft {

using Sha256Digest = std::array<uint8_t, 32>;

Sha256Digest sha256(std::string_view text);
// 64 lower-case hex digits.
std::string sha256_hex(std::string_view text);
// 64 hex digits of either case, or nothing.
std::optional<Sha256Digest> digest_from_hex(std::string_view hex);
std::string hex_of(const Sha256Digest& digest);

// The time taken depends on the sizes alone. Different sizes are different.
bool equal_in_constant_time(std::string_view a, std::string_view b);

// `count` bytes nobody can guess. Error: the system's generator failed.
Result<std::string> random_bytes(size_t count);

// RFC 4648 section 5 without padding, strictly: no other character, no bits left over. Nothing
// when it is not that.
std::optional<std::string> base64url_decoded(std::string_view text);
std::string base64url_encoded(std::string_view bytes);

// How a signature is made (RFC 7518, RFC 8037). There is no "none".
enum class SignatureAlgorithm : uint8_t { kEdDsa, kEs256, kHs256 };
const char* algorithm_name(SignatureAlgorithm algorithm);  // "EdDSA", "ES256", "HS256"
std::optional<SignatureAlgorithm> parse_algorithm(std::string_view name);

// A key that checks signatures by exactly one algorithm.
class VerificationKey {
 public:
  static constexpr size_t kSecretBytesMin = 32;  // of HS256 (RFC 7518 3.2: as long as the digest)

  // kEdDsa and kEs256: a public key in PEM, Ed25519 or P-256. Error: unreadable, a private key, or
  // of another kind than the algorithm wants.
  static Result<VerificationKey> from_pem(SignatureAlgorithm algorithm, std::string_view pem);
  // kHs256: the secret's bytes. Error: fewer than 32.
  static Result<VerificationKey> from_secret(std::string_view secret);

  SignatureAlgorithm algorithm() const { return algorithm_; }
  // signature: as JOSE writes it (EdDSA 64 bytes, ES256 r and s of 32 bytes each, HS256 32 bytes).
  bool verify(std::string_view message, std::string_view signature) const;

 private:
  struct Secret;
  VerificationKey() = default;

  SignatureAlgorithm algorithm_ = SignatureAlgorithm::kEdDsa;
  std::shared_ptr<const Secret> secret_;  // shared by copies, wiped with the last one
};

}  // namespace updraft
