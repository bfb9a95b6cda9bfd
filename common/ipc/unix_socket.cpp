// The handshake's socket: SOCK_SEQPACKET, SCM_RIGHTS, SO_PEERCRED, pidfd.
#include "common/ipc/unix_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace updraft::ipc {
namespace {

std::string system_error(const std::string& what) { return what + ": " + std::strerror(errno); }

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail("socket path \"" + path + "\" must have 1 to " +
                std::to_string(sizeof address.sun_path - 1) + " bytes");
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

Result<UniqueFd> new_socket(int flags) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0));
  if (!fd) return fail(system_error("socket"));
  return fd;
}

}  // namespace

Result<UniqueFd> listen_unix(const std::string& path) {
  const Result<sockaddr_un> address = address_of(path);
  if (!address) return address.error();
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code error;
  if (!folder.empty() && !std::filesystem::exists(folder, error)) {
    std::filesystem::create_directories(folder, error);
    if (!error) std::filesystem::permissions(folder, std::filesystem::perms::owner_all, error);
    if (error) return fail("socket folder " + folder.string() + ": " + error.message());
  }
  if (connect_unix(path).ok())
    return fail("socket " + path + ": another daemon is already listening there");
  struct stat info {};
  if (lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode))
      return fail("socket " + path + ": something that is no socket is in the way");
    ::unlink(path.c_str());
  }
  Result<UniqueFd> fd = new_socket(SOCK_NONBLOCK);
  if (!fd) return fd;
  // The mask makes the socket 0600 from its first moment on.
  const mode_t before = ::umask(0177);
  const int bound =
      ::bind(fd->get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(sockaddr_un));
  ::umask(before);
  if (bound != 0) return fail(system_error("socket " + path));
  if (::listen(fd->get(), 128) != 0) return fail(system_error("socket " + path));
  return fd;
}

Result<UniqueFd> connect_unix(const std::string& path) {
  const Result<sockaddr_un> address = address_of(path);
  if (!address) return address.error();
  Result<UniqueFd> fd = new_socket(0);
  if (!fd) return fd;
  if (::connect(fd->get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(sockaddr_un)) !=
      0) {
    return fail(system_error("socket " + path));
  }
  return fd;
}

Result<UniqueFd> accept_unix(const UniqueFd& listener) {
  UniqueFd fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR && errno != ECONNABORTED) {
    return fail(system_error("accept"));
  }
  return fd;
}

Result<PeerCredentials> peer_credentials(const UniqueFd& socket) {
  ucred credentials{};
  socklen_t bytes = sizeof credentials;
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0)
    return fail(system_error("SO_PEERCRED"));
  return PeerCredentials{credentials.pid, credentials.uid};
}

Result<UniqueFd> peer_pidfd(pid_t pid) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd) return fail(system_error("pidfd of process " + std::to_string(pid)));
  return fd;
}

Result<void> send_message(const UniqueFd& socket, ByteView bytes, const std::vector<int>& fds) {
  UPDRAFT_CHECK(bytes.size() <= kHandshakeBytesMax && fds.size() <= kHandshakeFdsMax);
  iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kHandshakeFdsMax)] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  for (;;) {
    const ssize_t sent = ::sendmsg(socket.get(), &message, MSG_NOSIGNAL);
    if (sent == static_cast<ssize_t>(bytes.size())) return {};
    if (sent < 0 && errno == EINTR) continue;
    return fail(system_error("sendmsg"));
  }
}

Result<SocketMessage> receive_message(const UniqueFd& socket, int timeout_ms) {
  pollfd entry{socket.get(), POLLIN, 0};
  const int ready = ::poll(&entry, 1, timeout_ms);
  SocketMessage out;
  if (ready <= 0) return out;
  out.bytes.resize(kHandshakeBytesMax);
  iovec piece{out.bytes.data(), out.bytes.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kHandshakeFdsMax)] = {};
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t got = ::recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  for (cmsghdr* header = got >= 0 ? CMSG_FIRSTHDR(&message) : nullptr; header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      out.fds.emplace_back(fd);
    }
  }
  if (got < 0) {
    out.bytes.clear();
    if (errno == EAGAIN || errno == EINTR) return out;
    if (errno == ECONNRESET) {
      out.hung_up = true;
      return out;
    }
    return fail(system_error("recvmsg"));
  }
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
    return fail("a handshake message is too large");
  out.bytes.resize(static_cast<size_t>(got));
  out.hung_up = got == 0;
  return out;
}

}  // namespace updraft::ipc
