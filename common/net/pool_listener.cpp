// The router's ROUTER socket. Identity is the authenticated key that libzmq attaches to every
// message (metadata "User-Id", set by our ZAP handler), never anything a peer claims.
#include <chrono>
#include <cstring>

#include "common/base/clock.h"
#include "common/net/net_context.h"

namespace updraft {
namespace {

// In libzmq's stable interface since 4.3, but its name is in the draft header only.
constexpr int kZapEnforceDomain = 93;
constexpr int kSendHwm = 64;  // frames of at most kChunkBytes waiting for one peer
// Frames held of one peer before TCP pushes back: with the largest frames what a node can make the
// router hold. When libzmq (4.3.4) has stopped reading a connection that then breaks, a PING left
// in its buffer ends the process (stream_engine_base.cpp, out_event() after an I/O error): so
// neither side sends heartbeats of libzmq's.
constexpr int kReceiveHwm = 64;
constexpr int kBacklog = 1024;

void set_enforce_domain(zmq::socket_t& socket) {
  const int on = 1;
  if (zmq_setsockopt(socket.handle(), kZapEnforceDomain, &on, sizeof on) != 0) throw zmq::error_t();
}

// "tcp://0.0.0.0:7070" -> "tcp://127.0.0.1:7070": where this machine reaches its own listener.
std::string loopback_of(const std::string& endpoint) {
  for (const char* any : {"tcp://0.0.0.0:", "tcp://*:", "tcp://[::]:"}) {
    if (endpoint.rfind(any, 0) == 0) {
      return (std::string(any) == "tcp://[::]:" ? "tcp://[::1]:" : "tcp://127.0.0.1:") +
             endpoint.substr(std::strlen(any));
    }
  }
  return endpoint;
}

// Knocks with a key that nobody knows: unless the answer is a clear no, the listener must not run.
Result<void> test_that_strangers_are_refused(NetContextImpl& context, const std::string& endpoint,
                                             const std::string& router_public_key) {
  zmq::socket_t stranger(context.zmq(), zmq::socket_type::dealer);
  set_common_options(stranger);
  const CurveKeys keys = new_curve_keys();
  stranger.set(zmq::sockopt::ipv6, endpoint.find('[') != std::string::npos);
  stranger.set(zmq::sockopt::curve_serverkey, router_public_key);
  stranger.set(zmq::sockopt::curve_publickey, keys.public_key);
  stranger.set(zmq::sockopt::curve_secretkey, keys.secret_key);
  SocketMonitor monitor(context, stranger);
  stranger.connect(loopback_of(endpoint));

  const std::string where = "pool endpoint " + endpoint + ": ";
  const int64_t give_up_ns = monotonic_ns() + 5 * kNsPerSecond;
  while (monotonic_ns() < give_up_ns) {
    zmq::pollitem_t item{monitor.events().handle(), 0, ZMQ_POLLIN, 0};
    zmq::poll(&item, 1, std::chrono::milliseconds(100));
    while (const auto event = monitor.next()) {
      if (event->kind == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) return {};
      if (event->kind == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
        return fail(where + "self-test failed, a key that is not on the allow-list was accepted");
      }
    }
  }
  return fail(where + "self-test failed, no answer to an unknown key within 5 s");
}

class Listener : public PoolListener {
 public:
  Listener(NetContextImpl& context, const std::vector<AllowedKey>& allowed)
      : context_(context),
        domain_(context.unique_name("pool-")),
        allowed_(std::make_shared<AllowList>(allowed)),
        socket_(context.zmq(), zmq::socket_type::router) {
    context_.add_domain(domain_, allowed_);
  }
  ~Listener() override {
    socket_.close();
    context_.remove_domain(domain_);
  }

