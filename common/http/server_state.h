// What all connections of one server share. Owned by the server, used on its loop's thread
// only.
#pragma once

#include <array>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/auth/rate_limit.h"
#include "common/http/server.h"
#include "common/http/tls.h"

namespace updraft {

class Connection;

struct ServerState {
  // inference: null when no route of the server needs it.
  ServerState(HttpServerConfig server_config, InferenceService* inference, Metrics& server_metrics,
              std::function<void(const AccessRecord&)> log, boost::asio::io_context& loop_io);

  HttpServerConfig config;  // replaced by a reload, between two exchanges' steps
  InferenceService* const service;
  Metrics& metrics;
  std::vector<HttpRoute> routes;
  std::shared_ptr<const TlsContext> tls;  // null: plain HTTP
  RateLimits rates;
  IdempotencyStore answers;
  const std::function<void(const AccessRecord&)> access_log;  // may be empty
  std::vector<std::string> allowed_hosts;

  boost::asio::io_context& io;
  std::unordered_map<Connection*, std::shared_ptr<Connection>> connections;
  size_t refused_connections = 0;  // of these, the ones that only get a 503, or one answer because
                                   // they came while memory was almost full
  bool draining = false;
  size_t body_bytes = 0;  // received and not yet parsed, over all connections
  int64_t open_streams = 0;
  std::function<void()> on_last_closed;  // set while draining
  std::array<char, 64 * 1024>
      scratch;  // every read goes through here, so that an idle connection needs no buffer

  void add(std::shared_ptr<Connection> connection, bool refused);
  void remove(Connection* connection, bool refused);
  void stream_opened();
  void stream_closed();
  void count_request(const std::string& route, int status, double seconds);
  void count_limited(const char* what);
  void observe_ttft(double seconds);
  // The value of the Date header, made once a second.
  const std::string& date();

 private:
  std::string date_;
  int64_t date_unix_s_ = 0;
};

}  // namespace updraft
