// Hostile clients, many at once, against one server: while they do their worst a probe is answered
// within a second, memory grows by 64 MiB at most, and none of them gets an answer to what it
// smuggled. Clients keep little themselves: they live in the same process.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "tests/common/http/http_fixture.h"
#include "tests/support/resident_memory.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int64_t kProbeMsMax = 5000;  // instrumented code is several times slower
#else
constexpr int64_t kProbeMsMax = 1000;
#endif
constexpr int64_t kGrowthBytesMax = 64 << 20;

// Asks for /livez again and again on fresh connections, and watches the memory.
class Probe {
 public:
  explicit Probe(uint16_t port) : begin_(resident_bytes()) {
    thread_ = std::thread([this, port] {
      while (!stop_.load()) {
        const int64_t begin_ns = monotonic_ns();
        RawSocket socket(port);
        socket.send_all("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        socket.read_to_end(10'000);
        if (status_of(socket.received()) == 200) ++answered_;
        worst_ms_ = std::max(worst_ms_, (monotonic_ns() - begin_ns) / kNsPerMs);
        grown_ = std::max(grown_, resident_bytes() - begin_);
        ++asked_;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));  // leaves the server its time
      }
    });
  }
  ~Probe() { end(); }
  void end() {
    stop_.store(true);
    if (thread_.joinable()) thread_.join();
  }
  // What was promised, over all of its time.
  void check() {
    while (asked_.load() < 3) std::this_thread::yield();
    end();
    CHECK(answered_ == asked_.load());
    CHECK(worst_ms_ < kProbeMsMax);
    if (kMemoryIsMeant) CHECK(grown_ < kGrowthBytesMax);
  }

 private:
  const int64_t begin_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  std::atomic<int> asked_{0};
  int answered_ = 0;  // these three: the thread's, read after its end
  int64_t worst_ms_ = 0;
  int64_t grown_ = 0;
};

using Sockets = std::vector<std::unique_ptr<RawSocket>>;

// What the server answers to these bytes, until it closes or says no more for a moment.
std::string answer_to(uint16_t port, const std::string& bytes) {
  RawSocket socket(port);
  (void)socket.send_all(bytes);
  socket.end_sending();
  socket.read_to_end(10'000);
  return socket.received();
}

size_t answers_in(const std::string& text) {
  size_t count = 0;
  for (size_t at = text.find("\r\nDate: "); at != std::string::npos;
       at = text.find("\r\nDate: ", at + 1))
    ++count;
  return count;
}

}  // namespace

TEST_CASE("hundreds of clients that send a byte now and then hold nobody up") {
  HttpFixture f;
  f.keeps_log = false;
  f.config.limits.request_read_timeout_ms = 1500;
  f.start();
  Probe probe(f.server->port());
  Sockets slow;
  for (int i = 0; i < 400; ++i) {
    slow.push_back(std::make_unique<RawSocket>(f.server->port()));
    (void)slow.back()->send_all(i % 2 == 0 ? "POST /v1/chat"
                                           : raw_post(kChatPath, kChatBody).substr(0, 100));
  }
  // Until the server has thrown every one of them out, however much each drips.
  const int64_t until_ns = monotonic_ns() + 60 * kNsPerSecond;
  size_t closed = 0;
  while (closed < slow.size() && monotonic_ns() < until_ns) {
    closed = 0;
    for (auto& socket : slow) {
      if (!socket->closed()) (void)socket->send_all("x");
      closed += socket->read_to_end(2) ? 1 : 0;
    }
  }
  CHECK(closed == slow.size());
  for (auto& socket : slow) {
    const int status = status_of(socket->received());
    CHECK((status == 0 || (status >= 400 && status < 500)));
  }
  probe.check();
}

