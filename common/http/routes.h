// What can be asked of a server: one table of method, path, least role and handler. Whatever is not
// in it does not exist; a route that names no role is an administrator's.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/auth/principal.h"
#include "common/message/request.h"

namespace updraft {

// A request as a route's function sees it, after every check. Views live during the call.
struct RouteCall {
  const Principal& who;
  std::string_view remote;    // address:port
  std::string_view argument;  // what stands in place of {...}, unescaped
  std::string_view body;      // JSON text, or empty
};
struct RouteReply {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::string headers{};  // further lines, each with its CRLF
};
// Runs on the server's loop, which does nothing else meanwhile.
using RouteFunction = std::function<RouteReply(const RouteCall&)>;

struct HttpRoute {
  std::string method;  // "GET" answers HEAD as well
  std::string path;    // "/v1/models/{id}": the last segment in braces takes the rest of the path,
                       // one before it takes one segment; neither is ever empty
  Role least = Role::kAdmin;  // kNobody: open to everyone, also without a key
  // A function, or the kind of inference that the server's service answers.
  std::variant<RouteFunction, Request::Kind> answer;
};

struct RouteMatch {
  const HttpRoute* route = nullptr;  // nullptr: see `allowed`
  std::string argument;              // still with its percent escapes
  std::string allowed;               // methods of this path, "GET, HEAD"; empty: no such path
};
// The route of a request. `method` and `path` have passed the strict checks.
RouteMatch find_route(const std::vector<HttpRoute>& routes, std::string_view method,
                      std::string_view path);

}  // namespace updraft
