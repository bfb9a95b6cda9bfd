// TLS: the session against OpenSSL's own client through Boost.Asio, over real sockets. The
// certificates are golden/tls_*.pem (make_certificates.py).
#include "common/http/tls.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "common/http/client.h"
#include "tests/common/http/http_fixture.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;
namespace asio = boost::asio;

namespace {

// The golden files with the modes that secrets need.
struct CertFolder {
  TempDir dir;
  std::string cert = dir.file("cert.pem");
  std::string key = dir.file("key.pem");
  explicit CertFolder(const std::string& name = "first") { use(name); }
  void use(const std::string& name) const {
    const auto golden = [&](const char* what) {
      return repo_file("tests/common/http/golden/tls_" + name + "_" + what + ".pem");
    };
    constexpr auto kReplace = std::filesystem::copy_options::overwrite_existing;
    std::filesystem::copy_file(golden("cert"), cert, kReplace);
    std::filesystem::copy_file(golden("key"), key, kReplace);
    REQUIRE(chmod(cert.c_str(), 0644) == 0);
    REQUIRE(chmod(key.c_str(), 0600) == 0);
  }
};

struct TlsFixture : HttpFixture {
  CertFolder files;
  TlsFixture() {
    config.tls_cert_file = files.cert;
    config.tls_key_file = files.key;
  }
};

// A client that trusts one golden certificate.
class TlsClient {
 public:
  TlsClient(uint16_t port, const std::string& trusted,
            asio::ssl::context::method method = asio::ssl::context::tls_client)
      : context_(method), stream_(io_, context_) {
    context_.load_verify_file(repo_file("tests/common/http/golden/tls_" + trusted + "_cert.pem"));
    stream_.set_verify_mode(asio::ssl::verify_peer);
    stream_.set_verify_callback(asio::ssl::host_name_verification("localhost"));
    stream_.lowest_layer().connect({asio::ip::address_v4::loopback(), port});
    timeval limit{10, 0};
    setsockopt(stream_.lowest_layer().native_handle(), SOL_SOCKET, SO_RCVTIMEO, &limit,
               sizeof limit);
  }
  SSL* native() { return stream_.native_handle(); }
  boost::system::error_code handshake() {
    boost::system::error_code ec;
    stream_.handshake(asio::ssl::stream_base::client, ec);
    return ec;
  }
  void send(const std::string& bytes) { asio::write(stream_, asio::buffer(bytes)); }
  const std::string& read_until(const std::string& text) {
    boost::system::error_code ec;
    char buffer[16384];
    while (received_.find(text) == std::string::npos && !ec) {
      const size_t got = stream_.read_some(asio::buffer(buffer), ec);
      received_.append(buffer, got);
    }
    end_ = ec;
    return received_;
  }
  boost::system::error_code end() const { return end_; }
  void forget() { received_.clear(); }

 private:
  asio::io_context io_;
  asio::ssl::context context_;
  asio::ssl::stream<asio::ip::tcp::socket> stream_;
  std::string received_;
  boost::system::error_code end_;
};

const std::string kGet = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n";

}  // namespace

TEST_CASE("requests, streams and keep-alive work over TLS as without") {
  TlsFixture f;
  f.start();
  TlsClient client(f.server->port(), "first");
  REQUIRE(!client.handshake());
  for (int i = 0; i < 3; ++i) {
    client.forget();
    client.send(raw_post(kChatPath, kStreamBody));
    CHECK(status_of(client.read_until("0\r\n\r\n")) == 200);
    CHECK(client.read_until("").find("[DONE]") != std::string::npos);
  }
  client.forget();
  client.send(kGet + kGet + "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  client.read_until("\r\n\r\nok\n");
  client.read_until("never");
  // The server said goodbye before it closed: nothing was cut off.
  CHECK(client.end() == asio::error::eof);
}

TEST_CASE("a body of megabytes and an answer of megabytes come through whole") {
  TlsFixture f;
  f.config.limits.stream_buffer_bytes_max = 64 << 20;
  const std::string piece(40'000, 'y');
  f.service.answer = [&](const Request& request, const EventSink& sink) {
    CHECK(prompt_text_bytes(request) > 5'000'000);
    sink(started_event());
    for (int i = 0; i < 100; ++i) sink(text_chunk(piece, i));
    sink(last_chunk());
    sink(finished_event());
  };
  f.start();
  TlsClient client(f.server->port(), "first");
  REQUIRE(!client.handshake());
  const std::string text(5'000'001, 'x');
  client.send(raw_post(kChatPath, R"({"model":"demo","stream":true,"messages":[{"role":"user",)"
                                  R"("content":")" +
                                      text + R"("}]})"));
  const std::string& answer = client.read_until("0\r\n\r\n");
  size_t found = 0;
  for (size_t at = answer.find(piece); at != std::string::npos; at = answer.find(piece, at + 1))
    ++found;
  CHECK(found == 100);
  CHECK(answer.find("[DONE]") != std::string::npos);
}

