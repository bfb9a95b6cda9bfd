// The client's pure parts: URLs and the splitting of event streams. Event examples follow WHATWG
// HTML 9.2.6.
#include "common/http/client.h"

#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "common/base/clock.h"
#include "common/http/server.h"
#include "common/metrics/metrics.h"
#include "tests/common/http/fake_service.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

std::vector<std::string> split(std::string_view bytes, size_t step) {
  std::vector<std::string> all;
  EventSplitter splitter;
  for (size_t at = 0; at < bytes.size(); at += step) {
    splitter.feed(bytes.substr(at, step), [&](std::string_view data) {
      all.emplace_back(data);
      return true;
    });
  }
  return all;
}

// A listener that accepts (in its backlog) and never answers.
class SilentPeer {
 public:
  SilentPeer() {
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    REQUIRE(bind(fd_, reinterpret_cast<sockaddr*>(&address), size) == 0);
    REQUIRE(listen(fd_, 4) == 0);
    getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
  }
  ~SilentPeer() { close(fd_); }
  uint16_t port() const { return port_; }
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
  uint16_t port_ = 0;
};

HttpUrl local(uint16_t port) {
  HttpUrl url;
  url.host = "127.0.0.1";
  url.port = port;
  return url;
}

}  // namespace

TEST_CASE("URLs are read strictly") {
  const auto url = HttpUrl::parse("http://gateway.local:8080/v1/");
  REQUIRE(url);
  CHECK(url->host == "gateway.local");
  CHECK(url->port == 8080);
  CHECK(url->prefix == "/v1");
  CHECK(url->authority() == "gateway.local:8080");
  CHECK(HttpUrl::parse("HTTP://a")->port == 80);
  CHECK(HttpUrl::parse("http://a/")->prefix.empty());
  CHECK(HttpUrl::parse("http://a")->origin() == "http://a:80");
  CHECK(HttpUrl::parse("HTTPS://a/v1")->origin() == "https://a:443");
  CHECK(HttpUrl::parse("https://[::1]:8443/v1")->origin() == "https://[::1]:8443");
  CHECK(HttpUrl::parse("https://a/v1")->prefix == "/v1");
  CHECK(HttpUrl::parse("http://[::1]:9")->authority() == "[::1]:9");
  for (const char* bad : {"",
                          "a",
                          "https://",
                          "https://a:x",
                          "httpss://a",
                          "ftp://a",
                          "http://",
                          "http://:80",
                          "http://a:",
                          "http://a:0",
                          "http://a:65536",
                          "http://a:8x",
                          "http://a:-1",
                          "http://u@a",
                          "http://u:p@a/",
                          "http://a b",
                          "http://a?x",
                          "http://a/?x",
                          "http://a/#x",
                          "http://a/../b",
                          "http://[::1",
                          "http://[x]",
                          "http://[::1]8",
                          "http://a\r\nX: y"}) {
    CHECK_MESSAGE(!HttpUrl::parse(bad).ok(), bad);
  }
}

TEST_CASE("events are found however the bytes are cut, whatever ends the lines") {
  const std::string stream =
      ": comment\n\ndata: a\n\nevent: x\nid: 1\ndata:b\ndata:  c\n\ndata\n\n\ndata: cut off";
  std::string with_crlf, with_cr;
  for (const char c : stream) {
    with_crlf += c == '\n' ? "\r\n" : std::string(1, c);
    with_cr += c == '\n' ? '\r' : c;
  }
  const std::vector<std::string> expected = {"a", "b\n c", ""};
  for (const std::string& form : {stream, with_crlf, with_cr}) {
    for (const size_t step : {size_t{1}, size_t{3}, size_t{7}, form.size()})
      CHECK(split(form, step) == expected);
  }
}

TEST_CASE("an event without end is an error, not memory") {
  EventSplitter splitter;
  const std::string piece(100'000, 'x');
  bool go_on = true;
  int pieces = 0;
  while (go_on && pieces < 100) {
    go_on = splitter.feed(piece, [](std::string_view) { return true; });
    ++pieces;
  }
  CHECK(pieces == 11);
  CHECK_FALSE(splitter.error().empty());
}

TEST_CASE("a peer that does not answer is an error after the time-out, which names it") {
  SilentPeer peer;
  const HttpClient client(local(peer.port()), {}, {1000, 100});
  const int64_t begin_ns = monotonic_ns();
  const auto response = client.get("/livez");
  REQUIRE_FALSE(response.ok());
  CHECK(response.message().find("127.0.0.1:" + std::to_string(peer.port())) != std::string::npos);
  CHECK(response.message().find("100 ms") != std::string::npos);
  CHECK(monotonic_ns() - begin_ns < 2 * kNsPerSecond);
}

TEST_CASE("nobody there is an error that says so") {
  uint16_t port = 0;
  {
    const SilentPeer peer;
    port = peer.port();
  }
  const auto response = HttpClient(local(port)).get("/livez");
  REQUIRE_FALSE(response.ok());
  CHECK(response.message().find("refused") != std::string::npos);
}

TEST_CASE("an answer that breaks off is an error") {
  for (const char* answer :
       {"", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: "
        "chunked\r\n\r\n9\r\ndata: a\n\n\r\n",
        "nonsense\r\n\r\n"}) {
    SilentPeer peer;
    std::thread server([&] {
      const int fd = accept(peer.fd(), nullptr, nullptr);
      char request[4096];
      (void)!recv(fd, request, sizeof request, 0);
      (void)!send(fd, answer, std::string_view(answer).size(), MSG_NOSIGNAL);
      close(fd);
    });
    const auto response =
        HttpClient(local(peer.port())).post_events("/x", "{}", [](std::string_view) {
          return true;
        });
    server.join();
    CHECK_MESSAGE(!response.ok(), answer);
  }
}

TEST_CASE("leaving a stream from the callback cancels it at the server") {
  FakeService service;
  service.hold();
  const auto metrics = Metrics::create();
  auto server = HttpServer::start({}, service, *metrics, {});
  REQUIRE(server);
  std::thread feeder([&] {
    const auto request = service.wait_request();
    if (!request) return;
    service.send(request->id, started_event());
    service.send(request->id, text_chunk("first"));
  });
  std::vector<std::string> seen;
  const auto response =
      HttpClient(local((*server)->port()), {}, {1000, 5000})
          .post_events(
              "/v1/chat/completions",
              R"({"model":"demo","stream":true,"messages":[{"role":"user","content":"Hi"}]})",
              [&](std::string_view data) {
                seen.emplace_back(data);
                return seen.size() < 2;
              });
  feeder.join();
  REQUIRE(response.ok());
  CHECK(seen.size() == 2);
  CHECK(service.wait_cancelled(service.wait_request()->id, 500));
}

TEST_CASE("headers that would become two are refused") {
  const auto response = HttpClient(local(1), {{"Authorization", "a\r\nX: b"}}).get("/livez");
  REQUIRE_FALSE(response.ok());
  CHECK(response.message().find("line end") != std::string::npos);
}
