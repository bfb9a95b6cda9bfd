// Bytes from outside: unaligned little-endian loads, checked arithmetic, UTF-8 and hex. Everything
// that parses a file, a message or a segment uses these instead of casts of its own.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "common/base/check.h"

namespace updraft {

static_assert(std::endian::native == std::endian::little, "Updraft runs on little-endian machines");

using ByteView = std::span<const std::byte>;

// Reads a T at `at`, whatever its alignment. The caller has checked that sizeof(T) bytes are there.
template <typename T>
requires std::is_trivially_copyable_v<T> T load_le(const void* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// a * b and a + b for sizes from outside; nothing when the true result does not fit 64 bits.
inline std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
  uint64_t out = 0;
  if (__builtin_mul_overflow(a, b, &out)) return std::nullopt;
  return out;
}
inline std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t out = 0;
  if (__builtin_add_overflow(a, b, &out)) return std::nullopt;
  return out;
}

inline std::string_view as_text(ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline ByteView as_bytes_view(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Index of the first byte that is not part of well-formed UTF-8 (RFC 3629: no overlong forms, no
// surrogates, at most U+10FFFF), or text.size() when all of it is.
size_t utf8_valid_prefix_bytes(std::string_view text);
inline bool is_utf8(std::string_view text) { return utf8_valid_prefix_bytes(text) == text.size(); }

// Length of the longest prefix that does not end inside a multi-byte character which more bytes
// could still complete. A streaming decoder emits that much and holds the rest back.
size_t utf8_complete_prefix_bytes(std::string_view text);

// Replaces each malformed sequence by U+FFFD.
std::string utf8_sanitized(std::string_view text);

// Appends the UTF-8 form of a code point (at most U+10FFFF, no surrogate).
void append_utf8(std::string& out, char32_t code_point);

// Lower-case hex of bytes.
std::string to_hex(ByteView bytes);

// Text made safe for a log line or an error message: control characters and invalid UTF-8 escaped
// as \xNN, cut after `bytes_max` with "...".
std::string printable(std::string_view text, size_t bytes_max = 80);

}  // namespace updraft
