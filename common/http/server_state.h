// What all connections of one server share. Owned by the server, used on its io thread only.
#pragma once

#include <array>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/http/auth.h"
#include "common/http/server.h"

namespace updraft {

class Connection;

struct ServerState {
  ServerState(HttpServerConfig server_config, KeyRing key_ring, InferenceService& inference,
              Metrics& server_metrics, std::function<void(const AccessRecord&)> log);

  const HttpServerConfig config;
  const KeyRing keys;
  InferenceService& service;
  Metrics& metrics;
  const std::function<void(const AccessRecord&)> access_log;  // may be empty
  std::vector<std::string> allowed_hosts;

  boost::asio::io_context io{1};
  std::unordered_map<Connection*, std::shared_ptr<Connection>> connections;
  size_t refused_connections = 0;  // of these, the ones that only get a 503
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
  void observe_ttft(double seconds);
  // The value of the Date header, made once a second.
  const std::string& date();

 private:
  std::string date_;
  int64_t date_unix_s_ = 0;
};

}  // namespace updraft
