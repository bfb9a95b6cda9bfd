// Who may ask for what: every route of an inference endpoint as every role, and what limits of a
// key do.
#include "common/http/routes.h"

#include <doctest/doctest.h>

#include <map>
#include <string>
#include <vector>

#include "common/http/openai_routes.h"
#include "common/http/server_state.h"
#include "tests/common/http/http_fixture.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

struct Expected {
  const char* method;
  const char* path;    // as the table has it
  const char* target;  // as a client asks
  Role least;
};
// What is promised. A route that is added has to be added here, with the role that it is for.
const std::vector<Expected> kPromised = {
    {"POST", "/v1/chat/completions", "/v1/chat/completions", Role::kGuest},
    {"POST", "/v1/completions", "/v1/completions", Role::kDeveloper},
    {"GET", "/v1/models", "/v1/models", Role::kGuest},
    {"GET", "/v1/models/{id}", "/v1/models/demo", Role::kGuest},
    {"GET", "/metrics", "/metrics", Role::kDeveloper},
    {"GET", "/livez", "/livez", Role::kNobody},
    {"GET", "/readyz", "/readyz", Role::kNobody},
    {"GET", "/health", "/health", Role::kNobody},
};

const std::string kCompletionBody = R"({"model":"demo","prompt":"Hi"})";

}  // namespace

TEST_CASE("every route answers every role as promised") {
  HttpFixture f;
  f.config.auth = door_of(
      {api_key("g", Role::kGuest), api_key("d", Role::kDeveloper), api_key("a", Role::kAdmin)});
  f.start();
  const std::map<Role, HttpFields> clients = {{Role::kNobody, {}},
                                              {Role::kGuest, {bearer("g")}},
                                              {Role::kDeveloper, {bearer("d")}},
                                              {Role::kAdmin, {bearer("a")}}};
  for (const Expected& route : kPromised) {
    for (const auto& [role, fields] : clients) {
      const std::string body =
          std::string(route.path) == "/v1/completions" ? kCompletionBody : kChatBody;
      const int status = f.send(route.method, route.target, body, fields).status;
      const int wanted = role >= route.least ? 200 : role == Role::kNobody ? 401 : 403;
      CHECK_MESSAGE(status == wanted, std::string(route.path) << " as " << role_name(role));
    }
  }
}

TEST_CASE("the table of an inference endpoint is the promised one, no route more") {
  FakeService service;
  auto metrics = Metrics::create();
  boost::asio::io_context io;
  const auto state =
      std::make_unique<ServerState>(HttpServerConfig(), &service, *metrics, nullptr, io);
  const auto routes = openai_routes(*state);
  CHECK(routes.size() == kPromised.size());
  for (const HttpRoute& route : routes) {
    bool promised = false;
    for (const Expected& expected : kPromised) {
      promised |= route.method == expected.method && route.path == expected.path &&
                  route.least == expected.least;
    }
    CHECK_MESSAGE(promised, route.method << " " << route.path);
  }
}

TEST_CASE("a route that names no role is an administrator's, and what is not listed is not there") {
  HttpRoute route;
  route.method = "GET";
  route.path = "/secret";
  CHECK(route.least == Role::kAdmin);
  route.answer = [](const RouteCall&) { return RouteReply{}; };
  HttpFixture f;
  f.config.auth = door_of({api_key("d", Role::kDeveloper), api_key("a", Role::kAdmin)});
  auto started = HttpServer::start(f.config, {route}, *f.metrics, f.logger());
  REQUIRE_MESSAGE(started.ok(), started.message());
  f.server = std::move(*started);
  CHECK(f.get("/secret").status == 401);
  CHECK(f.get("/secret", {bearer("d")}).status == 403);
  CHECK(f.get("/secret", {bearer("a")}).status == 200);
  CHECK(f.get("/other", {bearer("a")}).status == 404);
  CHECK(f.get("/v1/models", {bearer("a")}).status == 404);
  CHECK(f.post("/secret", "{}", {bearer("a")}).status == 405);
  CHECK(f.get("/livez").status == 200);
  f.server.reset();
  f.config.auth = nullptr;
  const auto open = HttpServer::start(f.config, {route}, *f.metrics, {});
  REQUIRE_FALSE(open.ok());
  CHECK(open.message().find("without keys") != std::string::npos);
}

