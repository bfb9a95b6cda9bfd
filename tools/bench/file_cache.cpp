// Linux calls around a file's pages.
#include "tools/bench/file_cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <vector>

#include "common/base/clock.h"

namespace updraft {
namespace {

struct Descriptor {
  explicit Descriptor(const std::string& path) : fd(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int fd;
};

Error failed(const std::string& path) { return fail(path + ": " + std::strerror(errno)); }

}  // namespace

Result<double> read_file_seconds(const std::string& path) {
  const Descriptor file(path);
  if (file.fd < 0) return failed(path);
  std::vector<char> buffer(4U << 20);
  const int64_t start_ns = monotonic_ns();
  ssize_t got = 0;
  while ((got = read(file.fd, buffer.data(), buffer.size())) > 0) {
  }
  if (got < 0) return failed(path);
  return static_cast<double>(monotonic_ns() - start_ns) / kNsPerSecond;
}

Result<void> drop_file_cache(const std::string& path) {
  const Descriptor file(path);
  if (file.fd < 0) return failed(path);
  fdatasync(file.fd);  // only clean pages can be dropped
  errno = posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED);
  if (errno != 0) return failed(path);
  return {};
}

uint64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stoull(line.substr(6)) * 1024;
  }
  return 0;
}

}  // namespace updraft
