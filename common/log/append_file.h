// A file of lines to which one process appends, each line whole or not at all: what a full disk
// takes only a part of is taken back, and what cannot be taken back ends as a line of its own, so
// that the next one starts where lines start.
//
// Threads: one at a time.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "common/base/result.h"

namespace updraft {

class AppendFile {
 public:
  // Appends to `path`, made with `mode` where it is missing. Error: names the path and why.
  static Result<AppendFile> open(const std::string& path, mode_t mode);
  AppendFile(AppendFile&& other) noexcept;
  AppendFile& operator=(AppendFile&&) = delete;
  ~AppendFile();

  // `line` ends in '\n'. With the kernel when this returns; error: why not, the line is not there.
  Result<void> append(std::string_view line);

 private:
  AppendFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  bool end_torn_line();
  void take_back(ssize_t bytes);

  const std::string path_;
  int fd_;
  bool torn_ = false;  // the file's last line has no end
};

}  // namespace updraft
