// See the header.
#include "common/auth/crypto.h"

#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>
#include <openssl/rand.h>

#include <span>
#include <utility>

#include "common/base/bytes.h"
#include "common/base/check.h"

namespace updraft {
namespace {

template <auto kFree>
struct Freed {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using PublicKey = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY_free>>;
using DigestContext = std::unique_ptr<EVP_MD_CTX, Freed<EVP_MD_CTX_free>>;
using Bio = std::unique_ptr<BIO, Freed<BIO_free_all>>;
using Bignum = std::unique_ptr<BIGNUM, Freed<BN_free>>;
using EcdsaSignature = std::unique_ptr<ECDSA_SIG, Freed<ECDSA_SIG_free>>;

constexpr std::string_view kBase64Url =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
constexpr size_t kEs256HalfBytes = 32;
constexpr size_t kEd25519SignatureBytes = 64;

const unsigned char* bytes_of(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

// JOSE's r || s as the DER that OpenSSL checks.
std::optional<std::string> es256_der(std::string_view signature) {
  if (signature.size() != 2 * kEs256HalfBytes) return std::nullopt;
  Bignum r(BN_bin2bn(bytes_of(signature), kEs256HalfBytes, nullptr));
  Bignum s(BN_bin2bn(bytes_of(signature) + kEs256HalfBytes, kEs256HalfBytes, nullptr));
  EcdsaSignature pair(ECDSA_SIG_new());
  UPDRAFT_CHECK(r && s && pair, "out of memory");
  UPDRAFT_CHECK(ECDSA_SIG_set0(pair.get(), r.get(), s.get()) == 1);
  (void)r.release();  // owned by the pair now
  (void)s.release();
  unsigned char* der = nullptr;
  const int size = i2d_ECDSA_SIG(pair.get(), &der);
  if (size <= 0) return std::nullopt;
  std::string out(reinterpret_cast<const char*>(der), static_cast<size_t>(size));
  OPENSSL_free(der);
  return out;
}

bool is_p256(const EVP_PKEY* key) {
  char group[64] = {};
  size_t size = 0;
  return EVP_PKEY_get_group_name(key, group, sizeof group, &size) == 1 &&
         std::string_view(group, size) == "prime256v1";
}

bool fits(const EVP_PKEY* key, SignatureAlgorithm algorithm) {
  const int kind = EVP_PKEY_get_base_id(key);
  if (algorithm == SignatureAlgorithm::kEdDsa) return kind == EVP_PKEY_ED25519;
  return algorithm == SignatureAlgorithm::kEs256 && kind == EVP_PKEY_EC && is_p256(key);
}

}  // namespace

struct VerificationKey::Secret {
  PublicKey public_key;  // kEdDsa, kEs256
  std::string bytes;     // kHs256

