// See the header.
#include "common/config/api_keys.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace updraft {

Result<std::vector<std::string>> load_api_key_digests(const std::string& path) {
  constexpr size_t kKeysMax = 100'000;
  constexpr std::string_view kPrefix = "sha256:";
  constexpr size_t kDigits = 64;
  struct stat info {};
  if (stat(path.c_str(), &info) != 0)
    return fail("API key file " + path + ": " + std::strerror(errno));
  if (!S_ISREG(info.st_mode)) return fail("API key file " + path + ": not a regular file");
  if ((info.st_mode & 0022) != 0)
    return fail("API key file " + path + ": others may write it; chmod go-w it");
  std::ifstream in(path);
  if (!in) return fail("API key file " + path + ": cannot be read");
  std::vector<std::string> digests;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    const std::string where = "API key file " + path + ":" + std::to_string(number) + ": ";
    const std::string digest =
        line.rfind(kPrefix, 0) == 0 ? line.substr(kPrefix.size(), kDigits) : std::string();
    const size_t end = kPrefix.size() + kDigits;
    const bool ends_well = line.size() == end || (line.size() > end && line[end] == ' ');
    if (digest.size() != kDigits ||
        digest.find_first_not_of("0123456789abcdef") != std::string::npos || !ends_well) {
      return fail(where + "is not \"sha256:<64 hex digits> <name>\"");
    }
    if (digests.size() >= kKeysMax)
      return fail(where + "more than " + std::to_string(kKeysMax) + " keys");
    digests.push_back(digest);
  }
  return digests;
}

}  // namespace updraft
