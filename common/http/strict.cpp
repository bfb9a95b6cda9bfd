// Checks on the raw head of an HTTP request. Owned by nobody, touches nothing: bytes in, a verdict
// out.
#include "common/http/strict.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "common/base/bytes.h"

namespace updraft {
namespace {

using std::string_view;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }
bool is_alpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// RFC 9110 5.6.2 tchar.
bool is_token_char(char c) {
  return is_digit(c) || is_alpha(c) || string_view("!#$%&'*+-.^_`|~").find(c) != string_view::npos;
}
bool is_token(string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), is_token_char);
}

int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  return (c | 0x20) - 'a' + 10;
}

string_view trim_blanks(string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

HttpFault bad(std::string message) { return {400, std::move(message)}; }

// Below this path stand names of models, which may contain a slash that clients escape: the one
// place where that is no disguise, because the rest of the path is compared as a name and nothing
// else.
constexpr string_view kModelNames = "/v1/models/";

// Fields that decide how the request is read or who sent it: two of them would mean that two
// readers may disagree.
constexpr std::array<string_view, 11> kSingleFields = {
    "host",         "content-length", "transfer-encoding", "authorization",
    "content-type", "expect",         "connection",        "content-encoding",
    "x-request-id", "x-updraft-tier", "idempotency-key"};

struct SeenFields {
  std::array<int, kSingleFields.size()> count{};
  int operator[](string_view name) const {
    const auto at = std::find(kSingleFields.begin(), kSingleFields.end(), name);
    return count[static_cast<size_t>(at - kSingleFields.begin())];
  }
};

std::optional<HttpFault> check_request_line(string_view line, bool* is_http_1_0) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == string_view::npos || first == last) {
    return bad("the request line must be 'METHOD target HTTP/1.1', got '" + printable(line) + "'");
  }
  const string_view method = line.substr(0, first);
  const string_view target = line.substr(first + 1, last - first - 1);
  const string_view version = line.substr(last + 1);
  if (!is_token(method)) return bad("malformed method '" + printable(method) + "'");
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    if (version.starts_with("HTTP/")) {
      return HttpFault{
          505, "only HTTP/1.1 and HTTP/1.0 are spoken here, got '" + printable(version) + "'"};
    }
    return bad("malformed HTTP version '" + printable(version) + "'");
  }
  *is_http_1_0 = version == "HTTP/1.0";
  return check_target(target);
}

std::optional<HttpFault> check_field_value(string_view name, string_view value) {
  for (const char c : value) {
    const auto byte = static_cast<uint8_t>(c);
    if ((byte < 0x20 && c != '\t') || byte == 0x7F) {
      return bad("header '" + std::string(name) + "' contains a control character: '" +
                 printable(value) + "'");
    }
  }
  const string_view text = trim_blanks(value);
  if (name == "content-length") {
    if (text.empty() || text.size() > 18 || !std::all_of(text.begin(), text.end(), is_digit)) {
      return bad("Content-Length must be a plain number, got '" + printable(text) + "'");
    }
  }
  if (name == "transfer-encoding" && ascii_lower(text) != "chunked") {
    return HttpFault{501,
                     "Transfer-Encoding must be exactly 'chunked', got '" + printable(text) + "'"};
  }
  return std::nullopt;
}

std::optional<HttpFault> check_field_line(string_view line, SeenFields* seen) {
  if (line.front() == ' ' || line.front() == '\t') {
    return bad("folded header lines are not accepted: '" + printable(line) + "'");
  }
  const size_t colon = line.find(':');
  if (colon == string_view::npos) return bad("a header without colon: '" + printable(line) + "'");
  const string_view name = line.substr(0, colon);
  if (!is_token(name)) return bad("malformed header name '" + printable(name) + "'");
  const std::string lower = ascii_lower(name);
  const auto at = std::find(kSingleFields.begin(), kSingleFields.end(), lower);
  if (at != kSingleFields.end()) {
    if (++seen->count[static_cast<size_t>(at - kSingleFields.begin())] > 1) {
      return bad("header '" + lower + "' is there more than once");
    }
  }
  return check_field_value(lower, line.substr(colon + 1));
}

}  // namespace

