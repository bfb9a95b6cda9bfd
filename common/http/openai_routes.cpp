// See the header.
#include "common/http/openai_routes.h"

#include <utility>

#include "common/base/bytes.h"
#include "common/http/openai_response.h"
#include "common/http/server_state.h"

namespace updraft {
namespace {

constexpr const char* kPlain = "text/plain; charset=utf-8";

RouteReply ready_reply(const ServerState& server) {
  std::string why_not = "going down";
  if (!server.draining && server.service->ready(&why_not)) return {200, "ok\n", kPlain, ""};
  return {503, printable(why_not, 200) + "\n", kPlain,
          "Retry-After: 1\r\nretry-after-ms: 1000\r\n"};
}

RouteReply model_reply(const ServerState& server, std::string_view id) {
  for (const ModelInfo& model : server.service->models()) {
    if (model.id == id) return {200, model_json(model)};
  }
  RequestError error =
      error_of(ErrorCode::kModelNotFound, "the model '" + printable(id) + "' is not served here");
  error.param = "model";
  return {http_status(error.code), error_json(error)};
}

}  // namespace

HttpRoute liveness_route() {
  return {"GET", "/livez", Role::kNobody, [](const RouteCall&) {
            return RouteReply{200, "ok\n", kPlain, ""};
          }};
}

std::vector<HttpRoute> openai_routes(const ServerState& server) {
  const auto ready = [&server](const RouteCall&) { return ready_reply(server); };
  return {
      {"POST", "/v1/chat/completions", Role::kGuest, Request::Kind::kChat},
      {"POST", "/v1/completions", Role::kDeveloper, Request::Kind::kCompletion},
      {"GET", "/v1/models", Role::kGuest,
       [&server](const RouteCall&) {
         return RouteReply{200, models_json(server.service->models())};
       }},
      {"GET", "/v1/models/{id}", Role::kGuest,
       [&server](const RouteCall& call) { return model_reply(server, call.argument); }},
      {"GET", "/metrics", Role::kDeveloper,
       [&server](const RouteCall&) {
         return RouteReply{200, server.metrics.text(), "text/plain; version=0.0.4; charset=utf-8",
                           ""};
       }},
      liveness_route(),
      {"GET", "/readyz", Role::kNobody, ready},
      {"GET", "/health", Role::kNobody, ready},
  };
}

}  // namespace updraft