TEST_CASE("routes are found by their form") {
  const RouteFunction function = [](const RouteCall&) { return RouteReply{}; };
  const std::vector<HttpRoute> routes = {
      {"GET", "/nodes", Role::kAdmin, function},
      {"POST", "/nodes/{id}/drain", Role::kAdmin, function},
      {"GET", "/models/{id}", Role::kAdmin, function},
      {"DELETE", "/nodes", Role::kAdmin, function},
  };
  const auto found = [&](const char* method, const char* path) {
    const RouteMatch match = find_route(routes, method, path);
    return match.route == nullptr ? "-" + match.allowed : match.route->path + "=" + match.argument;
  };
  CHECK(found("GET", "/nodes") == "/nodes=");
  CHECK(found("HEAD", "/nodes") == "/nodes=");
  CHECK(found("POST", "/nodes") == "-GET, HEAD, DELETE");
  CHECK(found("POST", "/nodes/edge-1/drain") == "/nodes/{id}/drain=edge-1");
  CHECK(found("POST", "/nodes//drain") == "-");
  CHECK(found("POST", "/nodes/a/b/drain") == "-");
  CHECK(found("GET", "/nodes/edge-1/drain") == "-POST");
  CHECK(found("GET", "/models/org/name") == "/models/{id}=org/name");
  CHECK(found("GET", "/models/") == "-");
  CHECK(found("GET", "/model") == "-");
  CHECK(found("get", "/nodes") == "-GET, HEAD, DELETE");
}