TEST_CASE("TLS 1.2 and 1.3 are spoken, 1.1 is not") {
  TlsFixture f;
  f.start();
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClient client(f.server->port(), "first");
    SSL_set_min_proto_version(client.native(), version);
    SSL_set_max_proto_version(client.native(), version);
    REQUIRE(!client.handshake());
    client.send(kGet);
    CHECK(status_of(client.read_until("demo")) == 200);
  }
  TlsClient old(f.server->port(), "first");
  SSL_set_security_level(old.native(), 0);
  SSL_set_min_proto_version(old.native(), TLS1_1_VERSION);
  SSL_set_max_proto_version(old.native(), TLS1_1_VERSION);
  CHECK(old.handshake());
}

TEST_CASE("HTTP/1.1 is chosen where a client offers more") {
  TlsFixture f;
  f.start();
  TlsClient client(f.server->port(), "first");
  const unsigned char offers[] = "\x02h2\x08http/1.1";
  SSL_set_alpn_protos(client.native(), offers, sizeof offers - 1);
  REQUIRE(!client.handshake());
  const unsigned char* chosen = nullptr;
  unsigned int size = 0;
  SSL_get0_alpn_selected(client.native(), &chosen, &size);
  CHECK(std::string(reinterpret_cast<const char*>(chosen), size) == "http/1.1");
}

