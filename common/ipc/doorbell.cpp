// Doorbells over eventfd.
#include "common/ipc/doorbell.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace updraft::ipc {

Result<Doorbell> Doorbell::create() {
  UniqueFd fd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!fd) return fail(std::string("eventfd: ") + std::strerror(errno));
  return Doorbell(std::move(fd));
}

Result<Doorbell> Doorbell::adopt(UniqueFd fd) {
  char target[64] = {};
  const std::string link = "/proc/self/fd/" + std::to_string(fd.get());
  if (readlink(link.c_str(), target, sizeof target - 1) < 0 ||
      std::strcmp(target, "anon_inode:[eventfd]") != 0) {
    return fail("the doorbell's descriptor is no eventfd but " + std::string(target));
  }
  // The peer shares the file description and its flags: a blocking one would let it stall this
  // process.
  if (fcntl(fd.get(), F_SETFL, O_NONBLOCK) != 0)
    return fail(std::string("doorbell: ") + std::strerror(errno));
  return Doorbell(std::move(fd));
}

void Doorbell::ring() const {
  const uint64_t one = 1;
  // EAGAIN means that the counter is full: it is rung already.
  [[maybe_unused]] const ssize_t written = ::write(fd_.get(), &one, sizeof one);
}

void Doorbell::clear() const {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(fd_.get(), &count, sizeof count);
}

bool Doorbell::wait(int timeout_ms) const {
  pollfd entry{fd_.get(), POLLIN, 0};
  if (::poll(&entry, 1, timeout_ms) <= 0) return false;
  clear();
  return true;
}

}  // namespace updraft::ipc
