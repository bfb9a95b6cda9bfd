#include "common/ipc/listen_fds.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "common/ipc/unix_socket.h"

namespace updraft::ipc {
namespace {

constexpr int kFirstInherited = 3;

// The variable's number, taken out of the environment; nothing when it is absent or no number.
std::optional<long> take_number(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  long value = 0;
  const char* end = text + std::strlen(text);
  const auto [at, error] = std::from_chars(text, end, value);
  const bool whole = error == std::errc() && at == end;
  ::unsetenv(name);
  return whole ? std::optional<long>(value) : std::nullopt;
}

int socket_option(int fd, int name) {
  int value = -1;
  socklen_t bytes = sizeof value;
  return getsockopt(fd, SOL_SOCKET, name, &value, &bytes) == 0 ? value : -1;
}

Result<LocalListener> adopt(const std::string& path) {
  LocalListener out{UniqueFd(kFirstInherited), true};
  const int fd = out.fd.get();
  if (socket_option(fd, SO_DOMAIN) != AF_UNIX || socket_option(fd, SO_TYPE) != SOCK_SEQPACKET ||
      socket_option(fd, SO_ACCEPTCONN) != 1) {
    return fail(
        "LISTEN_FDS: descriptor 3 is no listening Unix socket of type SOCK_SEQPACKET "
        "(ListenSequentialPacket= in the socket unit)");
  }
  sockaddr_un address{};
  socklen_t bytes = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &bytes) != 0)
    return fail(std::string("LISTEN_FDS: getsockname: ") + std::strerror(errno));
  const size_t path_bytes = bytes - offsetof(sockaddr_un, sun_path);
  const std::string bound(address.sun_path, strnlen(address.sun_path, path_bytes));
  if (bound != path) {
    return fail("LISTEN_FDS: the inherited socket is at \"" + bound +
                "\", the configuration says \"" + path + "\"");
  }
  if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 ||
      fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) != 0)
    return fail(std::string("LISTEN_FDS: fcntl: ") + std::strerror(errno));
  return out;
}

}  // namespace

Result<LocalListener> listen_or_inherit(const std::string& path) {
  const std::optional<long> pid = take_number("LISTEN_PID");
  const std::optional<long> count = take_number("LISTEN_FDS");
  ::unsetenv("LISTEN_FDNAMES");
  if (pid == static_cast<long>(getpid()) && count && *count > 0) {
    if (*count != 1) {
      return fail("LISTEN_FDS = " + std::to_string(*count) +
                  ": the edge daemon takes one socket, the local handoff's");
    }
    return adopt(path);
  }
  Result<UniqueFd> fd = listen_unix(path);
  if (!fd) return fd.error();
  return LocalListener{std::move(fd).value(), false};
}

}  // namespace updraft::ipc
