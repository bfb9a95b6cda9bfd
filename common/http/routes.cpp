// See the header.
#include "common/http/routes.h"

#include <algorithm>

namespace updraft {
namespace {

// The argument, when `path` is of the form of `pattern`; empty without braces in the pattern.
std::optional<std::string> argument_of(std::string_view pattern, std::string_view path) {
  const size_t open = pattern.find('{');
  if (open == std::string_view::npos) {
    if (pattern != path) return std::nullopt;
    return std::string();
  }
  const std::string_view before = pattern.substr(0, open);
  const std::string_view after = pattern.substr(pattern.find('}') + 1);
  if (!path.starts_with(before) || !path.ends_with(after)) return std::nullopt;
  if (path.size() <= before.size() + after.size()) return std::nullopt;
  const std::string_view argument =
      path.substr(before.size(), path.size() - before.size() - after.size());
  if (!after.empty() && argument.find('/') != std::string_view::npos) return std::nullopt;
  return std::string(argument);
}

}  // namespace

RouteMatch find_route(const std::vector<HttpRoute>& routes, std::string_view method,
                      std::string_view path) {
  RouteMatch match;
  for (const HttpRoute& route : routes) {
    auto argument = argument_of(route.path, path);
    if (!argument) continue;
    if (route.method == method || (route.method == "GET" && method == "HEAD")) {
      match.route = &route;
      match.argument = std::move(*argument);
      return match;
    }
    if (!match.allowed.empty()) match.allowed += ", ";
    match.allowed += route.method == "GET" ? "GET, HEAD" : route.method;
  }
  return match;
}

}  // namespace updraft
