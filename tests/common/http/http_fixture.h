// A server over the fake service, its access log, and clients for it.
#pragma once

#include <doctest/doctest.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "common/http/client.h"
#include "common/http/server.h"
#include "tests/common/http/fake_service.h"
#include "tests/common/http/raw_socket.h"

namespace updraft::testing {

inline const std::string kChatPath = "/v1/chat/completions";
inline const std::string kChatBody =
    R"({"model":"demo","messages":[{"role":"user","content":"Hi"}]})";
inline const std::string kStreamBody =
    R"({"model":"demo","stream":true,"messages":[{"role":"user","content":"Hi"}]})";

inline ApiKey api_key(const std::string& text, Role role, KeyLimits limits = {}) {
  return {sha256(text), text, role, limits};
}
inline std::shared_ptr<const Authenticator> door_of(std::vector<ApiKey> keys) {
  return std::make_shared<const Authenticator>(std::move(keys), JwtPolicy());
}

struct HttpFixture {
  FakeService service;
  std::unique_ptr<Metrics> metrics = Metrics::create();
  HttpServerConfig config;
  bool keeps_log = true;  // before start(): false where thousands ask
  std::unique_ptr<HttpServer> server;

  ~HttpFixture() { server.reset(); }

  void start() {
    auto started = HttpServer::start(config, service, *metrics, logger());
    REQUIRE_MESSAGE(started.ok(), started.message());
    server = std::move(*started);
  }
  std::function<void(const AccessRecord&)> logger() {
    if (!keeps_log) return {};
    return [this](const AccessRecord& record) {
      const std::lock_guard lock(mutex_);
      log_.push_back(record);
      logged_.notify_all();
    };
  }
  // The record with that index (0: the first), once it is there.
  AccessRecord record(size_t index) {
    std::unique_lock lock(mutex_);
    REQUIRE(logged_.wait_for(lock, std::chrono::seconds(10), [&] { return log_.size() > index; }));
    return log_[index];
  }
  HttpResponse send(const std::string& method, const std::string& path, const std::string& body,
                    HttpFields fields = {}) {
    HttpUrl url;
    url.host = "127.0.0.1";
    url.port = server->port();
    const HttpClient client(url, std::move(fields), {2000, 10'000});
    auto response = method == "GET" ? client.get(path) : client.post_json(path, body);
    REQUIRE_MESSAGE(response.ok(), response.message());
    return *response;
  }
  HttpResponse get(const std::string& path, HttpFields fields = {}) {
    return send("GET", path, "", std::move(fields));
  }
  HttpResponse post(const std::string& path, const std::string& body, HttpFields fields = {}) {
    return send("POST", path, body, std::move(fields));
  }

 private:
  std::mutex mutex_;
  std::condition_variable logged_;
  std::vector<AccessRecord> log_;
};

inline std::pair<std::string, std::string> bearer(const std::string& key) {
  return {"Authorization", "Bearer " + key};
}

// A whole request as bytes.
inline std::string raw_post(const std::string& path, const std::string& body,
                            const std::string& more = "") {
  return "POST " + path +
         " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n" + more + "\r\n" + body;
}

}  // namespace updraft::testing
