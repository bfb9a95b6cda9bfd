// See the header.
#include "common/log/append_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace updraft {
namespace {

ssize_t write_once(int fd, std::string_view bytes) {
  ssize_t written = 0;
  do {
    written = ::write(fd, bytes.data(), bytes.size());
  } while (written < 0 && errno == EINTR);
  return written;
}

// A process that was killed may have left a line without its end.
bool ends_torn(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return false;
  char last = '\n';
  struct stat status {};
  const bool torn = fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0 &&
                    pread(fd, &last, 1, status.st_size - 1) == 1 && last != '\n';
  close(fd);
  return torn;
}

}  // namespace

Result<AppendFile> AppendFile::open(const std::string& path, mode_t mode) {
  const bool torn = ends_torn(path);
  const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, mode);
  if (fd < 0) return fail(path + ": " + std::strerror(errno));
  AppendFile file(path, fd);
  file.torn_ = torn;
  return file;
}

AppendFile::AppendFile(AppendFile&& other) noexcept
    : path_(other.path_), fd_(std::exchange(other.fd_, -1)), torn_(other.torn_) {}

AppendFile::~AppendFile() {
  if (fd_ >= 0) close(fd_);
}

bool AppendFile::end_torn_line() {
  if (torn_) torn_ = write_once(fd_, "\n") != 1;
  return !torn_;
}

// Only what is still the end of the file: somebody else may have appended or cut it meanwhile.
void AppendFile::take_back(ssize_t bytes) {
  const off_t end = lseek(fd_, 0, SEEK_CUR);
  struct stat status {};
  const bool taken = end >= bytes && fstat(fd_, &status) == 0 && S_ISREG(status.st_mode) &&
                     status.st_size == end && ftruncate(fd_, end - bytes) == 0;
  torn_ = !taken;
}

Result<void> AppendFile::append(std::string_view line) {
  ssize_t written = -1;
  if (end_torn_line()) written = write_once(fd_, line);
  if (written == static_cast<ssize_t>(line.size())) return {};
  const std::string why = written < 0 ? std::strerror(errno) : "no room for all of the line";
  if (written > 0) take_back(written);
  return fail(path_ + ": " + why);
}

}  // namespace updraft