TEST_CASE("plain HTTP to a TLS port is told so, other bytes are closed, the server goes on") {
  TlsFixture f;
  f.start();
  RawSocket plain(f.server->port());
  REQUIRE(plain.send_all(kGet));
  CHECK(plain.read_to_end());
  CHECK(status_of(plain.received()) == 400);
  CHECK(plain.received().find("HTTPS") != std::string::npos);
  for (const std::string& bytes :
       {std::string("\x16\x03\x01\xff\xff", 5) + std::string(70'000, 'z'), std::string(100, '\0'),
        std::string("hello, is anybody there\r\n")}) {
    RawSocket broken(f.server->port());
    (void)broken.send_all(bytes);
    CHECK(broken.read_to_end());
    CHECK(status_of(broken.received()) == 0);
  }
  TlsClient client(f.server->port(), "first");
  REQUIRE(!client.handshake());
  client.send(kGet);
  CHECK(status_of(client.read_until("demo")) == 200);
}

TEST_CASE("a client that leaves a TLS stream is noticed and its request cancelled") {
  TlsFixture f;
  f.service.hold();
  f.start();
  {
    TlsClient client(f.server->port(), "first");
    REQUIRE(!client.handshake());
    client.send(raw_post(kChatPath, kStreamBody));
    const auto request = f.service.wait_request(0);
    REQUIRE(request);
    f.service.send(request->id, started_event());
    client.read_until("assistant");
  }
  CHECK(f.service.wait_cancelled(f.service.wait_request(0)->id, 5000));
}

TEST_CASE("a handshake that does not go on is closed in the time of a request") {
  TlsFixture f;
  f.config.limits.request_read_timeout_ms = 200;
  f.start();
  RawSocket silent(f.server->port());
  CHECK(silent.read_to_end(10'000));
  RawSocket slow(f.server->port());
  REQUIRE(slow.send_all(std::string("\x16\x03\x01\x02", 4)));
  CHECK(slow.read_to_end(10'000));
}

TEST_CASE("a new certificate is served to new connections, old ones go on") {
  TlsFixture f;
  f.start();
  TlsClient old(f.server->port(), "first");
  REQUIRE(!old.handshake());
  f.files.use("second");
  REQUIRE(f.server->reconfigure(f.config).ok());
  TlsClient mistrusting(f.server->port(), "first");
  CHECK(mistrusting.handshake());
  TlsClient fresh(f.server->port(), "second");
  REQUIRE(!fresh.handshake());
  fresh.send(kGet);
  CHECK(status_of(fresh.read_until("demo")) == 200);
  old.send(kGet);
  CHECK(status_of(old.read_until("demo")) == 200);
  // A broken pair changes nothing.
  std::filesystem::copy_file(repo_file("tests/common/http/golden/tls_first_key.pem"), f.files.key,
                             std::filesystem::copy_options::overwrite_existing);
  REQUIRE(chmod(f.files.key.c_str(), 0600) == 0);
  CHECK_FALSE(f.server->reconfigure(f.config).ok());
  TlsClient still(f.server->port(), "second");
  CHECK(!still.handshake());
}

TEST_CASE("files that cannot serve are refused by name") {
  const auto refusal = [](const CertFolder& files) {
    return TlsContext::load(files.cert, files.key).message();
  };
  CHECK(refusal(CertFolder()).empty());
  CHECK(refusal(CertFolder("expired")).find("expired") != std::string::npos);
  CertFolder open_key;
  REQUIRE(chmod(open_key.key.c_str(), 0640) == 0);
  CHECK(refusal(open_key).find("chmod 600") != std::string::npos);
  CertFolder missing;
  std::filesystem::remove(missing.key);
  CHECK(refusal(missing).find(missing.key) != std::string::npos);
  CertFolder mixed;
  std::filesystem::copy_file(repo_file("tests/common/http/golden/tls_second_cert.pem"), mixed.cert,
                             std::filesystem::copy_options::overwrite_existing);
  CHECK(refusal(mixed).find("not the private key of") != std::string::npos);
  CertFolder swapped;
  std::filesystem::copy_file(swapped.key, swapped.cert,
                             std::filesystem::copy_options::overwrite_existing);
  REQUIRE(chmod(swapped.cert.c_str(), 0600) == 0);
  CHECK(refusal(swapped).find("not a certificate") != std::string::npos);
}

// --- our own client ---

namespace {

HttpClient client_of(uint16_t port, const std::string& trusted,
                     const std::string& host = "localhost") {
  HttpUrl url;
  url.tls = true;
  url.host = host;
  url.port = port;
  std::shared_ptr<const TlsTrust> trust;
  if (!trusted.empty()) {
    auto loaded =
        TlsTrust::load(repo_file("tests/common/http/golden/tls_" + trusted + "_cert.pem"));
    REQUIRE_MESSAGE(loaded.ok(), loaded.message());
    trust = std::move(*loaded);
  }
  return HttpClient(url, {}, {5000, 10'000}, trust);
}

// Accepts one connection, reads what comes and answers `bytes`; then closes.
class OneAnswer {
 public:
  explicit OneAnswer(std::string bytes) : acceptor_(io_, {asio::ip::address_v4::loopback(), 0}) {
    thread_ = std::thread([this, bytes = std::move(bytes)] {
      boost::system::error_code ec;
      asio::ip::tcp::socket socket(io_);
      acceptor_.accept(socket, ec);
      char buffer[4096];
      (void)socket.read_some(asio::buffer(buffer), ec);
      asio::write(socket, asio::buffer(bytes), ec);
    });
  }
  ~OneAnswer() { thread_.join(); }
  uint16_t port() const { return acceptor_.local_endpoint().port(); }

 private:
  asio::io_context io_;
  asio::ip::tcp::acceptor acceptor_;
  std::thread thread_;
};

}  // namespace

TEST_CASE("our client speaks https: whole answers, streams, megabytes both ways") {
  TlsFixture f;
  f.config.limits.stream_buffer_bytes_max = 64 << 20;
  f.start();
  const HttpClient client = client_of(f.server->port(), "first");
  const auto models = client.get("/v1/models");
  REQUIRE_MESSAGE(models.ok(), models.message());
  CHECK(models->status == 200);
  CHECK(models->body.find("\"demo\"") != std::string::npos);
  std::vector<std::string> events;
  const auto streamed = client.post_events(kChatPath, kStreamBody, [&](std::string_view data) {
    events.emplace_back(data);
    return true;
  });
  REQUIRE_MESSAGE(streamed.ok(), streamed.message());
  REQUIRE(events.size() > 2);
  CHECK(events.back() == "[DONE]");
  const std::string piece(40'000, 'y');
  f.service.answer = [&](const Request& request, const EventSink& sink) {
    CHECK(prompt_text_bytes(request) == 3'000'000);
    sink(started_event());
    for (int i = 0; i < 60; ++i) sink(text_chunk(piece, i));
    sink(last_chunk());
    sink(finished_event());
  };
  const auto large =
      client.post_json(kChatPath, R"({"model":"demo","messages":[{"role":"user","content":")" +
                                      std::string(3'000'000, 'x') + R"("}]})");
  REQUIRE_MESSAGE(large.ok(), large.message());
  CHECK(large->body.size() > 60 * piece.size());
  // Leaving a stream cancels it, as without TLS.
  f.service.answer = nullptr;
  f.service.hold();
  std::thread starter([&] {
    const auto request = f.service.wait_request(2);
    if (request) f.service.send(request->id, started_event());
  });
  (void)client.post_events(kChatPath, kStreamBody, [](std::string_view) { return false; });
  starter.join();
  CHECK(f.service.wait_cancelled(f.service.wait_request(2)->id, 5000));
}

TEST_CASE("our client believes no certificate that it cannot check, and says why") {
  TlsFixture f;
  f.start();
  const auto refusal = [&](const HttpClient& client) {
    const auto answer = client.get("/v1/models");
    REQUIRE(!answer.ok());
    CHECK(answer.message().starts_with("https://"));
    return answer.message();
  };
  // Signed by somebody else, by nobody whom the system knows, or made out to another name.
  CHECK(refusal(client_of(f.server->port(), "second")).find("certificate") != std::string::npos);
  CHECK(refusal(client_of(f.server->port(), "")).find("certificate") != std::string::npos);
  CHECK(refusal(client_of(f.server->port(), "first", "127.0.0.1")).find("IP address mismatch") !=
        std::string::npos);
  CHECK(f.service.request_count() == 0);
  CHECK(TlsTrust::load("/nonexistent.pem").message().find("/nonexistent.pem") != std::string::npos);
  CHECK(TlsTrust::load(f.files.key).message().find("no certificate in PEM") != std::string::npos);
  // Other things at that port.
  OneAnswer plain("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
  CHECK(refusal(client_of(plain.port(), "first")).find("TLS handshake") != std::string::npos);
  OneAnswer nothing("");
  CHECK(refusal(client_of(nothing.port(), "first")).find("TLS handshake") != std::string::npos);
  HttpFixture without_tls;
  without_tls.start();
  CHECK(refusal(client_of(without_tls.server->port(), "first")).find("TLS") != std::string::npos);
}

TEST_CASE("our client takes no answer for whole that was cut off under TLS") {
  // A relay that passes so many bytes of the server's on and then closes, without TLS's goodbye.
  TlsFixture f;
  f.service.answer = [](const Request&, const EventSink& sink) {
    sink(started_event());
    sink(text_chunk(std::string(100'000, 'z'), 0));
    sink(last_chunk());
    sink(finished_event());
  };
  f.start();
  asio::io_context io;
  asio::ip::tcp::acceptor acceptor(io, {asio::ip::address_v4::loopback(), 0});
  std::thread relay([&] {
    boost::system::error_code ec;
    asio::ip::tcp::socket near(io), far(io);
    acceptor.accept(near, ec);
    far.connect({asio::ip::address_v4::loopback(), f.server->port()}, ec);
    std::thread up([&] {
      boost::system::error_code error;
      char buffer[16384];
      while (!error) {
        const size_t got = near.read_some(asio::buffer(buffer), error);
        if (!error) asio::write(far, asio::buffer(buffer, got), error);
      }
    });
    char buffer[16384];
    for (size_t passed = 0; passed < 50'000 && !ec;) {
      const size_t got = far.read_some(asio::buffer(buffer), ec);
      if (!ec) passed += asio::write(near, asio::buffer(buffer, got), ec);
    }
    near.shutdown(asio::ip::tcp::socket::shutdown_both, ec);
    up.join();
  });
  const auto answer =
      client_of(acceptor.local_endpoint().port(), "first").post_json(kChatPath, kChatBody);
  relay.join();
  REQUIRE(!answer.ok());
  CHECK(answer.message().find("cut off") != std::string::npos);
}
