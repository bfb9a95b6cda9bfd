// A small blocking HTTP client for this project's own tools and tests: HTTP/1.1 with and without
// TLS, JSON bodies, server-sent events. One connection per call; every wait has an end.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/result.h"

namespace updraft {

class TlsTrust;

// "http[s]://host[:port][/prefix]", strictly: no user, no query, no fragment, no dot segments.
struct HttpUrl {
  bool tls = false;
  std::string host;    // name or address; IPv6 without brackets
  uint16_t port = 80;  // 443 with TLS
  std::string prefix;  // "" or "/v1", never with a slash at the end

  static Result<HttpUrl> parse(std::string_view text);
  // "host:port" as in a Host header.
  std::string authority() const;
  // "https://host:port".
  std::string origin() const;
};

struct HttpTimeouts {
  int connect_ms = 5000;
  int idle_ms = 600000;  // nothing received for that long
};

struct HttpResponse {
  int status = 0;
  std::vector<std::pair<std::string, std::string>> fields;  // names in lower case
  std::string body;

  // The first field of that (lower-case) name, or empty.
  std::string_view field(std::string_view name) const;
};

using HttpFields = std::vector<std::pair<std::string, std::string>>;

class HttpClient {
 public:
  // trust: whose certificates an https server's must come from; null: the system's.
  explicit HttpClient(HttpUrl url, HttpFields extra_fields = {}, HttpTimeouts timeouts = {},
                      std::shared_ptr<const TlsTrust> trust = nullptr);

  // path is appended to the URL's prefix. Any status is a success here; errors are of the network
  // and name the address.
  Result<HttpResponse> get(const std::string& path) const;
  Result<HttpResponse> post_json(const std::string& path, const std::string& body) const;

  // Posts and reads the answer as server-sent events: on_data gets each event's data (its lines
  // joined by '\n'), comments are skipped; it returns false to leave (the connection is closed,
  // which cancels at the server). An answer that is no event stream comes back whole in the
  // response's body, e.g. an error. The end of the connection before the end of the answer is an
  // error.
  Result<HttpResponse> post_events(const std::string& path, const std::string& body,
                                   const std::function<bool(std::string_view data)>& on_data) const;

 private:
  Result<HttpResponse> exchange(const std::string& method, const std::string& path,
                                const std::string* body,
                                const std::function<bool(std::string_view)>* on_data) const;

  HttpUrl url_;
  HttpFields extra_fields_;
  HttpTimeouts timeouts_;
  std::shared_ptr<const TlsTrust> trust_;
};

// Splits a byte stream into server-sent events (WHATWG HTML 9.2.6): pure, for the client and its
// tests.
class EventSplitter {
 public:
  // Calls on_data for each event that became complete; false from it stops and is returned. Lines
  // longer than 1 MiB end with an error in `error`.
  bool feed(std::string_view bytes, const std::function<bool(std::string_view)>& on_data);
  const std::string& error() const { return error_; }

 private:
  bool take_line(std::string_view line, const std::function<bool(std::string_view)>& on_data);

  std::string line_;
  std::string data_;
  std::string error_;
  bool has_data_ = false;
  bool after_cr_ = false;
};

}  // namespace updraft
