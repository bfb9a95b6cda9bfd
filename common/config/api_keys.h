// The file of client keys that `updraft keys api` writes: one "sha256:<64 hex digits> <name>" per
// line. Only digests are stored; router and edge hand them to HttpServerConfig::api_keys_sha256.
#pragma once

#include <string>
#include <vector>

#include "common/base/result.h"

namespace updraft {

// The digests (64 lower-case hex digits each). Refused with file and line: unreadable file, a mode
// that lets others write, anything that is not such a line. Empty lines and lines that begin with
// '#' are skipped.
Result<std::vector<std::string>> load_api_key_digests(const std::string& path);

}  // namespace updraft