  // Throws zmq::error_t.
  Result<void> open(const std::string& endpoint, const CurveKeys& keys) {
    set_common_options(socket_);
    socket_.set(zmq::sockopt::ipv6, endpoint.find('[') != std::string::npos);
    socket_.set(zmq::sockopt::router_mandatory, true);
    socket_.set(zmq::sockopt::sndhwm, kSendHwm);
    socket_.set(zmq::sockopt::rcvhwm, kReceiveHwm);
    socket_.set(zmq::sockopt::backlog, kBacklog);
    socket_.set(zmq::sockopt::curve_server, true);
    socket_.set(zmq::sockopt::curve_secretkey, keys.secret_key);
    socket_.set(zmq::sockopt::zap_domain, domain_);
    set_enforce_domain(socket_);
    socket_.bind(endpoint);
    endpoint_ = socket_.get(zmq::sockopt::last_endpoint);
    poll_fd_ = socket_.get(zmq::sockopt::fd);
    auto tested = test_that_strangers_are_refused(context_, endpoint_, keys.public_key);
    refused_in_test_ = allowed_->refused_count();
    return tested;
  }

  std::string endpoint() const override { return endpoint_; }
  void set_allowed(const std::vector<AllowedKey>& allowed) override { allowed_->replace(allowed); }
  int poll_fd() const override { return poll_fd_; }
  uint64_t refused_count() const override { return allowed_->refused_count() - refused_in_test_; }

  int receive(int max, const std::function<void(Inbound&&)>& on_message) override {
    int count = 0;
    for (; count < max; ++count) {
      zmq::message_t peer;
      if (!socket_.recv(peer, zmq::recv_flags::dontwait)) break;
      zmq::message_t body;
      size_t body_count = 0;
      for (bool more = peer.more(); more; more = body.more()) {
        (void)socket_.recv(body);  // parts of one message arrive together
        ++body_count;
      }
      if (body_count == 1) deliver(peer, body, on_message);
    }
    return count;
  }

  SendOutcome try_send(const std::string& peer, ByteView frame) override {
    try {
      if (!socket_.send(zmq::buffer(peer), zmq::send_flags::sndmore | zmq::send_flags::dontwait))
        return SendOutcome::kFull;
      const auto sent =
          socket_.send(zmq::buffer(frame.data(), frame.size()), zmq::send_flags::dontwait);
      return sent ? SendOutcome::kSent : SendOutcome::kFull;
    } catch (const zmq::error_t& error) {
      UPDRAFT_CHECK(error.num() == EHOSTUNREACH, "sending on the pool's socket failed");
      return SendOutcome::kGone;
    }
  }

 private:
  void deliver(zmq::message_t& peer, zmq::message_t& body,
               const std::function<void(Inbound&&)>& on_message) {
    const char* user = zmq_msg_gets(body.handle(), "User-Id");
    Inbound inbound;
    inbound.public_key = user == nullptr ? std::string() : std::string(user);
    const std::optional<std::string> name = allowed_->find(inbound.public_key);
    if (!name) {  // removed since it connected
      allowed_->count_refusal();
      return;
    }
    inbound.name = *name;
    inbound.peer = peer.to_string();
    const auto* begin = body.data<std::byte>();
    inbound.frame.assign(begin, begin + body.size());
    on_message(std::move(inbound));
  }

  NetContextImpl& context_;
  const std::string domain_;
  std::shared_ptr<AllowList> allowed_;
  zmq::socket_t socket_;
  std::string endpoint_;
  int poll_fd_ = -1;
  uint64_t refused_in_test_ = 0;
};

}  // namespace

Result<std::unique_ptr<PoolListener>> PoolListener::bind(NetContext& context,
                                                         const std::string& endpoint,
                                                         const CurveKeys& keys,
                                                         const std::vector<AllowedKey>& allowed) {
  if (auto good = check_endpoint(endpoint); !good) return good.error();
  if (!is_curve_key(keys.secret_key) || !is_curve_key(keys.public_key)) {
    return fail("pool endpoint " + endpoint +
                ": the key pair is not two Z85 keys of 40 characters");
  }
  try {
    auto listener = std::make_unique<Listener>(NetContextImpl::of(context), allowed);
    if (auto opened = listener->open(endpoint, keys); !opened) return opened.error();
    return std::unique_ptr<PoolListener>(std::move(listener));
  } catch (const zmq::error_t& error) {
    return socket_error(endpoint, error);
  }
}

}  // namespace updraft