  Secret() = default;
  Secret(const Secret&) = delete;
  Secret& operator=(const Secret&) = delete;
  ~Secret() { OPENSSL_cleanse(bytes.data(), bytes.size()); }
};

Sha256Digest sha256(std::string_view text) {
  Sha256Digest digest{};
  unsigned int size = 0;
  const int done =
      EVP_Digest(text.data(), text.size(), digest.data(), &size, EVP_sha256(), nullptr);
  UPDRAFT_CHECK(done == 1 && size == digest.size(), "SHA-256 failed");
  return digest;
}

std::string hex_of(const Sha256Digest& digest) { return to_hex(std::as_bytes(std::span(digest))); }
std::string sha256_hex(std::string_view text) { return hex_of(sha256(text)); }

std::optional<Sha256Digest> digest_from_hex(std::string_view hex) {
  Sha256Digest digest{};
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

bool equal_in_constant_time(std::string_view a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

Result<std::string> random_bytes(size_t count) {
  std::string out(count, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(out.data()), static_cast<int>(count)) != 1)
    return fail("the system's random generator failed");
  return out;
}

std::optional<std::string> base64url_decoded(std::string_view text) {
  if (text.size() % 4 == 1) return std::nullopt;
  std::string out;
  out.reserve(text.size() * 3 / 4);
  uint32_t bits = 0;
  int bit_count = 0;
  for (const char c : text) {
    const size_t value = kBase64Url.find(c);
    if (value == std::string_view::npos) return std::nullopt;
    bits = (bits << 6) | static_cast<uint32_t>(value);
    bit_count += 6;
    if (bit_count < 8) continue;
    bit_count -= 8;
    out += static_cast<char>((bits >> bit_count) & 0xFF);
  }
  // Two texts of one value would be two tokens of one signature.
  if ((bits & ((1U << bit_count) - 1)) != 0) return std::nullopt;
  return out;
}

std::string base64url_encoded(std::string_view bytes) {
  std::string out;
  uint32_t bits = 0;
  int bit_count = 0;
  for (const char c : bytes) {
    bits = (bits << 8) | static_cast<uint8_t>(c);
    bit_count += 8;
    while (bit_count >= 6) {
      bit_count -= 6;
      out += kBase64Url[(bits >> bit_count) & 63];
    }
  }
  if (bit_count > 0) out += kBase64Url[(bits << (6 - bit_count)) & 63];
  return out;
}

const char* algorithm_name(SignatureAlgorithm algorithm) {
  switch (algorithm) {
    case SignatureAlgorithm::kEdDsa:
      return "EdDSA";
    case SignatureAlgorithm::kEs256:
      return "ES256";
    case SignatureAlgorithm::kHs256:
      return "HS256";
  }
  return "";
}

std::optional<SignatureAlgorithm> parse_algorithm(std::string_view name) {
  for (const auto algorithm :
       {SignatureAlgorithm::kEdDsa, SignatureAlgorithm::kEs256, SignatureAlgorithm::kHs256}) {
    if (name == algorithm_name(algorithm)) return algorithm;
  }
  return std::nullopt;
}

Result<VerificationKey> VerificationKey::from_pem(SignatureAlgorithm algorithm,
                                                  std::string_view pem) {
  if (algorithm == SignatureAlgorithm::kHs256) return fail("HS256 takes a secret, not a PEM key");
  if (pem.find("PRIVATE KEY") != std::string_view::npos)
    return fail("holds a private key; only the public one belongs here");
  const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  UPDRAFT_CHECK(bio, "out of memory");
  PublicKey key(PEM_read_bio_PUBKEY(bio.get(), nullptr, nullptr, nullptr));
  if (!key) return fail("is not a public key in PEM (-----BEGIN PUBLIC KEY-----)");
  if (!fits(key.get(), algorithm)) {
    return fail(std::string("is no key for ") + algorithm_name(algorithm) +
                (algorithm == SignatureAlgorithm::kEdDsa ? ", which wants Ed25519"
                                                         : ", which wants P-256"));
  }
  auto secret = std::make_shared<Secret>();
  secret->public_key = std::move(key);
  VerificationKey out;
  out.algorithm_ = algorithm;
  out.secret_ = std::move(secret);
  return out;
}

Result<VerificationKey> VerificationKey::from_secret(std::string_view bytes) {
  if (bytes.size() < kSecretBytesMin) {
    return fail("an HS256 secret has at least " + std::to_string(kSecretBytesMin) +
                " bytes, this one has " + std::to_string(bytes.size()));
  }
  // A public key that stands where a secret should would let everyone sign.
  if (bytes.find("-----BEGIN") != std::string_view::npos)
    return fail("is a PEM file; an HS256 secret is bytes that nobody else knows");
  auto secret = std::make_shared<Secret>();
  secret->bytes = bytes;
  VerificationKey out;
  out.algorithm_ = SignatureAlgorithm::kHs256;
  out.secret_ = std::move(secret);
  return out;
}

bool VerificationKey::verify(std::string_view message, std::string_view signature) const {
  if (algorithm_ == SignatureAlgorithm::kHs256) {
    Sha256Digest mac{};
    unsigned int size = 0;
    const auto* made =
        HMAC(EVP_sha256(), secret_->bytes.data(), static_cast<int>(secret_->bytes.size()),
             bytes_of(message), message.size(), mac.data(), &size);
    UPDRAFT_CHECK(made != nullptr && size == mac.size(), "HMAC failed");
    return equal_in_constant_time({reinterpret_cast<const char*>(mac.data()), mac.size()},
                                  signature);
  }
  const bool is_es256 = algorithm_ == SignatureAlgorithm::kEs256;
  std::string der;
  if (is_es256) {
    auto converted = es256_der(signature);
    if (!converted) return false;
    der = std::move(*converted);
    signature = der;
  } else if (signature.size() != kEd25519SignatureBytes) {
    return false;
  }
  const DigestContext context(EVP_MD_CTX_new());
  UPDRAFT_CHECK(context, "out of memory");
  if (EVP_DigestVerifyInit(context.get(), nullptr, is_es256 ? EVP_sha256() : nullptr, nullptr,
                           secret_->public_key.get()) != 1) {
    return false;
  }
  return EVP_DigestVerify(context.get(), bytes_of(signature), signature.size(), bytes_of(message),
                          message.size()) == 1;
}

}  // namespace updraft
