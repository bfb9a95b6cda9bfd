// The server against clients that leave, dawdle, flood or lie: every limit has its answer, and the
// server still serves.
#include <doctest/doctest.h>
#include <sys/resource.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <cstdio>
#include <thread>

#include "common/http/client.h"
#include "common/http/server.h"
#include "tests/common/http/fake_service.h"
#include "tests/common/http/raw_socket.h"
#include "tests/support/resident_memory.h"

using namespace updraft;
using namespace updraft::testing;
namespace json = boost::json;

namespace {

const std::string kChatBody = R"({"model":"demo","messages":[{"role":"user","content":"Hi"}]})";
const std::string kStreamBody =
    R"({"model":"demo","stream":true,"messages":[{"role":"user","content":"Hi"}]})";

struct Fixture {
  FakeService service;
  std::unique_ptr<Metrics> metrics = Metrics::create();
  HttpServerConfig config;
  std::unique_ptr<HttpServer> server;

  ~Fixture() { server.reset(); }
  void start() {
    auto started = HttpServer::start(config, service, *metrics, {});
    REQUIRE_MESSAGE(started.ok(), started.message());
    server = std::move(*started);
  }
  uint16_t port() const { return server->port(); }
  // A fresh connection is still answered.
  bool alive() {
    RawSocket probe(port());
    probe.send_all("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    probe.read_to_end(1000);
    return status_of(probe.received()) == 200;
  }
  // Sends the bytes on a fresh connection; the status of the first answer, 0 for none.
  int ask(std::string_view bytes) {
    RawSocket socket(port());
    socket.send_all(bytes);
    socket.read_until("\r\n\r\n", 2000);
    return status_of(socket.received());
  }
};

std::string post(const std::string& path, const std::string& body, const std::string& more = "") {
  return "POST " + path +
         " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n" + more + "\r\n" + body;
}
std::string chat(const std::string& body, const std::string& more = "") {
  return post("/v1/chat/completions", body, more);
}
std::string get(const std::string& path, const std::string& more = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + more + "\r\n";
}

size_t count_of(const std::string& text, const std::string& what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("two readings of a request are refused instead of guessed") {
  Fixture f;
  f.start();
  const std::string start = "POST /v1/chat/completions HTTP/1.1\r\n";
  const std::string host = "Host: localhost\r\n";
  const std::string json_type = "Content-Type: application/json\r\n";
  const std::string body = kChatBody;
  const std::string length = "Content-Length: " + std::to_string(body.size()) + "\r\n";
  CHECK(f.ask(start + host + json_type + length + "\r\n" + body) == 200);
  CHECK(f.ask(start + json_type + length + "\r\n" + body) == 400);                // no Host
  CHECK(f.ask(start + host + host + json_type + length + "\r\n" + body) == 400);  // two
  CHECK(f.ask(start + host + json_type + length + length + "\r\n" + body) == 400);
  CHECK(f.ask(start + host + json_type + "Content-Length: +5\r\n\r\n" + body) == 400);
  CHECK(f.ask(start + host + json_type + "Content-Length: 5, 5\r\n\r\n" + body) == 400);
  CHECK(f.ask(start + host + json_type + length + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n") ==
        400);
  for (const char* encoding :
       {"xchunked", "chunked, identity", "identity", "chunked, chunked", "gzip, chunked", ""}) {
    CHECK_MESSAGE(f.ask(start + host + json_type + "Transfer-Encoding: " + encoding +
                        "\r\n\r\n0\r\n\r\n") == 501,
                  encoding);
  }
  CHECK(f.ask(start + host + json_type + "X-A: b\r\n folded\r\n" + length + "\r\n" + body) == 400);
  CHECK(f.ask(start + host + json_type + "X-A : b\r\n" + length + "\r\n" + body) == 400);
  CHECK(f.ask(start + host + json_type + "X-A: b\nX-B: c\r\n" + length + "\r\n" + body) == 400);
  CHECK(f.ask(start + host + json_type + "X-A: b\rc\r\n" + length + "\r\n" + body) == 400);
  CHECK(f.ask(start + host + json_type + std::string("X-A: b\0c\r\n", 10) + length + "\r\n" +
              body) == 400);
  CHECK(f.ask("GET /livez HTTP/1.1\nHost: localhost\n\n") == 400);
  CHECK(f.ask("GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n") == 505);
  CHECK(f.ask("GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n") == 400);
  CHECK(f.ask("GET /a/../livez HTTP/1.1\r\nHost: localhost\r\n\r\n") == 400);
  CHECK(f.ask("GET /%2e%2e/livez HTTP/1.1\r\nHost: localhost\r\n\r\n") == 400);
  CHECK(f.ask("GET /livez%00 HTTP/1.1\r\nHost: localhost\r\n\r\n") == 400);
  CHECK(f.ask(std::string("\x16\x03\x01\x02\x00\x01\x00\x01", 8)) == 400);  // a TLS hello
  CHECK(f.alive());
}

TEST_CASE("limits of the head: bytes and number of headers") {
  Fixture f;
  f.start();
  std::string many;
  for (int i = 0; i < 64; ++i) many += "x-" + std::to_string(i) + ": 1\r\n";
  CHECK(f.ask(get("/livez", many)) == 431);  // with Host 65
  CHECK(f.ask(get("/livez", many.substr(many.find('\n') + 1))) == 200);
  CHECK(f.ask(get("/livez", "x: " + std::string(8192, 'a') + "\r\n")) == 431);
  CHECK(f.ask("GET /" + std::string(20000, 'a')) == 431);  // never ends
  CHECK(f.ask(get("/livez", "x: " + std::string(8000, 'a') + "\r\n")) == 200);
}

TEST_CASE("a body that is announced too large is refused before it is sent") {
  Fixture f;
  f.start();
  CHECK(f.ask("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
              "application/json\r\n"
              "Content-Length: 16777217\r\n\r\n") == 413);
  CHECK(f.ask("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
              "application/json\r\n"
              "Content-Length: 999999999999999999\r\n\r\n") == 413);
}

TEST_CASE("a client that sends a too large body anyway still reads the answer") {
  Fixture f;
  f.config.limits.body_bytes_max = 100'000;
  f.start();
  RawSocket socket(f.port());
  const std::string body(4'000'000, 'x');
  CHECK(socket.send_all(post("/v1/chat/completions", body)));
  socket.end_sending();
  CHECK(socket.read_to_end());
  CHECK_FALSE(socket.was_reset());
  CHECK(status_of(socket.received()) == 413);
  // The same in chunks, where nothing is announced.
  RawSocket chunked(f.port());
  chunked.send_all(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Transfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 20; ++i) chunked.send_all("2710\r\n" + std::string(10'000, 'x') + "\r\n");
  CHECK(chunked.read_to_end());
  CHECK(status_of(chunked.received()) == 413);
}

TEST_CASE("bodies in chunks are read, with extensions and trailers") {
  Fixture f;
  f.start();
  const std::string head =
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
  std::string body;
  for (const char c : kChatBody) body += std::string("1;a=b\r\n") + c + "\r\n";
  CHECK(f.ask(head + body + "0\r\nX-Trailer: 1\r\n\r\n") == 200);
  CHECK(f.ask(head + "zz\r\n") == 400);
  CHECK(f.ask(head + "ffffffffffffffffff\r\n") == 400);
  CHECK(f.ask(head + "2\r\n{}X\r\n0\r\n\r\n") == 400);
  CHECK(f.ask(head + "2;" + std::string(100'000, 'a')) == 400);
  CHECK(f.ask(head + "0\r\n" + std::string(100'000, 'a')) == 400);
}

TEST_CASE("Expect: 100-continue is answered before the body, or refused without it") {
  Fixture f;
  f.start();
  RawSocket socket(f.port());
  const std::string request = chat(kChatBody, "Expect: 100-continue\r\n");
  socket.send_all(request.substr(0, request.size() - kChatBody.size()));
  CHECK(socket.read_until("\r\n\r\n").starts_with("HTTP/1.1 100 Continue\r\n\r\n"));
  socket.forget();
  socket.send_all(kChatBody);
  CHECK(status_of(socket.read_until("\r\n\r\n")) == 200);
  CHECK(f.ask("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nExpect: "
              "100-continue\r\nContent-Length: 5\r\n\r\n") == 404);
  CHECK(f.ask("GET /livez HTTP/1.1\r\nHost: localhost\r\nExpect: wonders\r\n\r\n") == 417);
}

TEST_CASE("pipelined requests are answered in their order") {
  Fixture f;
  f.start();
  RawSocket socket(f.port());
  socket.send_all(get("/livez") + chat(kChatBody) + get("/nothing") + chat(kStreamBody) +
                  get("/readyz", "Connection: close\r\n"));
  CHECK(socket.read_to_end());
  const std::string& all = socket.received();
  CHECK(count_of(all, "HTTP/1.1 ") == 5);
  const size_t first = all.find("ok\n");
  const size_t second = all.find("chat.completion\"");
  const size_t third = all.find("404 Not Found");
  const size_t fourth = all.find("[DONE]");
  CHECK(first < second);
  CHECK(second < third);
  CHECK(third < fourth);
  CHECK(fourth < all.rfind("ok\n"));
}

TEST_CASE("thousands of pipelined requests neither nest nor stall") {
  Fixture f;
  f.start();
  RawSocket socket(f.port());
  std::string row;
  for (int i = 0; i < 2000; ++i) row += get("/livez");
  row += get("/livez", "Connection: close\r\n");
  std::thread sender([&] { socket.send_all(row); });
  CHECK(socket.read_to_end(20000));
  sender.join();
  CHECK(count_of(socket.received(), "HTTP/1.1 200") == 2001);
}

TEST_CASE("HTTP/1.0 gets an answer without chunks, ended by the connection's end") {
  Fixture f;
  f.start();
  RawSocket socket(f.port());
  std::string request = chat(kStreamBody);
  request.replace(request.find("HTTP/1.1"), 8, "HTTP/1.0");
  socket.send_all(request);
  CHECK(socket.read_to_end());
  CHECK(socket.received().find("Transfer-Encoding") == std::string::npos);
  CHECK(socket.received().ends_with("data: [DONE]\n\n"));
  CHECK(socket.received().find("\r\n\r\ndata: {") != std::string::npos);
}

TEST_CASE("HEAD has the head of GET and no body") {
  Fixture f;
  f.start();
  RawSocket socket(f.port());
  socket.send_all("HEAD /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  CHECK(socket.read_to_end());
  CHECK(status_of(socket.received()) == 200);
  CHECK(socket.received().ends_with("\r\n\r\n"));
  CHECK(socket.received().find("Content-Length: 0\r\n") == std::string::npos);
}

TEST_CASE("a client that leaves its stream is noticed within 500 ms and its request cancelled") {
  Fixture f;
  f.service.hold();
  f.start();
  for (const bool by_reset : {false, true}) {
    const size_t index = f.service.request_count();
    RawSocket socket(f.port());
    socket.send_all(chat(kStreamBody));
    const auto request = f.service.wait_request(index);
    REQUIRE(request);
    f.service.send(request->id, started_event());
    socket.read_until("assistant");
    by_reset ? socket.reset() : socket.close();
    CHECK(f.service.wait_cancelled(request->id, 500));
    f.service.send(request->id, text_chunk("late"));  // swallowed
  }
}

TEST_CASE(
    "a client that leaves before a whole answer is ready cancels it as well (LiteLLM #37140)") {
  Fixture f;
  f.service.hold();
  f.start();
  RawSocket socket(f.port());
  socket.send_all(chat(kChatBody));
  const auto request = f.service.wait_request();
  REQUIRE(request);
  socket.close();
  CHECK(f.service.wait_cancelled(request->id, 500));
}

TEST_CASE("an answered request is never cancelled") {
  Fixture f;
  f.start();
  CHECK(f.ask(chat(kChatBody)) == 200);
  CHECK(f.ask(chat(kStreamBody)) == 200);
  CHECK(f.alive());
  CHECK(f.service.cancel_count() == 0);
}

TEST_CASE("a reader slower than the model loses its stream, not the server its memory") {
  Fixture f;
  f.service.hold();
  f.config.limits.stream_buffer_bytes_max = 64 * 1024;
  f.config.limits.write_stall_timeout_ms = 60'000;  // so that it is the cap that acts
  f.start();
  RawSocket slow(f.port(), 4096);
  slow.send_all(chat(kStreamBody));
  const auto request = f.service.wait_request();
  REQUIRE(request);
  f.service.send(request->id, started_event());
  const std::string text(8 * 1024, 'x');
  int sent = 0;
  while (sent < 2000 && f.service.cancel_count() == 0) {
    f.service.send(request->id, text_chunk(text, sent));
    if (++sent % 8 == 0) CHECK(f.alive());  // also lets the io thread catch up
  }
  CHECK(f.service.wait_cancelled(request->id, 2000));
  CHECK(sent * text.size() <
        4 * 1024 * 1024);  // the cap and the kernel's two buffers, not the whole answer
  // What it may still read ends with the reason and without [DONE].
  CHECK(slow.read_to_end(10000));
  CHECK(slow.received().find("read too slowly") != std::string::npos);
  CHECK(slow.received().find("[DONE]") == std::string::npos);
}

TEST_CASE("a reader that takes nothing is closed after the stall time") {
  Fixture f;
  f.service.hold();
  f.config.limits.stream_buffer_bytes_max = 64 * 1024 * 1024;
  f.config.limits.write_stall_timeout_ms = 200;
  f.start();
  RawSocket slow(f.port(), 4096);
  slow.send_all(chat(kStreamBody));
  const auto request = f.service.wait_request();
  REQUIRE(request);
  f.service.send(request->id, text_chunk(std::string(8 * 1024 * 1024, 'x')));
  CHECK(f.service.wait_cancelled(request->id, 3000));
}

TEST_CASE("a request that does not end in time is answered 408") {
  Fixture f;
  f.config.limits.request_read_timeout_ms = 150;
  f.start();
  for (const std::string& part : {std::string("GET /liv"), chat(kChatBody).substr(0, 150)}) {
    RawSocket socket(f.port());
    socket.send_all(part);
    CHECK(socket.read_to_end(3000));
    CHECK(status_of(socket.received()) == 408);
  }
  // Drop by drop does not help.
  RawSocket dripping(f.port());
  const int64_t begin_ns = monotonic_ns();
  while (!dripping.closed() && monotonic_ns() - begin_ns < 3 * kNsPerSecond) {
    if (!dripping.send_all("G")) break;
    dripping.read_until("never", 20);
  }
  CHECK(status_of(dripping.received()) == 408);
  CHECK(monotonic_ns() - begin_ns < 2500 * kNsPerMs);
}

TEST_CASE("an idle connection is closed after its time") {
  Fixture f;
  f.config.limits.idle_timeout_ms = 100;
  f.start();
  RawSocket socket(f.port());
  CHECK(socket.read_to_end(3000));
  CHECK(socket.received().empty());
}

TEST_CASE("a stream without news sends comments") {
  Fixture f;
  f.service.hold();
  f.config.limits.sse_keepalive_ms = 50;
  f.start();
  RawSocket socket(f.port());
  socket.send_all(chat(kStreamBody));
  const auto request = f.service.wait_request();
  REQUIRE(request);
  f.service.send(request->id, started_event());
  socket.read_until(": keep-alive\n\n");
  socket.forget();
  CHECK(socket.read_until(": keep-alive\n\n").find(": keep-alive\n\n") != std::string::npos);
  f.service.send(request->id, text_chunk("x"));
  f.service.send(request->id, last_chunk());
  f.service.send(request->id, finished_event());
  CHECK(socket.read_until("[DONE]").find("[DONE]") != std::string::npos);
}

TEST_CASE("one connection too many gets a 503, and the others stay") {
  Fixture f;
  f.config.limits.connections_max = 2;
  f.start();
  RawSocket first(f.port());
  RawSocket second(f.port());
  first.send_all(get("/livez"));
  second.send_all(get("/livez"));
  CHECK(status_of(first.read_until("ok\n")) == 200);
  CHECK(status_of(second.read_until("ok\n")) == 200);
  RawSocket third(f.port());
  third.send_all(get("/livez"));
  CHECK(third.read_to_end());
  CHECK(status_of(third.received()) == 503);
  CHECK(third.received().find("Retry-After: 1\r\n") != std::string::npos);
  first.forget();
  first.send_all(get("/livez"));
  CHECK(status_of(first.read_until("ok\n")) == 200);
}

TEST_CASE("bodies beyond the common budget are refused, and the budget comes back") {
  Fixture f;
  f.config.limits.bodies_bytes_max = 300'000;
  f.start();
  RawSocket first(f.port());
  RawSocket second(f.port());
  const std::string half = chat(std::string(400'000, ' ')).substr(0, 200'000);
  first.send_all(half);
  second.send_all(half);
  // Which of the two crosses the line depends on their order.
  const int64_t end_ns = monotonic_ns() + 5 * kNsPerSecond;
  while (first.received().empty() && second.received().empty() && monotonic_ns() < end_ns) {
    first.read_until("\r\n\r\n", 10);
    second.read_until("\r\n\r\n", 10);
  }
  CHECK(status_of(first.received()) + status_of(second.received()) == 503);
  first.close();
  second.close();
  CHECK(f.ask(chat(kChatBody + std::string(150'000, ' '))) == 200);
}

TEST_CASE("stop lets an open answer end, refuses new work and then closes") {
  Fixture f;
  f.service.hold();
  f.start();
  RawSocket open(f.port());
  RawSocket idle(f.port());
  open.send_all(chat(kStreamBody));
  const auto request = f.service.wait_request();
  REQUIRE(request);
  f.service.send(request->id, started_event());
  open.read_until("assistant");
  std::thread stopper([&] { f.server->stop(10000); });
  CHECK(idle.read_to_end(3000));  // closed at once: the drain has begun
  f.service.send(request->id, text_chunk("end"));
  f.service.send(request->id, last_chunk());
  f.service.send(request->id, finished_event());
  CHECK(open.read_to_end(3000));
  stopper.join();
  CHECK(open.received().find("[DONE]") != std::string::npos);
  CHECK(f.service.cancel_count() == 0);
  CHECK_THROWS(RawSocket(f.port()));
}

TEST_CASE("what is open when the grace is over ends with an error event and is cancelled") {
  Fixture f;
  f.service.hold();
  f.start();
  RawSocket stream(f.port());
  RawSocket whole(f.port());
  stream.send_all(chat(kStreamBody));
  const auto request = f.service.wait_request();
  REQUIRE(request);
  f.service.send(request->id, started_event());
  stream.read_until("assistant");
  whole.send_all(chat(kChatBody));
  REQUIRE(f.service.wait_request(1));
  f.server->stop(50);
  CHECK(stream.read_to_end(3000));
  CHECK(stream.received().find("data: {\"error\":") != std::string::npos);
  CHECK(stream.received().find("[DONE]") == std::string::npos);
  CHECK(whole.read_to_end(3000));
  CHECK(status_of(whole.received()) == 503);
  CHECK(f.service.cancel_count() == 2);
  f.server.reset();
  f.service.send(request->id, text_chunk("after the server"));  // swallowed
}

TEST_CASE("events from many threads reach many streams, each complete") {
  constexpr int kStreams = 32;
  constexpr int kTokens = 50;
  Fixture f;
  std::vector<std::thread> workers;
  std::mutex workers_mutex;
  f.service.answer = [&](const Request&, const EventSink& sink) {
    const std::lock_guard lock(workers_mutex);
    workers.emplace_back([sink] {
      sink(started_event());
      for (int i = 0; i < kTokens; ++i) sink(text_chunk("t" + std::to_string(i) + " ", i));
      sink(last_chunk());
      sink(finished_event());
    });
  };
  f.start();
  std::string expected;
  for (int i = 0; i < kTokens; ++i) expected += "t" + std::to_string(i) + " ";
  std::vector<std::unique_ptr<RawSocket>> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.push_back(std::make_unique<RawSocket>(f.port()));
    clients.back()->send_all(chat(kStreamBody, "Connection: close\r\n"));
  }
  for (auto& client : clients) {
    REQUIRE(client->read_to_end(10000));
    std::string text;
    EventSplitter splitter;
    // Chunk sizes stand on lines of their own, which are no fields of an event.
    splitter.feed(client->received(), [&](std::string_view data) {
      if (data == "[DONE]") return true;
      const json::value event = json::parse(json::string_view(data.data(), data.size()));
      const auto& delta = event.at("choices").at(0).at("delta").as_object();
      if (const auto* content = delta.if_contains("content")) text += content->as_string();
      return true;
    });
    CHECK(text == expected);
  }
  const std::lock_guard lock(workers_mutex);
  for (auto& worker : workers) worker.join();
}

TEST_CASE("idle connections cost little memory") {
  Fixture f;
  f.start();
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  const int count = limit.rlim_cur > 4500 ? 2000 : static_cast<int>(limit.rlim_cur / 2) - 100;
  std::vector<std::unique_ptr<RawSocket>> warm;
  warm.push_back(std::make_unique<RawSocket>(f.port()));
  const int64_t before = resident_bytes();
  std::vector<std::unique_ptr<RawSocket>> clients;
  for (int i = 0; i < count; ++i) {
    clients.push_back(std::make_unique<RawSocket>(f.port()));
    REQUIRE(clients.back()->send_all(get("/livez")));  // has served once and waits for more
  }
  for (auto& client : clients) REQUIRE(status_of(client->read_until("ok\n")) == 200);
  const double per_connection_kib = static_cast<double>(resident_bytes() - before) / 1024 / count;
  std::printf("%d idle connections: %.2f KiB each, both ends\n", count, per_connection_kib);
  if (kMemoryIsMeant) CHECK(per_connection_kib < 16.0);
  CHECK(f.alive());
}