TEST_CASE(
    "what one reader takes for a body and another for a request is answered once, by a refusal") {
  HttpFixture f;
  f.keeps_log = false;
  f.start();
  Probe probe(f.server->port());
  const std::string inner = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n";
  const std::string size = std::to_string(inner.size() + 5);
  const std::string post =
      "POST " + kChatPath + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
  const std::string chunked_end = "0\r\n\r\n" + inner;
  for (const std::string& bytes : std::initializer_list<std::string>{
           post + "Content-Length: " + size + "\r\nTransfer-Encoding: chunked\r\n\r\n" +
               chunked_end,
           post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + chunked_end,
           post + "Content-Length: 5\r\nContent-Length: " + size + "\r\n\r\n" + chunked_end,
           post + "Content-Length: 5, " + size + "\r\n\r\n" + chunked_end,
           post + "Content-Length: +5\r\n\r\n" + chunked_end,
           post + "Content-Length: 0x5\r\n\r\n" + chunked_end,
           post + "Content-Length: 5 \r\n \r\n\r\n" + chunked_end,
           post + "Content-Length : 5\r\n\r\n" + chunked_end,
           post + "Transfer-Encoding: xchunked\r\n\r\n" + chunked_end,
           post + "Transfer-Encoding: chunked, identity\r\n\r\n" + chunked_end,
           post + "Transfer-Encoding: identity, chunked\r\n\r\n" + chunked_end,
           post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked_end,
           post +
               "Transfer-Encoding: \x0b"
               "chunked\r\n\r\n" +
               chunked_end,
           post + "Transfer-Encoding:\r\n chunked\r\n\r\n" + chunked_end,
           post + "X: a\r\n\tTransfer-Encoding: chunked\r\n\r\n" + chunked_end,
           post + "X: a\nTransfer-Encoding: chunked\r\n\r\n" + chunked_end,
           post + "X: a\rTransfer-Encoding: chunked\r\n\r\n" + chunked_end,
           post + "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + inner,
           post + "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + inner,
           post + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n" + inner,
           post + "Transfer-Encoding: chunked\r\n\r\n1\nX\n0\n\n" + inner,
           "POST " + kChatPath +
               " HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked_end,
           "GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + size + "\r\n\r\n" +
               chunked_end,
           "GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n" + inner,
           "GET /livez HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 5\r\n\r\n" + chunked_end,
           "GET http://evil.example/livez HTTP/1.1\r\nHost: localhost\r\n\r\n" + inner,
           "GET /livez HTTP/1.1\r\n\r\n" + inner,
           "GET /livez\r\n\r\n" + inner,
           "GET /livez HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n" + inner,
           std::string("GET /livez HTTP/1.1\r\nHost: local\0host\r\n\r\n", 41) + inner,
           "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + inner}) {
    const std::string answer = answer_to(f.server->port(), bytes);
    CAPTURE(bytes);
    CAPTURE(answer);
    CHECK(status_of(answer) >= 400);
    CHECK(answers_in(answer) == 1);
    CHECK(answer.find("\"demo\"") == std::string::npos);
  }
  CHECK(f.service.request_count() == 0);
  probe.check();
}

TEST_CASE("strangers cannot make the server hold bodies, and those with a key only so many") {
  HttpFixture f;
  f.keeps_log = false;
  f.config.auth = door_of({api_key("d", Role::kDeveloper)});
  f.config.limits.bodies_bytes_max = 32 << 20;
  f.start();
  Probe probe(f.server->port());
  const std::string piece(256 * 1024, ' ');
  const std::string head =
      "POST " + kChatPath + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
  for (const std::string& fields :
       {std::string("Content-Length: 16000000\r\n\r\n"),
        std::string("Authorization: Bearer d\r\nContent-Length: 16000000\r\n\r\n"),
        std::string("Authorization: Bearer d\r\nTransfer-Encoding: chunked\r\n\r\n40000\r\n")}) {
    Sockets clients;
    for (int i = 0; i < 24; ++i) {
      clients.push_back(std::make_unique<RawSocket>(f.server->port()));
      REQUIRE(clients.back()->send_all(head + fields));
    }
    // As much as each can get rid of before it is refused: up to 4 MiB, 96 in all.
    const std::string bytes =
        fields.find("chunked") == std::string::npos ? piece : piece + "\r\n40000\r\n";
    for (int round = 0; round < 16; ++round) {
      for (auto& client : clients) {
        client->read_until("\r\n\r\n", 2);
        if (client->received().empty() && !client->closed()) (void)client->send_all(bytes);
      }
    }
    const bool has_key = fields.starts_with("Authorization");
    int refused = 0;
    for (auto& client : clients) {
      client->read_until("\r\n\r\n", 2);
      const int status = status_of(client->received());
      if (status == (has_key ? 503 : 401)) ++refused;
      if (!has_key) CHECK(status == 401);
    }
    CHECK(refused > 8);
  }
  const std::string over = "POST " + kChatPath +
                           " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           "Authorization: Bearer d\r\nContent-Length: 99999999999\r\n\r\n";
  CHECK(status_of(answer_to(f.server->port(), over)) == 413);
  probe.check();
}

TEST_CASE("JSON that is deep, wide, double or no text is a 400, whatever it costs others to read") {
  HttpFixture f;
  f.keeps_log = false;
  f.start();
  Probe probe(f.server->port());
  const auto with = [](const std::string& value) {
    return R"({"model":"demo","messages":[{"role":"user","content":"Hi"}],"x":)" + value + "}";
  };
  std::string commas = "[0";
  for (int i = 0; i < 1'100'000; ++i) commas += ",0";
  std::string keys = "{\"k\":0";
  for (int i = 0; i < 5000; ++i) keys += ",\"k" + std::to_string(i) + "\":0";
  for (const std::string& body :
       std::initializer_list<std::string>{std::string(1'000'000, '['),
                                          with(std::string(1'000'000, '[')),
                                          with(std::string(65, '[') + std::string(65, ']')),
                                          with(commas + "]"),
                                          with(keys + "}"),
                                          with("{\"a\":1,\"a\":2}"),
                                          with("\"\xff\""),
                                          with("\"\xc0\xaf\""),
                                          with("\"\xed\xa0\x80\""),
                                          with("\"\xf4\x90\x80\x80\""),
                                          with("\"\\ud800\""),
                                          with("1e400"),
                                          with("NaN"),
                                          with("Infinity"),
                                          with("-"),
                                          with("01"),
                                          with("\"\x01\""),
                                          with("nul"),
                                          with("0") + "{}",
                                          std::string("\xef\xbb\xbf{}"),
                                          std::string(),
                                          "null",
                                          std::string(16, '\0')}) {
    CAPTURE(body.substr(0, 120));
    CHECK(f.post(kChatPath, body).status == 400);
  }
  CHECK(f.post(kChatPath, with(std::string(60, '[') + std::string(60, ']'))).status == 200);
  CHECK(f.service.request_count() == 1);
  probe.check();
}

TEST_CASE("every number that a client may send is refused when it is out of any range") {
  HttpFixture f;
  f.keeps_log = false;
  f.start();
  const char* const fields[] = {"max_tokens",
                                "max_completion_tokens",
                                "n",
                                "best_of",
                                "top_k",
                                "top_logprobs",
                                "min_tokens",
                                "temperature",
                                "top_p",
                                "min_p",
                                "repetition_penalty",
                                "frequency_penalty",
                                "presence_penalty"};
  for (const char* field : fields) {
    for (const char* value : {"2147483648", "9223372036854775808", "-9223372036854775809", "1e400",
                              "NaN", "-2147483649", "\"1\"", "[1]", "1.5e308"}) {
      const std::string body =
          R"({"model":"demo","messages":[{"role":"user","content":"Hi"}],"logprobs":true,")" +
          std::string(field) + "\":" + value + "}";
      CHECK_MESSAGE(f.post(kChatPath, body).status == 400, field << " = " << value);
    }
    // -1 turns top_k off and is a penalty's; everywhere else it is out of range.
    const std::string name = field;
    const bool takes_minus_one =
        name == "top_k" || name == "frequency_penalty" || name == "presence_penalty";
    const std::string body =
        R"({"model":"demo","messages":[{"role":"user","content":"Hi"}],")" + name + "\":-1}";
    CHECK_MESSAGE(f.post(kChatPath, body).status == (takes_minus_one ? 200 : 400), name);
  }
  for (const char* value : {"-1", "9223372036854775808", "1e400", "NaN", "1.5"}) {
    const std::string body =
        R"({"model":"demo","messages":[{"role":"user","content":"Hi"}],"seed":)" +
        std::string(value) + "}";
    CHECK_MESSAGE(f.post(kChatPath, body).status == 400, value);
  }
}

