// A node's DEALER socket. libzmq reconnects after a broken connection by itself, but gives up for
// good when the router refused the key; so that a node added to the allow-list later comes in
// without a restart, the socket is then made anew after a pause.
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/net/net_context.h"

namespace updraft {
namespace {

// Small on purpose: what libzmq has taken can no longer be overtaken by a beat. The caller's own
// queue holds the rest.
constexpr int kSendHwm = 4;
constexpr int kReceiveHwm = 64;
constexpr int kKernelSendBytes = 256 * 1024;
constexpr int kReconnectMs = 100;
constexpr int kReconnectMaxMs = 3000;
constexpr int64_t kRefusedPauseNs = 500 * kNsPerMs;
constexpr int64_t kRefusedPauseMaxNs = 5 * kNsPerSecond;

class Dialer : public PoolDialer {
 public:
  Dialer(NetContextImpl& context, std::string endpoint, std::string router_public_key,
         CurveKeys keys)
      : context_(context),
        endpoint_(std::move(endpoint)),
        router_public_key_(std::move(router_public_key)),
        keys_(std::move(keys)),
        epoll_fd_(epoll_create1(EPOLL_CLOEXEC)) {
    UPDRAFT_CHECK(epoll_fd_ >= 0, "no descriptor for epoll");
  }
  ~Dialer() override {
    hang_up();
    close(epoll_fd_);
  }

  // Throws zmq::error_t.
  void dial() {
    socket_ = zmq::socket_t(context_.zmq(), zmq::socket_type::dealer);
    set_common_options(socket_);
    // No heartbeats of libzmq's: see pool_listener.cpp. That the router still takes what is sent is
    // for the messages to tell (Echo), that its machine does for the kernel.
    socket_.set(zmq::sockopt::ipv6, endpoint_.find('[') != std::string::npos);
    socket_.set(zmq::sockopt::sndhwm, kSendHwm);
    socket_.set(zmq::sockopt::rcvhwm, kReceiveHwm);
    socket_.set(zmq::sockopt::sndbuf, kKernelSendBytes);
    socket_.set(zmq::sockopt::reconnect_ivl, kReconnectMs);
    socket_.set(zmq::sockopt::reconnect_ivl_max, kReconnectMaxMs);
    socket_.set(zmq::sockopt::curve_serverkey, router_public_key_);
    socket_.set(zmq::sockopt::curve_publickey, keys_.public_key);
    socket_.set(zmq::sockopt::curve_secretkey, keys_.secret_key);
    monitor_ = std::make_unique<SocketMonitor>(context_, socket_);
    watch(socket_.get(zmq::sockopt::fd));
    watch(monitor_->events().get(zmq::sockopt::fd));
    socket_.connect(endpoint_);
  }

  int receive(int max, const std::function<void(std::vector<std::byte>&&)>& on_message) override {
    follow_monitor();
    redial_if_due();
    int count = 0;
    for (; count < max; ++count) {
      zmq::message_t message;
      if (!socket_.recv(message, zmq::recv_flags::dontwait)) break;
      const bool single = !message.more();
      for (bool more = message.more(); more;) {
        zmq::message_t rest;
        (void)socket_.recv(rest);
        more = rest.more();
      }
      if (!single || !connected()) continue;  // what an ended connection left behind
      const auto* begin = message.data<std::byte>();
      on_message(std::vector<std::byte>(begin, begin + message.size()));
    }
    return count;
  }

  void redial(const std::string& why) override {
    hang_up();
    dial();
    problem_ = endpoint_ + ": " + why;
  }

  bool send(ByteView frame) override {
    if (!connected()) return false;
    return socket_.send(zmq::buffer(frame.data(), frame.size()), zmq::send_flags::dontwait)
        .has_value();
  }

  int poll_fd() const override { return epoll_fd_; }
  bool connected() const override { return connected_.load(std::memory_order_acquire); }
  uint64_t connection_count() const override {
    return connection_count_.load(std::memory_order_acquire);
  }
  std::string problem() const override { return problem_; }

 private:
  void watch(int fd) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    UPDRAFT_CHECK(epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) == 0);
  }
  void unwatch(zmq::socket_t& socket) {
    epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, socket.get(zmq::sockopt::fd), nullptr);
  }
  void hang_up() {
    connected_.store(false, std::memory_order_release);
    if (!monitor_) return;
    unwatch(monitor_->events());
    unwatch(socket_);
    monitor_.reset();
    socket_.close();
  }

  void follow_monitor() {
    while (const auto event = monitor_->next()) {
      switch (event->kind) {
        case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
          problem_.clear();
          refused_pause_ns_ = kRefusedPauseNs;
          connection_count_.fetch_add(1, std::memory_order_release);
          connected_.store(true, std::memory_order_release);
          break;
        case ZMQ_EVENT_DISCONNECTED:
        case ZMQ_EVENT_CLOSED:
          if (connected()) problem_ = endpoint_ + ": the connection ended";
          connected_.store(false, std::memory_order_release);
          break;
        case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
          note_refusal(": this node's key is not on the router's allow-list");
          break;
        case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
          note_refusal(": the handshake failed, there is no Updraft router at this address");
          break;
        case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
          problem_ = endpoint_ + ": the handshake failed; is router_key the key of this router?";
          break;
        case ZMQ_EVENT_CONNECT_RETRIED:
          if (problem_.empty()) problem_ = endpoint_ + ": cannot be reached";
          break;
        default:
          break;
      }
    }
  }

  void note_refusal(const char* why) {
    problem_ = endpoint_ + why;
    redial_at_ns_ = monotonic_ns() + refused_pause_ns_;
    refused_pause_ns_ = std::min(refused_pause_ns_ * 2, kRefusedPauseMaxNs);
  }

  void redial_if_due() {
    if (redial_at_ns_ == 0 || monotonic_ns() < redial_at_ns_) return;
    redial_at_ns_ = 0;
    hang_up();
    dial();
  }

  NetContextImpl& context_;
  const std::string endpoint_;
  const std::string router_public_key_;
  const CurveKeys keys_;
  const int epoll_fd_;
  zmq::socket_t socket_;
  std::unique_ptr<SocketMonitor> monitor_;  // null when dial() failed half-way
  // Written by the owner thread; other threads read them for reports, so release pairs with acquire
  // in the getters.
  std::atomic<bool> connected_{false};
  std::atomic<uint64_t> connection_count_{0};
  std::string problem_;
  int64_t redial_at_ns_ = 0;  // 0: not due
  int64_t refused_pause_ns_ = kRefusedPauseNs;
};

}  // namespace

Result<std::unique_ptr<PoolDialer>> PoolDialer::connect(NetContext& context,
                                                        const std::string& endpoint,
                                                        const std::string& router_public_key,
                                                        const CurveKeys& keys) {
  if (auto good = check_endpoint(endpoint); !good) return good.error();
  if (!is_curve_key(router_public_key))
    return fail("pool endpoint " + endpoint +
                ": the router's public key is not 40 characters of Z85");
  if (!is_curve_key(keys.secret_key) || !is_curve_key(keys.public_key)) {
    return fail("pool endpoint " + endpoint +
                ": the key pair is not two Z85 keys of 40 characters");
  }
  try {
    auto dialer =
        std::make_unique<Dialer>(NetContextImpl::of(context), endpoint, router_public_key, keys);
    dialer->dial();
    return std::unique_ptr<PoolDialer>(std::move(dialer));
  } catch (const zmq::error_t& error) {
    return socket_error(endpoint, error);
  }
}

}  // namespace updraft