TEST_CASE("a key's requests per minute: then 429 with a time to wait, others are not touched") {
  HttpFixture f;
  f.config.auth = door_of({api_key("g", Role::kGuest, {3, 0, 0}), api_key("d", Role::kDeveloper)});
  f.start();
  for (int i = 0; i < 3; ++i) CHECK(f.post(kChatPath, kChatBody, {bearer("g")}).status == 200);
  const HttpResponse over = f.post(kChatPath, kChatBody, {bearer("g")});
  CHECK(over.status == 429);
  const int64_t wait_ms = std::stoll(std::string(over.field("retry-after-ms")));
  CHECK(wait_ms > 0);
  CHECK(wait_ms <= 20'000);
  CHECK(std::stoll(std::string(over.field("retry-after"))) == (wait_ms + 999) / 1000);
  CHECK(over.body.find("requests per minute") != std::string::npos);
  CHECK(f.get("/v1/models", {bearer("g")}).status == 200);
  CHECK(f.post(kChatPath, kChatBody, {bearer("d")}).status == 200);
  CHECK(f.get("/metrics", {bearer("d")})
            .body.find("updraft_http_limited_total{limit=\"requests per minute\"} 1") !=
        std::string::npos);
  CHECK(f.service.request_count() == 4);
}

TEST_CASE("what is left of a key's limits is told under OpenAI's names, with every answer") {
  HttpFixture f;
  f.config.auth =
      door_of({api_key("g", Role::kGuest, {3, 100'000, 0}), api_key("d", Role::kDeveloper),
               api_key("t", Role::kGuest, {0, 9000, 0})});
  f.start();
  const HttpResponse first = f.post(kChatPath, kChatBody, {bearer("g")});
  CHECK(first.field("x-ratelimit-limit-requests") == "3");
  CHECK(first.field("x-ratelimit-remaining-requests") == "2");
  CHECK(first.field("x-ratelimit-reset-requests") == "20s");
  CHECK(first.field("x-ratelimit-limit-tokens") == "100000");
  // 256 are assumed for an answer without a limit, nothing for a prompt of two bytes.
  CHECK(first.field("x-ratelimit-remaining-tokens") == "99744");
  CHECK(first.field("x-ratelimit-reset-tokens") == "154ms");
  const HttpResponse streamed = f.post(kChatPath, kStreamBody, {bearer("g")});
  CHECK(streamed.field("x-ratelimit-remaining-requests") == "1");
  f.service.answer = [](const Request&, const EventSink& sink) {
    sink(error_of(ErrorCode::kOverloaded, "full", 1000));
  };
  const HttpResponse failed = f.post(kChatPath, kChatBody, {bearer("g")});
  CHECK(failed.status == 503);
  CHECK(failed.field("x-ratelimit-remaining-requests") == "0");
  const HttpResponse over = f.post(kChatPath, kChatBody, {bearer("g")});
  CHECK(over.status == 429);
  CHECK(over.field("x-ratelimit-remaining-requests") == "0");
  const std::string reset(over.field("x-ratelimit-reset-requests"));
  CHECK(reset.back() == 's');
  CHECK((reset.starts_with("1m") || std::stod(reset) > 30));
  // What is not limited is not told, nor is anything to what is no request to a model.
  CHECK(f.post(kChatPath, kChatBody, {bearer("t")}).field("x-ratelimit-limit-requests").empty());
  CHECK(f.post(kChatPath, kChatBody, {bearer("t")}).field("x-ratelimit-limit-tokens") == "9000");
  CHECK(f.post(kChatPath, kChatBody, {bearer("d")}).field("x-ratelimit-limit-tokens").empty());
  CHECK(f.get("/v1/models", {bearer("g")}).field("x-ratelimit-limit-requests").empty());
}

TEST_CASE("tokens are charged before and settled after; an answer that never began costs none") {
  HttpFixture f;
  // Estimated at some 256 tokens each, used 7.
  f.config.auth = door_of({api_key("d", Role::kDeveloper, {0, 600, 0})});
  f.start();
  for (int i = 0; i < 20; ++i) CHECK(f.post(kChatPath, kChatBody, {bearer("d")}).status == 200);
  f.service.answer = [](const Request&, const EventSink& sink) {
    sink(error_of(ErrorCode::kOverloaded, "full", 1000));
  };
  for (int i = 0; i < 20; ++i) CHECK(f.post(kChatPath, kChatBody, {bearer("d")}).status == 503);
  f.service.answer = [](const Request&, const EventSink& sink) {
    sink(started_event());
    sink(last_chunk());
    sink(finished_event(1, 5000));
  };
  CHECK(f.post(kChatPath, kChatBody, {bearer("d")}).status == 200);
  const HttpResponse over = f.post(kChatPath, kChatBody, {bearer("d")});
  CHECK(over.status == 429);
  CHECK(over.body.find("tokens per minute") != std::string::npos);
}

TEST_CASE("requests at once: the next is refused until one ends, also when its client leaves") {
  HttpFixture f;
  f.config.auth = door_of({api_key("d", Role::kDeveloper, {0, 0, 1})});
  f.service.hold();
  f.start();
  const std::string fields = "Authorization: Bearer d\r\n";
  {
    RawSocket first(f.server->port());
    REQUIRE(first.send_all(raw_post(kChatPath, kStreamBody, fields)));
    REQUIRE(f.service.wait_request(0));
    CHECK(f.post(kChatPath, kChatBody, {bearer("d")}).status == 429);
  }
  REQUIRE(f.service.wait_cancelled(f.service.wait_request(0)->id, 5000));
  CHECK(f.record(1).status == 499);
  f.service.answer = nullptr;
  CHECK(f.post(kChatPath, kChatBody, {bearer("d")}).status == 200);
}

TEST_CASE("a guest cannot jump the queue") {
  HttpFixture f;
  f.config.auth = door_of({api_key("g", Role::kGuest), api_key("d", Role::kDeveloper)});
  f.start();
  const auto with = [&](const char* key, const char* priority) {
    return f.post(kChatPath, kChatBody, {bearer(key), {"x-updraft-priority", priority}}).status;
  };
  CHECK(with("g", "interactive") == 403);
  CHECK(with("g", "system") == 403);
  CHECK(with("g", "default") == 200);
  CHECK(with("g", "bulk") == 200);
  CHECK(with("d", "interactive") == 200);
}

TEST_CASE("keys and hosts change while the server runs; what it serves goes on") {
  HttpFixture f;
  f.config.auth = door_of({api_key("old", Role::kDeveloper)});
  f.service.hold();
  f.start();
  RawSocket open(f.server->port());
  REQUIRE(open.send_all(raw_post(kChatPath, kStreamBody, "Authorization: Bearer old\r\n")));
  const auto request = f.service.wait_request(0);
  REQUIRE(request);
  HttpServerConfig fresh = f.config;
  fresh.auth = door_of({api_key("new", Role::kDeveloper)});
  fresh.allowed_hosts = {"llm.example.com"};
  fresh.port = 1;  // stays what it was
  REQUIRE(f.server->reconfigure(fresh).ok());
  CHECK(f.get("/v1/models", {bearer("old")}).status == 401);
  CHECK(f.get("/v1/models", {bearer("new")}).status == 200);
  RawSocket host(f.server->port());
  REQUIRE(host.send_all("GET /livez HTTP/1.1\r\nHost: llm.example.com\r\n\r\n"));
  CHECK(status_of(host.read_until("\r\n\r\n")) == 200);
  f.service.send(request->id, started_event());
  f.service.send(request->id, last_chunk());
  f.service.send(request->id, finished_event());
  CHECK(open.read_until("[DONE]").find("[DONE]") != std::string::npos);
  // A change that cannot be is refused whole.
  fresh.auth = door_of({api_key("third", Role::kDeveloper)});
  fresh.tls_cert_file = "/nonexistent/cert.pem";
  fresh.tls_key_file = "/nonexistent/key.pem";
  const auto refused = f.server->reconfigure(fresh);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.message().find("/nonexistent/cert.pem") != std::string::npos);
  CHECK(f.get("/v1/models", {bearer("new")}).status == 200);
  CHECK(f.get("/v1/models", {bearer("third")}).status == 401);
}
