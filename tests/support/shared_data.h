// Reference data outside the tree: ../shared/data beside the checkout (or $UPDRAFT_SHARED_DATA). A
// test that needs a file that is not there reports itself skipped; it never passes silently.
#pragma once

#include <optional>
#include <string>

namespace updraft::testing {

// Path of a file in the shared data, or nothing (then a line "skipped: <relative> is not there" has
// been printed and counted; the test returns).
std::optional<std::string> shared_data(const std::string& relative);

// Path of a file in the source tree, e.g. repo_file("configs/models/x.gguf").
std::string repo_file(const std::string& relative);

// A fresh directory, removed when the object goes.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace updraft::testing
