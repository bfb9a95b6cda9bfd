// The local control channel: ZeroMQ over ipc://, for cancels of mapped sessions and for whole
// requests of clients that cannot map memory. Guarded by the socket file's folder (0700), hence no
// CURVE.
//
// Threads: a socket belongs to the thread that uses it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"

namespace updraft {

inline constexpr size_t kControlBytesMax = 24 * 1024 * 1024;  // one message, images included

class ControlListener {
 public:
  virtual ~ControlListener() = default;
  // endpoint: "ipc:///run/.../edge.control".
  static Result<std::unique_ptr<ControlListener>> bind(const std::string& endpoint);

  struct Inbound {
    std::string peer;   // opaque, for send()
    std::string token;  // session token, empty for clients without a segment
    std::vector<std::byte> frame;
  };
  // Handles up to `max` messages that are there; never blocks. Returns how many.
  virtual int receive(int max, const std::function<void(Inbound&&)>& on_message) = 0;
  // False: the peer is gone or does not read.
  virtual bool send(const std::string& peer, ByteView frame) = 0;
  virtual int poll_fd() const = 0;  // edge-triggered: call receive until 0 after waking
};

class ControlDialer {
 public:
  virtual ~ControlDialer() = default;
  static Result<std::unique_ptr<ControlDialer>> connect(const std::string& endpoint,
                                                        const std::string& token);
  virtual bool send(ByteView frame) = 0;
  // The next frame, or nothing within timeout_ms.
  virtual std::vector<std::byte> receive(int timeout_ms) = 0;
};

}  // namespace updraft