std::optional<HttpFault> check_head(string_view head, size_t bytes_max, int header_count_max) {
  if (head.size() > bytes_max) {
    return HttpFault{431, "the request's head has " + std::to_string(head.size()) +
                              " bytes; at most " + std::to_string(bytes_max) + " are accepted"};
  }
  if (!head.ends_with("\r\n\r\n")) return bad("the request's head does not end with an empty line");
  string_view rest = head.substr(0, head.size() - 2);  // each line with its CRLF
  SeenFields seen;
  int header_count = 0;
  bool is_http_1_0 = false;
  for (bool first = true; !rest.empty(); first = false) {
    const size_t end = rest.find_first_of("\r\n");
    if (end == string_view::npos || rest.substr(end, 2) != "\r\n") {
      return bad("a bare carriage return or line feed in the request's head");
    }
    const string_view line = rest.substr(0, end);
    rest.remove_prefix(end + 2);
    if (line.empty()) return bad("an empty line inside the request's head");
    if (first) {
      if (auto fault = check_request_line(line, &is_http_1_0)) return fault;
      continue;
    }
    if (++header_count > header_count_max) {
      return HttpFault{431, "more than " + std::to_string(header_count_max) + " headers"};
    }
    if (auto fault = check_field_line(line, &seen)) return fault;
  }
  if (seen["host"] == 0) return bad("the Host header is missing");
  if (seen["transfer-encoding"] > 0) {
    if (seen["content-length"] > 0) return bad("Transfer-Encoding and Content-Length together");
    if (is_http_1_0) return bad("Transfer-Encoding in an HTTP/1.0 request");
  }
  return std::nullopt;
}

std::optional<HttpFault> check_target(string_view target) {
  if (target.empty() || target.front() != '/') {
    return bad("the request target must be a path that starts with '/', got '" + printable(target) +
               "'");
  }
  for (const char c : target) {
    if (c <= 0x20 || c >= 0x7F || c == '\\' || c == '#' || c == '"' || c == '<' || c == '>') {
      return bad("a character that must not be in a request target: '" + printable(target) + "'");
    }
  }
  std::string path(target.substr(0, target.find('?')));
  for (size_t at = target.find('%'); at != string_view::npos; at = target.find('%', at + 3)) {
    if (at + 2 >= target.size() || !is_hex(target[at + 1]) || !is_hex(target[at + 2])) {
      return bad("a malformed percent escape in the request target: '" + printable(target) + "'");
    }
  }
  for (size_t at = path.find('%'); at != string_view::npos; at = path.find('%', at + 1)) {
    const int byte = hex_value(path[at + 1]) * 16 + hex_value(path[at + 2]);
    if (byte == '/' && at >= kModelNames.size() && path.starts_with(kModelNames)) {
      path.replace(at, 3, "/");  // the dots around it count below
      continue;
    }
    if (byte < 0x20 || byte == 0x7F || byte == '.' || byte == '/' || byte == '\\' || byte == '%') {
      return bad("a percent escape that hides '.', '/', '\\', '%' or a control character: '" +
                 printable(target) + "'");
    }
  }
  for (size_t begin = 1; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const string_view segment = string_view(path).substr(begin, end - begin);
    if (segment == "." || segment == "..") {
      return bad("dot segments are not accepted in a request target: '" + printable(target) + "'");
    }
    begin = end + 1;
  }
  return std::nullopt;
}

std::optional<std::string> host_name(string_view host_field) {
  const string_view host = trim_blanks(host_field);
  size_t name_end = 0;
  if (host.starts_with('[')) {
    const size_t close = host.find(']');
    if (close == string_view::npos || close < 3) return std::nullopt;
    for (const char c : host.substr(1, close - 1)) {
      if (!is_hex(c) && c != ':' && c != '.') return std::nullopt;
    }
    name_end = close + 1;
  } else {
    name_end = std::min(host.find(':'), host.size());
    for (const char c : host.substr(0, name_end)) {
      if (!is_digit(c) && !is_alpha(c) && c != '.' && c != '-' && c != '_') return std::nullopt;
    }
  }
  if (name_end == 0) return std::nullopt;
  if (name_end < host.size()) {
    const string_view port = host.substr(name_end + 1);
    if (host[name_end] != ':' || port.empty() || port.size() > 5 ||
        !std::all_of(port.begin(), port.end(), is_digit)) {
      return std::nullopt;
    }
    if (std::stoi(std::string(port)) > 65535) return std::nullopt;
  }
  return ascii_lower(host.substr(0, name_end));
}

std::optional<HttpFault> check_host(string_view host_field,
                                    const std::vector<std::string>& allowed) {
  const auto name = host_name(host_field);
  if (!name) return bad("malformed Host header '" + printable(host_field) + "'");
  for (const std::string& candidate : allowed) {
    if (ascii_lower(candidate) == *name) return std::nullopt;
  }
  return HttpFault{403, "host '" + printable(*name) + "' is not served here (see allowed_hosts)"};
}

bool is_json_content_type(string_view content_type) {
  const size_t semicolon = std::min(content_type.find(';'), content_type.size());
  if (ascii_lower(trim_blanks(content_type.substr(0, semicolon))) != "application/json")
    return false;
  if (semicolon == content_type.size()) return true;
  const std::string parameter = ascii_lower(trim_blanks(content_type.substr(semicolon + 1)));
  return parameter.empty() || parameter == "charset=utf-8" || parameter == "charset=\"utf-8\"";
}

std::string ascii_lower(string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c | 0x20);
  }
  return out;
}

}  // namespace updraft
