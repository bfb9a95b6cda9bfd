// The blocking client over Boost.Beast: one io context per call, run until the operation in hand is
// done or its time is up, so that "blocking" never means "for ever".
#include "common/http/client.h"

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <charconv>
#include <chrono>
#include <optional>

#include "common/base/bytes.h"
#include "common/http/strict.h"
#include "common/http/tls.h"

namespace updraft {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr size_t kBodyBytesMax = 256 * 1024 * 1024;
constexpr size_t kEventLineBytesMax = 1024 * 1024;

// One connection and its clock.
class Wire {
 public:
  // trust: null for plain HTTP.
  Wire(const HttpUrl& url, const HttpTimeouts& timeouts, const TlsTrust* trust)
      : url_(url), timeouts_(timeouts), socket_(io_) {
    if (trust != nullptr) tls_.emplace(*trust, url.host);
  }

  Result<void> connect() {
    asio::ip::tcp::resolver resolver(io_);
    error_code ec;
    const auto addresses = resolver.resolve(url_.host, std::to_string(url_.port), ec);
    if (ec) return fail(where() + ": cannot resolve: " + ec.message());
    std::optional<error_code> done;
    asio::async_connect(socket_, addresses, [&](error_code result, const auto&) { done = result; });
    if (auto connected = finish(done, timeouts_.connect_ms, "connecting"); !connected)
      return connected;
    return tls_ ? shake_hands() : Result<void>();
  }

  Result<void> write(std::string_view bytes) {
    if (!tls_) return send(bytes, "sending");
    while (!bytes.empty()) {
      std::string records;
      const size_t taken = tls_->send(bytes, records);
      if (taken == 0) return fail(where() + ": sending: TLS has ended");
      bytes.remove_prefix(taken);
      if (auto sent = send(records, "sending"); !sent) return sent;
    }
    return {};
  }

  // Appends some bytes to `out`; false: the peer closed.
  Result<bool> read_some(std::string& out) {
    const size_t before = out.size();
    while (out.size() == before) {
      if (tls_ended_) return false;
      const auto got = receive(timeouts_.idle_ms, "waiting for the answer");
      if (!got) return got.error();
      if (!tls_) {
        out.append(buffer_, 0, *got);
        return *got > 0;
      }
      // TLS says goodbye before it closes; without, somebody may have cut the answer off.
      if (*got == 0) return fail(where() + ": the connection was cut off");
      if (auto taken = take_records(*got, out); !taken) return taken.error();
    }
    return true;
  }

  std::string where() const { return url_.origin(); }

 private:
  Result<void> shake_hands() {
    std::string early;
    auto taken = take_records(0, early);  // our greeting
    while (taken && !tls_->established()) {
      const auto got = receive(timeouts_.connect_ms, "TLS handshake");
      if (!got) return got.error();
      if (*got == 0) return fail(where() + ": TLS handshake: the connection was closed");
      taken = take_records(*got, early);
    }
    return taken;
  }

  // What came over the wire, `bytes` of buffer_, into plain text; answers what TLS wants answered.
  Result<void> take_records(size_t bytes, std::string& plain) {
    std::string answer;
    const auto state = tls_->receive(std::string_view(buffer_).substr(0, bytes), plain, answer);
    const bool was_established = tls_->established();
    auto sent = answer.empty() ? Result<void>() : send(answer, "sending");
    if (state == TlsSession::State::kBroken) {
      return fail(where() + (was_established ? ": TLS: " : ": TLS handshake: ") + tls_->problem());
    }
    tls_ended_ = state == TlsSession::State::kEnded;
    return sent;
  }

  Result<void> send(std::string_view bytes, const char* doing) {
    std::optional<error_code> done;
    asio::async_write(socket_, asio::buffer(bytes),
                      [&](error_code result, size_t) { done = result; });
    return finish(done, timeouts_.idle_ms, doing);
  }

  // Some bytes into buffer_; 0: the peer closed.
  Result<size_t> receive(int timeout_ms, const char* doing) {
    std::optional<error_code> done;
    size_t bytes = 0;
    socket_.async_read_some(asio::buffer(buffer_), [&](error_code result, size_t count) {
      done = result;
      bytes = count;
    });
    auto waited = finish(done, timeout_ms, doing);
    if (done && (*done == asio::error::eof)) return size_t{0};
    if (!waited) return waited.error();
    return bytes;
  }

