// The server: one loop, one acceptor, and the order in which things go down.
#include "common/http/server.h"

#include <sys/socket.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <future>
#include <mutex>
#include <utility>

#include "common/base/clock.h"
#include "common/http/connection.h"
#include "common/http/openai_routes.h"
#include "common/http/server_state.h"
#include "common/metrics/memory_metrics.h"

namespace updraft {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

constexpr size_t kRefusedConnectionsMax =
    64;  // that get a 503, or one answer, at the same time; beyond that, closed without a word
constexpr int kSendBufferBytes =
    256 * 1024;  // of the kernel, per connection: it must not hide a slow reader
constexpr int kAcceptPauseMs = 100;  // out of descriptors

class AsioHttpServer final : public HttpServer {
 public:
  // routes: empty for those of an inference endpoint.
  AsioHttpServer(const HttpServerConfig& config, InferenceService* service,
                 std::vector<HttpRoute> routes, Metrics& metrics,
                 std::function<void(const AccessRecord&)> access_log, EventLoop* shared_loop)
      : own_loop_(shared_loop == nullptr ? EventLoop::start() : nullptr),
        loop_(shared_loop == nullptr ? *own_loop_ : *shared_loop),
        state_(config, service, metrics, std::move(access_log), loop_.io()),
        acceptor_(state_.io),
        accept_pause_(state_.io),
        grace_(state_.io) {
    state_.routes = routes.empty() ? openai_routes(state_) : std::move(routes);
  }

  ~AsioHttpServer() override { stop(0); }

  Result<void> listen() {
    auto address = bind_address();
    if (!address) return address.error();
    const std::string where = state_.config.bind_address + ":" + std::to_string(state_.config.port);
    if (auto allowed = check_reach(state_.config, *address); !allowed) return allowed.error();
    auto tls = load_tls(state_.config);
    if (!tls) return tls.error();
    state_.tls = std::move(*tls);
    const asio::ip::tcp::endpoint endpoint(*address, state_.config.port);
    error_code ec;
    acceptor_.open(endpoint.protocol(), ec);
    if (!ec) acceptor_.set_option(asio::socket_base::reuse_address(true), ec);
    if (!ec)
      acceptor_.set_option(asio::socket_base::send_buffer_size(kSendBufferBytes), ec);  // inherited
    if (!ec) acceptor_.bind(endpoint, ec);
    if (!ec) acceptor_.listen(asio::socket_base::max_listen_connections, ec);
    if (ec) return fail("http: cannot listen on " + where + ": " + ec.message());
    port_ = acceptor_.local_endpoint(ec).port();
    address_ = *address;
    state_.allowed_hosts = hosts_of(state_.config);
    return {};
  }

  void run() {
    const std::lock_guard lock(stop_mutex_);
    serving_ = true;
    loop_.post([this] { accept(); });
  }

  uint16_t port() const override { return port_; }

  Result<void> reconfigure(const HttpServerConfig& config) override {
    if (auto allowed = check_reach(config, address_); !allowed) return allowed.error();
    auto tls = load_tls(config);
    if (!tls) return tls.error();
    const std::lock_guard lock(stop_mutex_);
    if (!serving_) return {};
    loop_.post([this, fresh = config, tls = std::move(*tls)]() mutable {
      fresh.bind_address = state_.config.bind_address;
      fresh.port = state_.config.port;
      fresh.server_name = state_.config.server_name;
      state_.config = std::move(fresh);
      state_.tls = std::move(tls);
      state_.allowed_hosts = hosts_of(state_.config);
      state_.answers.set_limits(state_.config.idempotency, monotonic_ns());
    });
    return {};
  }

  void stop(int grace_ms) override {
    const std::lock_guard lock(stop_mutex_);
    if (!serving_) return;
    serving_ = false;
    loop_.post([this, grace_ms] { begin_stop(grace_ms); });
    ended_->get_future().wait();
    if (own_loop_ != nullptr) own_loop_->stop();
  }

 private:
  Result<asio::ip::address> bind_address() const {
    std::string text = state_.config.bind_address;
    if (text == "localhost") text = "127.0.0.1";
    if (text.size() > 2 && text.front() == '[' && text.back() == ']')
      text = text.substr(1, text.size() - 2);
    error_code ec;
    const auto address = asio::ip::make_address(text, ec);
    if (ec)
      return fail("http: bind address '" + state_.config.bind_address + "' is not an IP address");
    return address;
  }

  // May a server so configured be reached from other machines, if it is?
  static Result<void> check_reach(const HttpServerConfig& config,
                                  const asio::ip::address& address) {
    if (address.is_loopback()) return {};
    const std::string where = config.bind_address + ":" + std::to_string(config.port);
    if (config.auth == nullptr || config.auth->empty()) {
      return fail("http: refusing to listen on " + where +
                  " without API keys: that address can be reached from other machines; set "
                  "http.api_keys_file or bind to 127.0.0.1");
    }
    if (config.tls_cert_file.empty() && !config.behind_tls_proxy) {
      return fail("http: refusing to listen on " + where +
                  " without TLS: keys and prompts would cross the network in the clear; set "
                  "http.tls_cert and http.tls_key, or http.tls_proxy = true when a proxy that "
                  "speaks TLS stands in front");
    }
    return {};
  }

