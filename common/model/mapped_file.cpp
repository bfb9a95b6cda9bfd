// Memory mapping by POSIX calls; see the header for the contract.
#include "common/model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace updraft {
namespace {

// A file descriptor that is closed at the end of the scope; the mapping outlives it.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

Error system_error(const std::string& path, const char* what) {
  return fail(path + ": " + what + ": " + std::strerror(errno));
}

}  // namespace

Result<std::shared_ptr<const MappedFile>> MappedFile::open(const std::string& path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return system_error(path, "cannot open");
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return system_error(path, "cannot read its size");
  if (S_ISDIR(status.st_mode)) return fail(path + ": is a folder, expected a file");
  if (!S_ISREG(status.st_mode)) return fail(path + ": is not a regular file");
  if (status.st_size <= 0) return fail(path + ": is empty");
  const auto size = static_cast<size_t>(status.st_size);
  void* at = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (at == MAP_FAILED) return system_error(path, "cannot map into memory");
  // Headers and weights are read once, front to back; readahead does the rest. Only a hint, so its
  // failure is no error.
  (void)::madvise(at, size, MADV_SEQUENTIAL);
  const ByteView bytes(static_cast<const std::byte*>(at), size);
  return std::shared_ptr<const MappedFile>(new MappedFile(path, bytes));
}

namespace {

// The pages that `range` touches (outwards) or fills (inwards), within `whole`.
struct PageRange {
  uintptr_t first = 0;
  uintptr_t last = 0;
};
PageRange pages_of(ByteView whole, ByteView range, bool outwards) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(whole.data());
  const auto first = reinterpret_cast<uintptr_t>(range.data());
  const uintptr_t from = std::max(begin, first);
  const uintptr_t to = std::min(begin + whole.size(), first + range.size());
  if (from >= to) return {};
  const uintptr_t down = outwards ? from : from + page - 1;
  const uintptr_t up = outwards ? to + page - 1 : to;
  return {down / page * page, up / page * page};
}

}  // namespace

void MappedFile::will_read(ByteView range) const {
  const PageRange pages = pages_of(bytes_, range, true);
  if (pages.first >= pages.last) return;
  (void)::madvise(reinterpret_cast<void*>(pages.first), pages.last - pages.first, MADV_WILLNEED);
}

void MappedFile::was_read(ByteView range) const {
  const PageRange pages = pages_of(bytes_, range, false);
  if (pages.first >= pages.last) return;
  // The mapping is read-only: the pages come back from the file when touched again.
  (void)::madvise(reinterpret_cast<void*>(pages.first), pages.last - pages.first, MADV_DONTNEED);
}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size()); }

Result<std::string> read_text_file(const std::string& path, uint64_t bytes_max) {
  auto file = MappedFile::open(path);
  if (!file) return file.error();
  const ByteView bytes = (*file)->bytes();
  if (bytes.size() > bytes_max) {
    return fail(path + ": is " + std::to_string(bytes.size()) + " bytes, at most " +
                std::to_string(bytes_max) + " are read");
  }
  return std::string(as_text(bytes));
}

}  // namespace updraft