  Result<void> finish(std::optional<error_code>& done, int timeout_ms, const char* doing) {
    io_.restart();
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    while (!done && io_.run_one_until(end) > 0) {
    }
    if (!done) {
      error_code ignored;
      socket_.close(ignored);
      io_.restart();
      io_.run();  // the aborted operation must not outlive its buffers
      done = asio::error::timed_out;
      return fail(where() + ": " + doing + " took longer than " + std::to_string(timeout_ms) +
                  " ms");
    }
    if (*done) return fail(where() + ": " + doing + ": " + done->message());
    return {};
  }

  const HttpUrl url_;
  const HttpTimeouts timeouts_;
  asio::io_context io_;
  asio::ip::tcp::socket socket_;
  std::optional<TlsSession> tls_;
  bool tls_ended_ = false;
  std::string buffer_ = std::string(64 * 1024, '\0');
};

bool is_host_char(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' ||
         c == '-' || c == '_';
}

}  // namespace

// --- URL
// ---------------------------------------------------------------------------------------------------------

Result<HttpUrl> HttpUrl::parse(std::string_view text) {
  const std::string shown = "'" + printable(text) + "'";
  const std::string lower = ascii_lower(text.substr(0, 8));
  HttpUrl url;
  url.tls = lower.starts_with("https://");
  if (!url.tls && !lower.starts_with("http://"))
    return fail("a URL must start with http:// or https://, got " + shown);
  if (url.tls) url.port = 443;
  std::string_view rest = text.substr(url.tls ? 8 : 7);
  const size_t path_at = std::min(rest.find('/'), rest.size());
  const std::string_view authority = rest.substr(0, path_at);
  std::string_view path = rest.substr(path_at);

  std::string_view after_host;
  if (authority.starts_with('[')) {
    const size_t close = authority.find(']');
    if (close == std::string_view::npos) return fail("a '[' without ']' in " + shown);
    url.host = authority.substr(1, close - 1);
    after_host = authority.substr(close + 1);
    if (url.host.find_first_not_of("0123456789abcdefABCDEF:.") != std::string::npos)
      url.host.clear();
  } else {
    const size_t colon = std::min(authority.find(':'), authority.size());
    url.host = authority.substr(0, colon);
    after_host = authority.substr(colon);
    if (!std::all_of(url.host.begin(), url.host.end(), is_host_char)) url.host.clear();
  }
  if (url.host.empty()) return fail("no host name in " + shown);
  if (!after_host.empty()) {
    const char* begin = after_host.data() + 1;
    const char* end = after_host.data() + after_host.size();
    unsigned port = 0;
    const auto parsed = std::from_chars(begin, end, port);
    if (after_host[0] != ':' || parsed.ec != std::errc() || parsed.ptr != end || port == 0 ||
        port > 65535) {
      return fail("the port must be 1 to 65535 in " + shown);
    }
    url.port = static_cast<uint16_t>(port);
  }
  while (path.ends_with('/')) path.remove_suffix(1);
  if (!path.empty()) {
    if (path.find('?') != std::string_view::npos) return fail("no query is possible in " + shown);
    if (const auto fault = check_target(path)) return fail(fault->message + " in " + shown);
  }
  url.prefix = path;
  return url;
}

