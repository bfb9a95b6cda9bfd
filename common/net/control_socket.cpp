// The control channel over ZeroMQ's ipc transport: ROUTER at the daemon, DEALER at the client.
#include "common/net/control_socket.h"

#include <cerrno>
#include <zmq.hpp>

namespace updraft {
namespace {

constexpr int kQueueMessages = 1000;

template <typename Socket>
void apply_limits(Socket& socket) {
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::sndhwm, kQueueMessages);
  socket.set(zmq::sockopt::rcvhwm, kQueueMessages);
  socket.set(zmq::sockopt::maxmsgsize, static_cast<int64_t>(kControlBytesMax));
}

std::vector<std::byte> bytes_of(const zmq::message_t& message) {
  const auto* begin = static_cast<const std::byte*>(message.data());
  return {begin, begin + message.size()};
}

// Messages are [routing id][token][frame] at the listener, [token][frame] at the dialer, answers
// [frame].
class ZmqControlListener final : public ControlListener {
 public:
  ZmqControlListener() : context_(1), socket_(context_, zmq::socket_type::router) {}

  Result<void> bind_to(const std::string& endpoint) {
    try {
      apply_limits(socket_);
      socket_.set(zmq::sockopt::router_mandatory, true);
      socket_.bind(endpoint);
    } catch (const zmq::error_t& error) {
      return fail("control channel " + endpoint + ": " + error.what());
    }
    return {};
  }

  int receive(int max, const std::function<void(Inbound&&)>& on_message) override {
    int handled = 0;
    while (handled < max) {
      std::vector<zmq::message_t> parts;
      zmq::message_t part;
      while (socket_.recv(part, zmq::recv_flags::dontwait)) {
        const bool more = part.more();
        // A message with more parts than the protocol has is read to its end and dropped, never
        // stored.
        if (parts.size() < 4) parts.push_back(std::move(part));
        part = zmq::message_t();
        if (!more) break;
      }
      if (parts.empty()) break;
      ++handled;
      if (parts.size() != 3) continue;
      on_message(Inbound{parts[0].to_string(), parts[1].to_string(), bytes_of(parts[2])});
    }
    return handled;
  }

  bool send(const std::string& peer, ByteView frame) override {
    try {
      if (!socket_.send(zmq::buffer(peer), zmq::send_flags::sndmore | zmq::send_flags::dontwait))
        return false;
      return socket_.send(zmq::buffer(frame.data(), frame.size()), zmq::send_flags::dontwait)
          .has_value();
    } catch (const zmq::error_t&) {
      return false;  // EHOSTUNREACH: the peer is gone
    }
  }

  int poll_fd() const override { return socket_.get(zmq::sockopt::fd); }

 private:
  zmq::context_t context_;
  zmq::socket_t socket_;
};

class ZmqControlDialer final : public ControlDialer {
 public:
  explicit ZmqControlDialer(std::string token)
      : context_(1), socket_(context_, zmq::socket_type::dealer), token_(std::move(token)) {}

  Result<void> connect_to(const std::string& endpoint) {
    try {
      apply_limits(socket_);
      socket_.connect(endpoint);
    } catch (const zmq::error_t& error) {
      return fail("control channel " + endpoint + ": " + error.what());
    }
    return {};
  }

  bool send(ByteView frame) override {
    try {
      if (!socket_.send(zmq::buffer(token_), zmq::send_flags::sndmore | zmq::send_flags::dontwait))
        return false;
      return socket_.send(zmq::buffer(frame.data(), frame.size()), zmq::send_flags::dontwait)
          .has_value();
    } catch (const zmq::error_t&) {
      return false;
    }
  }

  std::vector<std::byte> receive(int timeout_ms) override {
    zmq::pollitem_t item{socket_.handle(), 0, ZMQ_POLLIN, 0};
    try {
      if (zmq::poll(&item, 1, std::chrono::milliseconds(timeout_ms)) == 0) return {};
      zmq::message_t message;
      if (!socket_.recv(message, zmq::recv_flags::dontwait)) return {};
      return bytes_of(message);
    } catch (const zmq::error_t&) {
      return {};
    }
  }

 private:
  zmq::context_t context_;
  zmq::socket_t socket_;
  const std::string token_;
};

}  // namespace

Result<std::unique_ptr<ControlListener>> ControlListener::bind(const std::string& endpoint) {
  auto listener = std::make_unique<ZmqControlListener>();
  if (auto bound = listener->bind_to(endpoint); !bound) return bound.error();
  return std::unique_ptr<ControlListener>(std::move(listener));
}

Result<std::unique_ptr<ControlDialer>> ControlDialer::connect(const std::string& endpoint,
                                                              const std::string& token) {
  auto dialer = std::make_unique<ZmqControlDialer>(token);
  if (auto connected = dialer->connect_to(endpoint); !connected) return connected.error();
  return std::unique_ptr<ControlDialer>(std::move(dialer));
}

}  // namespace updraft
