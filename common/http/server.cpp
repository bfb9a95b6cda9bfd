// The server: one io thread, one acceptor, and the order in which things go down.
#include "common/http/server.h"

#include <sys/socket.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <mutex>
#include <thread>
#include <utility>

#include "common/base/clock.h"
#include "common/http/connection.h"
#include "common/http/server_state.h"

namespace updraft {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

constexpr size_t kRefusedConnectionsMax =
    64;  // that get a 503 at the same time; beyond that, closed without a word
constexpr int kSendBufferBytes =
    256 * 1024;  // of the kernel, per connection: it must not hide a slow reader
constexpr int kAcceptPauseMs = 100;  // out of descriptors

class AsioHttpServer final : public HttpServer {
 public:
  AsioHttpServer(const HttpServerConfig& config, KeyRing keys, InferenceService& service,
                 Metrics& metrics, std::function<void(const AccessRecord&)> access_log)
      : state_(config, std::move(keys), service, metrics, std::move(access_log)),
        acceptor_(state_.io),
        accept_pause_(state_.io),
        grace_(state_.io) {}

  ~AsioHttpServer() override { stop(0); }

  Result<void> listen() {
    auto address = bind_address();
    if (!address) return address.error();
    const std::string where = state_.config.bind_address + ":" + std::to_string(state_.config.port);
    if (state_.keys.empty() && !address->is_loopback()) {
      return fail("http: refusing to listen on " + where +
                  " without API keys: that address can be reached from other machines; set "
                  "api_keys_sha256 or bind to "
                  "127.0.0.1");
    }
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
    allow_hosts(*address);
    return {};
  }

  void run() {
    accept();
    thread_ = std::thread([this] { state_.io.run(); });
  }

  uint16_t port() const override { return port_; }

  void stop(int grace_ms) override {
    const std::lock_guard lock(stop_mutex_);
    if (!thread_.joinable()) return;
    asio::post(state_.io, [this, grace_ms] { begin_stop(grace_ms); });
    thread_.join();
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

  void allow_hosts(const asio::ip::address& address) {
    auto& hosts = state_.allowed_hosts;
    hosts = state_.config.allowed_hosts;
    hosts.insert(hosts.end(), {"localhost", "127.0.0.1", "[::1]"});
    if (!address.is_unspecified()) {
      hosts.push_back(address.is_v6() ? "[" + address.to_string() + "]" : address.to_string());
    }
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
    if (full && state_.refused_connections >= kRefusedConnectionsMax) return;
    auto connection = std::make_shared<Connection>(state_, std::move(socket));
    state_.add(connection, full);
    if (full) {
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
    state_.on_last_closed = nullptr;
    error_code ignored;
    grace_.cancel(ignored);
    for (const auto& connection : all_connections()) connection->abort();
    state_.io.stop();
  }

  ServerState state_;
  asio::ip::tcp::acceptor acceptor_;
  asio::steady_timer accept_pause_;
  asio::steady_timer grace_;
  uint16_t port_ = 0;
  std::mutex stop_mutex_;  // guards thread_
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::start(
    const HttpServerConfig& config, InferenceService& service, Metrics& metrics,
    std::function<void(const AccessRecord&)> access_log) {
  auto keys = KeyRing::parse(config.api_keys_sha256);
  if (!keys) return keys.error("http");
  auto server = std::make_unique<AsioHttpServer>(config, std::move(*keys), service, metrics,
                                                 std::move(access_log));
  if (auto listening = server->listen(); !listening) return listening.error();
  server->run();
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace updraft
