// The strictness layer in front of the HTTP library's parser: pure checks on the raw bytes of a
// request's head. What a lenient parser could read in two ways (and so be smuggled past a proxy) is
// refused here, before anything is parsed.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace updraft {

// Why a request is refused: the HTTP status and one line for the client.
struct HttpFault {
  int status = 400;
  std::string message;
};

// `head` is everything up to and including the first empty line (CRLF CRLF). Nothing when it is a
// well-formed HTTP/1.0 or 1.1 request head by RFC 9112 and these rules of ours: only CRLF ends
// lines; no folded lines, no white space around field names, no control characters; exactly one
// Host; Content-Length at most once and digits only; Transfer-Encoding exactly "chunked", only in
// HTTP/1.1 and never beside Content-Length; at most one of each field that decides anything.
std::optional<HttpFault> check_head(std::string_view head, size_t bytes_max, int header_count_max);

// A request target in origin form ("/path?query"): visible ASCII only, no dot segments, no
// backslash, no fragment, valid percent escapes, none of which hides a separator, a dot, a percent
// sign or a control character.
std::optional<HttpFault> check_target(std::string_view target);

// The name in a Host field without its port, lower case; nothing when it is malformed ("a b",
// "x:99999", "[::1").
std::optional<std::string> host_name(std::string_view host_field);

// Is `host_field` one of `allowed` (names or addresses without port, compared without case)? Keeps
// a browser from being led here under a foreign name (DNS rebinding). 400 when malformed, 403 when
// not allowed.
std::optional<HttpFault> check_host(std::string_view host_field,
                                    const std::vector<std::string>& allowed);

// "application/json", with no charset or utf-8.
bool is_json_content_type(std::string_view content_type);

// Lower case of ASCII letters; the locale has no say.
std::string ascii_lower(std::string_view text);

}  // namespace updraft
