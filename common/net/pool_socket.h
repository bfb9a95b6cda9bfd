// The pool's ZeroMQ sockets: CURVE always on, keys checked by a ZAP handler that fails closed, sane
// limits instead of libzmq's defaults. The only place (with ipc's control channel) that names
// ZeroMQ.
//
// Threads: a socket belongs to the thread that polls it. The ZAP handler has a thread of its own
// inside NetContext.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"

namespace updraft {

// A CURVE key pair as Z85 text (40 characters each).
struct CurveKeys {
  std::string public_key;
  std::string secret_key;
};
CurveKeys new_curve_keys();
// Key files, mode 0600 (anything wider is refused): "<path>" holds the secret and the public key,
// "<path>.pub" the public one.
Result<void> save_curve_keys(const CurveKeys& keys, const std::string& path);
Result<CurveKeys> load_curve_keys(const std::string& path);
Result<std::string> load_public_key(const std::string& path);
// Allow-list: a folder of *.pub files. Errors name the file.
struct AllowedKey {
  std::string name;  // file stem, the node's name
  std::string public_key;
};
Result<std::vector<AllowedKey>> load_allowed_keys(const std::string& folder);

class NetContext {
 public:
  virtual ~NetContext() = default;
  static std::unique_ptr<NetContext> create(int io_threads = 1);
};

// The largest frame that either side takes; the connection of one that sends more ends.
inline constexpr size_t kPoolFrameBytesMax = 512 * 1024;

// Router's side (ROUTER socket). Peer identity = its authenticated public key, never what it
// claims.
class PoolListener {
 public:
  virtual ~PoolListener() = default;
  // endpoint: "tcp://127.0.0.1:0"; self-tests that an unknown key is refused and errors otherwise.
  // Errors name the endpoint.
  static Result<std::unique_ptr<PoolListener>> bind(NetContext& context,
                                                    const std::string& endpoint,
                                                    const CurveKeys& keys,
                                                    const std::vector<AllowedKey>& allowed);
  virtual std::string endpoint() const = 0;  // with the real port
  // Any thread: replaces the allow-list; established connections of removed keys are refused from
  // their next message on.
  virtual void set_allowed(const std::vector<AllowedKey>& allowed) = 0;

  struct Inbound {
    std::string peer;        // routing id of this connection (opaque bytes), unique while connected
    std::string public_key;  // authenticated, Z85
    std::string name;        // from the allow-list
    std::vector<std::byte> frame;
  };
  // Handles up to `max` messages that are there; never blocks. Returns how many.
  virtual int receive(int max, const std::function<void(Inbound&&)>& on_message) = 0;
  // kFull: poll_fd() wakes when there is room again. kGone: this connection has ended (the node
  // comes back as a new peer).
  enum class SendOutcome : uint8_t { kSent, kFull, kGone };
  virtual SendOutcome try_send(const std::string& peer, ByteView frame) = 0;
  // False: the peer is gone, or its queue is full (the caller keeps the message and retries or
  // gives up).
  bool send(const std::string& peer, ByteView frame) {
    return try_send(peer, frame) == SendOutcome::kSent;
  }
  // For poll(2): readable when something may have arrived (edge-triggered as ZMQ_FD is: call
  // receive until 0 after waking, and also after a send, before the next poll).
  virtual int poll_fd() const = 0;
  // Connections and messages of unknown or removed keys that were refused, since the start. Any
  // thread.
  virtual uint64_t refused_count() const = 0;
};

// Node's side (DEALER socket), reconnects by itself with back-off.
class PoolDialer {
 public:
  virtual ~PoolDialer() = default;
  static Result<std::unique_ptr<PoolDialer>> connect(NetContext& context,
                                                     const std::string& endpoint,
                                                     const std::string& router_public_key,
                                                     const CurveKeys& keys);
  virtual int receive(int max, const std::function<void(std::vector<std::byte>&&)>& on_message) = 0;
  virtual bool send(ByteView frame) = 0;  // false: not connected or full
  virtual int poll_fd() const = 0;
  // Gives this connection up and dials anew; `why` is the problem until that has come about.
  virtual void redial(const std::string& why) = 0;
  // True while the authenticated connection stands (socket monitor).
  virtual bool connected() const = 0;
  // How many connections have been established so far. A change means: what was under way on the
  // old one is lost.
  virtual uint64_t connection_count() const = 0;
  // Why there is no connection, one line for the log; empty while connected or when nothing is
  // known. Owner thread only.
  virtual std::string problem() const = 0;
};

}  // namespace updraft