  static Result<std::shared_ptr<const TlsContext>> load_tls(const HttpServerConfig& config) {
    if (config.tls_cert_file.empty()) return std::shared_ptr<const TlsContext>();
    return TlsContext::load(config.tls_cert_file, config.tls_key_file);
  }

  std::vector<std::string> hosts_of(const HttpServerConfig& config) const {
    std::vector<std::string> hosts = config.allowed_hosts;
    hosts.insert(hosts.end(), {"localhost", "127.0.0.1", "[::1]"});
    if (!address_.is_unspecified()) {
      hosts.push_back(address_.is_v6() ? "[" + address_.to_string() + "]" : address_.to_string());
    }
    return hosts;
  }

  void accept() {
    acceptor_.async_accept([this](error_code ec, asio::ip::tcp::socket socket) {
      if (!acceptor_.is_open()) return;
      if (ec == asio::error::no_descriptors || ec == asio::error::no_memory ||
          ec == asio::error::no_buffer_space) {
        accept_pause_.expires_after(std::chrono::milliseconds(kAcceptPauseMs));
        accept_pause_.async_wait([this](error_code cancelled) {
          if (!cancelled && acceptor_.is_open()) accept();
        });
        return;
      }
      if (!ec) take(std::move(socket));
      accept();
    });
  }

  void take(asio::ip::tcp::socket socket) {
    const size_t served = state_.connections.size() - state_.refused_connections;
    const bool full = served >= static_cast<size_t>(state_.config.limits.connections_max);
    // Health and metrics are still asked for, by connections of one request each.
    const bool last = !full && state_.service != nullptr && state_.service->short_of_memory();
    const bool crowded = state_.refused_connections >= kRefusedConnectionsMax;
    if (last && crowded) memory_refused(state_.metrics, "connection").add();
    // Who speaks TLS cannot be told why before the handshake, which is work.
    if ((full && state_.tls != nullptr) || ((full || last) && crowded)) return;
    auto connection = std::make_shared<Connection>(state_, std::move(socket));
    state_.add(connection, full || last);
    if (last) {
      connection->start_last();
    } else if (full) {
      connection->start_refusing();
    } else {
      connection->start();
    }
  }

  std::vector<std::shared_ptr<Connection>> all_connections() const {
    std::vector<std::shared_ptr<Connection>> all;
    for (const auto& [key, connection] : state_.connections) all.push_back(connection);
    return all;
  }

  void begin_stop(int grace_ms) {
    error_code ignored;
    acceptor_.close(ignored);
    accept_pause_.cancel(ignored);
    state_.draining = true;
    for (const auto& connection : all_connections()) connection->drain();
    if (state_.connections.empty() || grace_ms <= 0) {
      end_stop();
      return;
    }
    state_.on_last_closed = [this] { end_stop(); };
    grace_.expires_after(std::chrono::milliseconds(grace_ms));
    grace_.async_wait([this](error_code cancelled) {
      if (!cancelled) end_stop();
    });
  }

  void end_stop() {
    if (std::exchange(closed_, true)) return;  // the grace ran out while the last one closed
    state_.on_last_closed = nullptr;
    error_code ignored;
    grace_.cancel(ignored);
    for (const auto& connection : all_connections()) connection->abort();
    // Behind everything that the closing has queued: what still runs after this is not ours.
    loop_.post([ended = ended_] { ended->set_value(); });
  }

  const std::unique_ptr<EventLoop> own_loop_;  // null: it is shared
  EventLoop& loop_;
  ServerState state_;
  asio::ip::tcp::acceptor acceptor_;
  asio::steady_timer accept_pause_;
  asio::steady_timer grace_;
  uint16_t port_ = 0;
  asio::ip::address address_;  // as bound
  // Shared with the last task, which may still be returning when this server is gone.
  const std::shared_ptr<std::promise<void>> ended_ = std::make_shared<std::promise<void>>();
  bool closed_ = false;    // end_stop() has been
  std::mutex stop_mutex_;  // guards serving_
  bool serving_ = false;
};

Result<std::unique_ptr<HttpServer>> launch(std::unique_ptr<AsioHttpServer> server) {
  if (auto listening = server->listen(); !listening) return listening.error();
  server->run();
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::start(
    const HttpServerConfig& config, InferenceService& service, Metrics& metrics,
    std::function<void(const AccessRecord&)> access_log, EventLoop* shared_loop) {
  return launch(std::make_unique<AsioHttpServer>(config, &service, std::vector<HttpRoute>(),
                                                 metrics, std::move(access_log), shared_loop));
}

Result<std::unique_ptr<HttpServer>> HttpServer::start(
    const HttpServerConfig& config, std::vector<HttpRoute> routes, Metrics& metrics,
    std::function<void(const AccessRecord&)> access_log) {
  if (config.auth == nullptr || config.auth->empty())
    return fail("http: a listener of this kind serves nobody without keys");
  for (const HttpRoute& route : routes) {
    UPDRAFT_CHECK(std::holds_alternative<RouteFunction>(route.answer),
                  "a server without a service has no inference to offer");
  }
  routes.push_back(liveness_route());
  return launch(std::make_unique<AsioHttpServer>(config, nullptr, std::move(routes), metrics,
                                                 std::move(access_log), nullptr));
}

}  // namespace updraft
