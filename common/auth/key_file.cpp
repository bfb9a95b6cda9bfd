// See the header.
#include "common/auth/key_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <set>
#include <utility>

#include "common/base/bytes.h"

namespace updraft {
namespace {

constexpr size_t kKeysMax = 100'000;
constexpr size_t kFileBytesMax = 64 << 20;
constexpr size_t kNameBytesMax = 128;
constexpr int64_t kLimitMax = 1'000'000'000'000;
constexpr std::string_view kPrefix = "sha256:";
constexpr size_t kDigits = 64;

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> words;
  while (true) {
    const size_t begin = line.find_first_not_of(' ');
    if (begin == std::string_view::npos) return words;
    line.remove_prefix(begin);
    const size_t end = std::min(line.find(' '), line.size());
    words.push_back(line.substr(0, end));
    line.remove_prefix(end);
  }
}

Result<ApiKey> read_line(std::string_view line) {
  const auto shape = [] {
    return fail(
        "is not \"sha256:<64 hex digits> <name> [role=...] [rpm=N] [tpm=N] [concurrent=N]\"");
  };
  const size_t end = kPrefix.size() + kDigits;
  if (!line.starts_with(kPrefix) || line.size() < end || (line.size() > end && line[end] != ' '))
    return shape();
  ApiKey key;
  const auto digest = digest_from_hex(line.substr(kPrefix.size(), kDigits));
  if (!digest) return shape();
  key.digest = *digest;
  KeyOptions options;
  bool named = false;  // options follow the name
  for (const std::string_view word : words_of(line.substr(end))) {
    if (word.find('=') != std::string_view::npos) {
      if (auto read = read_key_option(word, options); !read) return read.error();
      named = true;
      continue;
    }
    if (named) return fail("has a word of the name behind its options");
    if (!key.name.empty()) key.name += ' ';
    key.name += word;
  }
  key.role = options.role == Role::kNobody ? Role::kDeveloper : options.role;
  key.limits = options.limits(key.role);
  return key;
}

}  // namespace

KeyLimits KeyOptions::limits(Role for_role) const {
  KeyLimits out = default_limits(for_role);
  if (requests_per_minute >= 0) out.requests_per_minute = requests_per_minute;
  if (tokens_per_minute >= 0) out.tokens_per_minute = tokens_per_minute;
  if (concurrent >= 0) out.concurrent = concurrent;
  return out;
}

Result<void> read_key_option(std::string_view word, KeyOptions& options) {
  const size_t equals = std::min(word.find('='), word.size());
  const std::string_view name = word.substr(0, equals);
  const std::string_view value = equals < word.size() ? word.substr(equals + 1) : "";
  if (name == "role") {
    const auto role = parse_role(value);
    if (!role) {
      return fail("role=" + printable(value, 40) + " is none of guest, developer, admin");
    }
    options.role = *role;
    return {};
  }
  int64_t* into = name == "rpm"          ? &options.requests_per_minute
                  : name == "tpm"        ? &options.tokens_per_minute
                  : name == "concurrent" ? &options.concurrent
                                         : nullptr;
  if (into == nullptr) {
    return fail("has the unknown option '" + printable(name, 40) +
                "' (known: role, rpm, tpm, concurrent)");
  }
  int64_t number = -1;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size() || number < 0 ||
      number > kLimitMax) {
    return fail(std::string(name) + "=" + printable(value, 40) + " is not a number in 0.." +
                std::to_string(kLimitMax));
  }
  *into = number;
  return {};
}

Result<void> check_key_name(std::string_view name) {
  const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<uint8_t>(c) >= 0x20 && c != '=' && c != 0x7F;
  });
  if (plain && !words_of(name).empty() && name.size() <= kNameBytesMax && is_utf8(name)) return {};
  return fail("the name '" + printable(name, 40) +
              "' is empty, longer than 128 bytes, or has a control character or '=' in it");
}

std::string api_key_line(const ApiKey& key) {
  std::string line = std::string(kPrefix) + hex_of(key.digest) + ' ' + key.name;
  if (key.role != Role::kDeveloper) line += std::string(" role=") + role_name(key.role);
  const KeyLimits usual = default_limits(key.role);
  const auto limit = [&](const char* name, int64_t value, int64_t usual_value) {
    if (value != usual_value) line += std::string(" ") + name + "=" + std::to_string(value);
  };
  limit("rpm", key.limits.requests_per_minute, usual.requests_per_minute);
  limit("tpm", key.limits.tokens_per_minute, usual.tokens_per_minute);
  limit("concurrent", key.limits.concurrent, usual.concurrent);
  return line;
}

Result<std::string> read_key_file(const std::string& path, size_t bytes_max, bool secret) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return fail(path + ": " + std::strerror(errno));
  struct Closed {
    int fd;
    ~Closed() { close(fd); }
  } const closed{fd};
  struct stat info {};
  if (fstat(fd, &info) != 0) return fail(path + ": " + std::strerror(errno));
  if (!S_ISREG(info.st_mode)) return fail(path + ": not a regular file");
  if ((info.st_mode & 0022) != 0) return fail(path + ": others may write it; chmod go-w it");
  if (secret && (info.st_mode & 0077) != 0)
    return fail(path + ": others may read this secret; chmod 600 it");
  std::string out;
  char buffer[16384];
  while (true) {
    const ssize_t got = read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(path + ": " + std::strerror(errno));
    if (got == 0) return out;
    out.append(buffer, static_cast<size_t>(got));
    if (out.size() > bytes_max)
      return fail(path + ": more than " + std::to_string(bytes_max) + " bytes");
  }
}

Result<std::vector<ApiKey>> load_api_keys(const std::string& path) {
  const Result<std::string> text = read_key_file(path, kFileBytesMax, false);
  if (!text) return text.error("API key file");
  std::vector<ApiKey> keys;
  std::set<Sha256Digest> seen;
  std::string_view rest = *text;
  for (int number = 1; !rest.empty(); ++number) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.front() == '#') continue;
    const std::string where = "API key file " + path + ":" + std::to_string(number);
    Result<ApiKey> key = read_line(line);
    if (!key) return key.error(where);
    if (!seen.insert(key->digest).second) return fail(where + ": this key is there twice");
    if (keys.size() >= kKeysMax)
      return fail(where + ": more than " + std::to_string(kKeysMax) + " keys");
    keys.push_back(std::move(*key));
  }
  return keys;
}

}  // namespace updraft