std::string HttpUrl::authority() const {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

std::string HttpUrl::origin() const { return (tls ? "https://" : "http://") + authority(); }

// --- events
// ------------------------------------------------------------------------------------------------------

bool EventSplitter::feed(std::string_view bytes,
                         const std::function<bool(std::string_view)>& on_data) {
  for (size_t at = 0; at < bytes.size();) {
    if (after_cr_ && bytes[at] == '\n') ++at;  // the second half of a CRLF
    after_cr_ = false;
    const size_t end = std::min(bytes.find_first_of("\r\n", at), bytes.size());
    line_.append(bytes, at, end - at);
    if (line_.size() + data_.size() > kEventLineBytesMax) {
      error_ = "an event of more than " + std::to_string(kEventLineBytesMax) + " bytes";
      return false;
    }
    if (end == bytes.size()) return true;
    after_cr_ = bytes[end] == '\r';
    at = end + 1;
    const bool go_on = take_line(line_, on_data);
    line_.clear();
    if (!go_on) return false;
  }
  return true;
}

bool EventSplitter::take_line(std::string_view line,
                              const std::function<bool(std::string_view)>& on_data) {
  if (line.empty()) {
    if (!has_data_) return true;
    has_data_ = false;
    const std::string data = std::exchange(data_, {});
    return on_data(data);
  }
  const size_t colon = std::min(line.find(':'), line.size());
  if (line.substr(0, colon) != "data")
    return true;  // a comment, or a field that OpenAI's streams do not use
  std::string_view value = colon < line.size() ? line.substr(colon + 1) : std::string_view();
  if (value.starts_with(' ')) value.remove_prefix(1);
  if (has_data_) data_ += '\n';
  data_ += value;
  has_data_ = true;
  return true;
}

// --- the client
// --------------------------------------------------------------------------------------------------

std::string_view HttpResponse::field(std::string_view name) const {
  for (const auto& [field_name, value] : fields) {
    if (field_name == name) return value;
  }
  return {};
}

HttpClient::HttpClient(HttpUrl url, HttpFields extra_fields, HttpTimeouts timeouts,
                       std::shared_ptr<const TlsTrust> trust)
    : url_(std::move(url)),
      extra_fields_(std::move(extra_fields)),
      timeouts_(timeouts),
      trust_(std::move(trust)) {}

Result<HttpResponse> HttpClient::get(const std::string& path) const {
  return exchange("GET", path, nullptr, nullptr);
}

Result<HttpResponse> HttpClient::post_json(const std::string& path, const std::string& body) const {
  return exchange("POST", path, &body, nullptr);
}

Result<HttpResponse> HttpClient::post_events(
    const std::string& path, const std::string& body,
    const std::function<bool(std::string_view)>& on_data) const {
  return exchange("POST", path, &body, &on_data);
}

Result<HttpResponse> HttpClient::exchange(
    const std::string& method, const std::string& path, const std::string* body,
    const std::function<bool(std::string_view)>* on_data) const {
  const std::string target = url_.prefix + path;
  if (const auto fault = check_target(target)) return fail(fault->message);
  std::string request = method + " " + target + " HTTP/1.1\r\nHost: " + url_.authority() +
                        "\r\nConnection: close\r\n";
  for (const auto& [name, value] : extra_fields_) {
    if (value.find_first_of("\r\n") != std::string::npos ||
        name.find_first_of("\r\n: ") != std::string::npos) {
      return fail("header '" + printable(name) + "' contains a line end");
    }
    request += name + ": " + value + "\r\n";
  }
  if (body != nullptr) {
    request += "Content-Type: application/json\r\nContent-Length: " + std::to_string(body->size()) +
               "\r\n";
  }
  request += "\r\n";
  if (body != nullptr) request += *body;

  std::shared_ptr<const TlsTrust> trust = trust_;
  if (url_.tls && trust == nullptr) {
    auto systems = TlsTrust::load("");
    if (!systems) return systems.error();
    trust = std::move(*systems);
  }
  Wire wire(url_, timeouts_, url_.tls ? trust.get() : nullptr);
  if (auto connected = wire.connect(); !connected) return connected.error();
  const auto written = wire.write(request);
  // A server may answer and close before it has read everything (413): then its answer says more
  // than our failed write.

  http::response_parser<http::buffer_body> parser;
  parser.body_limit(kBodyBytesMax);
  parser.eager(true);
  HttpResponse response;
  EventSplitter splitter;
  bool is_events = false;
  std::string in;
  const auto on_body = [&](std::string_view bytes) {
    if (!is_events) {
      response.body += bytes;
      return true;
    }
    return splitter.feed(bytes, *on_data);
  };
  while (!parser.is_done()) {
    const auto got = wire.read_some(in);
    if (!got) return written ? got.error() : written.error();
    error_code ec;
    if (!*got) {
      if (parser.got_some()) parser.put_eof(ec);
      if (ec || !parser.is_done())
        return fail(wire.where() + ": the connection ended before the answer did");
      break;
    }
    while (!in.empty() && !parser.is_done()) {
      // 1xx answers precede the real one; this client never asks for them, so none is expected.
      char decoded[16 * 1024];
      parser.get().body().data = decoded;
      parser.get().body().size = sizeof decoded;
      const size_t used = parser.put(asio::buffer(in), ec);
      in.erase(0, used);
      const size_t body_bytes = sizeof decoded - parser.get().body().size;
      if (parser.is_header_done() && response.status == 0) {
        response.status = parser.get().result_int();
        for (const auto& field : parser.get()) {
          response.fields.emplace_back(ascii_lower(std::string(field.name_string())),
                                       std::string(field.value()));
        }
        is_events =
            on_data != nullptr && response.field("content-type").starts_with("text/event-stream");
      }
      if (body_bytes > 0 && !on_body(std::string_view(decoded, body_bytes))) {
        if (!splitter.error().empty()) return fail(wire.where() + ": " + splitter.error());
        return response;
      }
      if (ec == http::error::need_more) break;
      if (ec && ec != http::error::need_buffer) {
        return fail(wire.where() + ": malformed answer: " + ec.message());
      }
      if (used == 0 && body_bytes == 0) break;
    }
  }
  return response;
}

}  // namespace updraft
