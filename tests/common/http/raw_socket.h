// A plain TCP client for tests: sends exactly the bytes given, reads with a deadline.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "common/base/clock.h"

namespace updraft::testing {

class RawSocket {
 public:
  // receive_buffer_bytes > 0: a small window, for slow readers.
  explicit RawSocket(uint16_t port, int receive_buffer_bytes = 0) {
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    if (receive_buffer_bytes > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes);
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      throw std::runtime_error("connect failed");
    }
  }
  ~RawSocket() { close(); }
  RawSocket(const RawSocket&) = delete;
  RawSocket& operator=(const RawSocket&) = delete;

  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  // Closes with a reset instead of an orderly end.
  void reset() {
    const linger now{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close();
  }
  void end_sending() { shutdown(fd_, SHUT_WR); }

  // False when the peer does not take it all.
  bool send_all(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }

  // Everything received until `text` has come, the peer has closed or the time is up.
  const std::string& read_until(std::string_view text, int within_ms = 5000) {
    const int64_t end_ns = monotonic_ns() + within_ms * kNsPerMs;
    while (received_.find(text) == std::string::npos && !closed_ && read_some(end_ns)) {
    }
    return received_;
  }
  // The same until the peer closes; false when it does not in time.
  bool read_to_end(int within_ms = 5000) {
    const int64_t end_ns = monotonic_ns() + within_ms * kNsPerMs;
    while (!closed_ && read_some(end_ns)) {
    }
    return closed_;
  }
  const std::string& received() const { return received_; }
  void forget() { received_.clear(); }
  bool closed() const { return closed_; }
  // The peer's end was a reset: on other systems than Linux that takes the unread answer away.
  bool was_reset() const { return was_reset_; }

 private:
  bool read_some(int64_t end_ns) {
    const int64_t left_ms = (end_ns - monotonic_ns()) / kNsPerMs;
    if (left_ms <= 0) return false;
    pollfd poller{fd_, POLLIN, 0};
    if (poll(&poller, 1, static_cast<int>(left_ms)) <= 0) return false;
    char buffer[16384];
    const ssize_t got = recv(fd_, buffer, sizeof buffer, 0);
    if (got <= 0) {
      closed_ = true;
      was_reset_ = got < 0;
      return false;
    }
    received_.append(buffer, static_cast<size_t>(got));
    return true;
  }

  int fd_ = -1;
  bool closed_ = false;
  bool was_reset_ = false;
  std::string received_;
};

// "HTTP/1.1 400 ..." -> 400; 0 when there is no status line.
inline int status_of(std::string_view response) {
  if (!response.starts_with("HTTP/1.1 ") || response.size() < 12) return 0;
  return std::stoi(std::string(response.substr(9, 3)));
}

}  // namespace updraft::testing