TEST_CASE("floods of heads, chunks, requests and connections end by themselves") {
  HttpFixture f;
  f.keeps_log = false;
  f.config.limits.write_stall_timeout_ms = 500;
  f.config.limits.request_read_timeout_ms = 3000;
  f.start();
  Probe probe(f.server->port());
  std::string many = "GET /livez HTTP/1.1\r\nHost: localhost\r\n";
  for (int i = 0; i < 900; ++i) many += "A: b\r\n";
  CHECK(status_of(answer_to(f.server->port(), many + "\r\n")) == 431);
  CHECK(status_of(answer_to(f.server->port(), "GET /" + std::string(100'000, 'a'))) == 431);
  CHECK(status_of(answer_to(f.server->port(), "GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " +
                                                  std::string(9000, 'a') + "\r\n\r\n")) == 431);
  const std::string chunked = "POST " + kChatPath +
                              " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                              "Transfer-Encoding: chunked\r\n\r\n";
  std::string ones = chunked;
  for (int i = 0; i < 50'000; ++i) ones += "1\r\n \r\n";
  CHECK(status_of(answer_to(f.server->port(), ones + "0\r\n\r\n")) == 400);
  const std::string endless = chunked + "1;" + std::string(200'000, 'e');
  CHECK(status_of(answer_to(f.server->port(), endless)) >= 400);
  std::string trailers = chunked + "1\r\n \r\n0\r\n";
  for (int i = 0; i < 20'000; ++i) trailers += "T: v\r\n";
  CHECK(status_of(answer_to(f.server->port(), trailers + "\r\n")) >= 400);
  {
    // Asks and never reads: its answers fill a bounded buffer, then it is closed.
    RawSocket glutton(f.server->port(), 4096);
    const std::string ask = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n";
    std::string asks;
    for (int i = 0; i < 100; ++i) asks += ask;
    int rounds = 0;
    while (rounds < 100'000 && glutton.send_all(asks)) ++rounds;
    CHECK(rounds < 100'000);
  }
  for (int i = 0; i < 2000; ++i) {
    RawSocket socket(f.server->port());
    if (i % 3 == 0) (void)socket.send_all("GET /livez HT");
    if (i % 3 != 2) socket.reset();
  }
  probe.check();
}
