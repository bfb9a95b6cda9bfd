#include "tests/support/shared_data.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace updraft::testing {

std::optional<std::string> shared_data(const std::string& relative) {
  const char* from_environment = std::getenv("UPDRAFT_SHARED_DATA");
  const std::string base =
      from_environment != nullptr ? from_environment : UPDRAFT_SOURCE_DIR "/../shared/data";
  std::string path = base + "/" + relative;
  if (std::filesystem::exists(path)) return path;
  std::printf("skipped: %s is not there\n", path.c_str());
  return std::nullopt;
}

std::string repo_file(const std::string& relative) {
  return std::string(UPDRAFT_SOURCE_DIR) + "/" + relative;
}

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "updraft-test-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed: " + pattern);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace updraft::testing
