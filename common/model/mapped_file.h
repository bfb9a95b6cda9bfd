// A whole file mapped read-only into memory. Weights are views into such mappings; the model keeps
// them alive. The mapping is private: nobody can write through it. A file that someone truncates
// while it is mapped kills the reader with SIGBUS, as with every memory-mapped model; replace model
// files by renaming a new one over them.
#pragma once

#include <memory>
#include <string>

#include "common/base/bytes.h"
#include "common/base/result.h"

namespace updraft {

// Immutable once open; any thread.
class MappedFile {
 public:
  // Errors: not there, no permission, a directory or device, empty; with the path and the system's
  // reason.
  static Result<std::shared_ptr<const MappedFile>> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  ByteView bytes() const { return bytes_; }

  // Hints for reading front to back without keeping the file in memory twice: `range` is needed
  // soon; `range` has been copied and its whole pages need not stay mapped. What lies outside the
  // mapping is ignored; the bytes stay readable in any case.
  void will_read(ByteView range) const;
  void was_read(ByteView range) const;

 private:
  MappedFile(std::string path, ByteView bytes) : path_(std::move(path)), bytes_(bytes) {}

  std::string path_;
  ByteView bytes_;
};

// A small text file (JSON, templates) as a string. Refuses files over bytes_max.
Result<std::string> read_text_file(const std::string& path, uint64_t bytes_max);

}  // namespace updraft
