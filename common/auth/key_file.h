// The file of client keys that `updraft keys api` writes, one key per line:
//
//   sha256:<64 hex digits> <name> [role=guest|developer|admin] [rpm=N] [tpm=N] [concurrent=N]
//
// Only digests are stored. rpm, tpm: requests and tokens per minute; concurrent: requests answered
// at once; 0: no limit. Without a role a key is a developer's, without limits it has those of its
// role. Empty lines and lines that begin with '#' are skipped.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/auth/crypto.h"
#include "common/auth/principal.h"
#include "common/base/result.h"

namespace updraft {

struct ApiKey {
  Sha256Digest digest{};
  std::string name;
  Role role = Role::kDeveloper;
  KeyLimits limits;
};

// Refused with file and line: unreadable file, a mode that lets others write, anything that is not
// such a line, a digest that is there twice, more than 100,000 keys. The text of a line is never
// shown: it may be a key that was pasted in place of its digest.
Result<std::vector<ApiKey>> load_api_keys(const std::string& path);

// One line as load_api_keys() reads it back. Limits that are those of the role are left out.
std::string api_key_line(const ApiKey& key);
// Checks what stands in a line behind the digest. Error: an empty name, a control character or '='
// in it.
Result<void> check_key_name(std::string_view name);

// Words behind a name, in this and in the file of token keys (jwt_keys.h).
struct KeyOptions {
  Role role = Role::kNobody;                                                  // kNobody: not given
  int64_t requests_per_minute = -1, tokens_per_minute = -1, concurrent = -1;  // -1: not given
  KeyLimits limits(Role for_role) const;
};
// Takes "role=admin" and its like into `options`. Error: an unknown word, a value out of range.
Result<void> read_key_option(std::string_view word, KeyOptions& options);

// The whole of a small file that must not be writable by others. secret: it must not be readable
// by them either. Error: names the path.
Result<std::string> read_key_file(const std::string& path, size_t bytes_max, bool secret);

}  // namespace updraft
