// The server over real loopback sockets and a fake service: routes, answers, streams, errors.
// Shapes are those of OpenAI's API reference; the JSON is read back with Boost.JSON's own parser.
#include "common/http/server.h"

#include <doctest/doctest.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <mutex>

#include "common/http/client.h"
#include "tests/common/http/fake_service.h"
#include "tests/common/http/raw_socket.h"

using namespace updraft;
using namespace updraft::testing;
namespace json = boost::json;

namespace {

const char* const kChatBody = R"({"model":"demo","messages":[{"role":"user","content":"Hi"}]})";
const char* const kStreamBody =
    R"({"model":"demo","stream":true,"messages":[{"role":"user","content":"Hi"}]})";

struct Fixture {
  FakeService service;
  std::unique_ptr<Metrics> metrics = Metrics::create();
  std::mutex log_mutex;
  std::vector<AccessRecord> log;
  HttpServerConfig config;
  std::unique_ptr<HttpServer> server;

  ~Fixture() { server.reset(); }

  void start() {
    auto started = HttpServer::start(config, service, *metrics, [this](const AccessRecord& record) {
      const std::lock_guard lock(log_mutex);
      log.push_back(record);
    });
    REQUIRE_MESSAGE(started.ok(), started.message());
    server = std::move(*started);
  }
  HttpClient client(HttpFields fields = {}) {
    HttpUrl url;
    url.host = "127.0.0.1";
    url.port = server->port();
    return HttpClient(url, std::move(fields), {2000, 5000});
  }
  HttpResponse get(const std::string& path, HttpFields fields = {}) {
    auto response = client(std::move(fields)).get(path);
    REQUIRE_MESSAGE(response.ok(), response.message());
    return *response;
  }
  HttpResponse post(const std::string& path, const std::string& body, HttpFields fields = {}) {
    auto response = client(std::move(fields)).post_json(path, body);
    REQUIRE_MESSAGE(response.ok(), response.message());
    return *response;
  }
  // The data of each event; the response without body in `response`.
  std::vector<std::string> events(const std::string& path, const std::string& body,
                                  HttpResponse* response = nullptr) {
    std::vector<std::string> all;
    auto answer = client().post_events(path, body, [&](std::string_view data) {
      all.emplace_back(data);
      return true;
    });
    REQUIRE_MESSAGE(answer.ok(), answer.message());
    if (response != nullptr) *response = *answer;
    return all;
  }
};

// The developers' keys with these texts.
std::shared_ptr<const Authenticator> keys_of(std::initializer_list<const char*> texts) {
  std::vector<ApiKey> keys;
  for (const char* text : texts) keys.push_back({sha256(text), text, Role::kDeveloper, {}});
  return std::make_shared<const Authenticator>(std::move(keys), JwtPolicy());
}

std::string text_of(const json::value& value) { return std::string(value.as_string()); }

std::string post_head(std::string_view path, size_t body_bytes, std::string_view more = "") {
  return "POST " + std::string(path) +
         " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: " +
         std::to_string(body_bytes) + "\r\n" + std::string(more) + "\r\n";
}

}  // namespace

TEST_CASE("a chat completion has OpenAI's shape") {
  Fixture f;
  f.start();
  const HttpResponse response = f.post("/v1/chat/completions", kChatBody);
  REQUIRE(response.status == 200);
  CHECK(response.field("content-type") == "application/json");
  CHECK(response.field("x-updraft-node") == "edge-1");
  CHECK(response.field("x-updraft-tier") == "edge");
  CHECK(response.field("x-updraft-decision") == "fits the edge");
  const json::value body = json::parse(response.body);
  const std::string id = text_of(body.at("id"));
  CHECK(id.starts_with("chatcmpl-"));
  CHECK(response.field("x-request-id") == id.substr(9));
  CHECK(body.at("object") == "chat.completion");
  CHECK(body.at("model") == "demo");
  CHECK(body.at("created").as_int64() > 1'600'000'000);
  const json::value& choice = body.at("choices").at(0);
  CHECK(choice.at("index") == 0);
  CHECK(choice.at("message").at("role") == "assistant");
  CHECK(choice.at("message").at("content") == "Hello world");
  CHECK(choice.at("finish_reason") == "stop");
  CHECK(choice.at("logprobs").is_null());
  const json::value& usage = body.at("usage");
  CHECK(usage.at("prompt_tokens") == 5);
  CHECK(usage.at("completion_tokens") == 2);
  CHECK(usage.at("total_tokens") == 7);
  CHECK(usage.at("prompt_tokens_details").at("cached_tokens") == 3);
  const json::value& updraft = body.at("updraft");
  CHECK(updraft.at("tier") == "edge");
  CHECK(updraft.at("node") == "edge-1");
  CHECK(updraft.at("queued_ms") == 7);
  CHECK(updraft.at("ttft_ms").is_int64());
}

TEST_CASE("a streamed chat begins with the role, ends with the reason and [DONE]") {
  Fixture f;
  f.start();
  HttpResponse response;
  const auto events = f.events("/v1/chat/completions", kStreamBody, &response);
  CHECK(response.status == 200);
  CHECK(response.field("content-type").starts_with("text/event-stream"));
  CHECK(response.field("cache-control") == "no-cache");
  CHECK(response.field("x-accel-buffering") == "no");
  REQUIRE(events.size() == 5);
  const json::value role = json::parse(events[0]);
  CHECK(role.at("object") == "chat.completion.chunk");
  CHECK(role.at("choices").at(0).at("delta").at("role") == "assistant");
  CHECK(role.at("choices").at(0).at("finish_reason").is_null());
  CHECK(role.as_object().if_contains("usage") == nullptr);
  CHECK(json::parse(events[1]).at("choices").at(0).at("delta").at("content") == "Hello");
  CHECK(json::parse(events[2]).at("choices").at(0).at("delta").at("content") == " world");
  const json::value last = json::parse(events[3]);
  CHECK(last.at("choices").at(0).at("finish_reason") == "stop");
  CHECK(last.at("choices").at(0).at("delta").as_object().empty());
  CHECK(last.at("updraft").at("node") == "edge-1");
  CHECK(events[4] == "[DONE]");
}

TEST_CASE("include_usage adds a last chunk without choices") {
  Fixture f;
  f.start();
  const auto events = f.events(
      "/v1/chat/completions",
      R"({"model":"demo","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Hi"}]})");
  REQUIRE(events.size() == 6);
  CHECK(json::parse(events[0]).at("usage").is_null());
  const json::value last = json::parse(events[4]);
  CHECK(last.at("choices").as_array().empty());
  CHECK(last.at("usage").at("total_tokens") == 7);
  CHECK(last.at("updraft").at("tier") == "edge");
}

TEST_CASE("text completions answer each prompt, streamed or not") {
  Fixture f;
  f.start();
  const HttpResponse response =
      f.post("/v1/completions", R"({"model":"demo","prompt":["a","b"],"n":2})");
  REQUIRE(response.status == 200);
  const json::value body = json::parse(response.body);
  CHECK(body.at("object") == "text_completion");
  CHECK(text_of(body.at("id")).starts_with("cmpl-"));
  REQUIRE(body.at("choices").as_array().size() == 4);
  CHECK(body.at("choices").at(3).at("index") == 3);
  CHECK(body.at("choices").at(3).at("text") == "Hello world");

  const auto events = f.events("/v1/completions", R"({"model":"demo","prompt":"a","stream":true})");
  REQUIRE(events.size() == 4);
  CHECK(json::parse(events[0]).at("choices").at(0).at("text") == "Hello");
  CHECK(json::parse(events[2]).at("choices").at(0).at("finish_reason") == "stop");
  CHECK(events[3] == "[DONE]");
}

TEST_CASE("models are listed and found by name, also names with a slash") {
  Fixture f;
  f.start();
  const json::value list = json::parse(f.get("/v1/models").body);
  CHECK(list.at("object") == "list");
  CHECK(list.at("data").at(0).at("id") == "demo");
  CHECK(list.at("data").at(0).at("object") == "model");
  CHECK(list.at("data").at(0).at("max_model_len") == 512);
  CHECK(json::parse(f.get("/v1/models/org/name").body).at("id") == "org/name");
  CHECK(json::parse(f.get("/v1/models/org%2Fname").body).at("id") ==
        "org/name");  // as OpenAI's client asks
  const HttpResponse missing = f.get("/v1/models/other");
  CHECK(missing.status == 404);
  CHECK(json::parse(missing.body).at("error").at("code") == "model_not_found");
}

TEST_CASE("the client's x-request-id comes back, and a bad one is refused") {
  Fixture f;
  f.start();
  CHECK(f.post("/v1/chat/completions", kChatBody, {{"X-Request-Id", "abc-1.2_3"}})
            .field("x-request-id") == "abc-1.2_3");
  const HttpResponse refused = f.post("/v1/chat/completions", kChatBody, {{"X-Request-Id", "a b"}});
  CHECK(refused.status == 400);
  CHECK(json::parse(refused.body).at("error").at("param") == "x-request-id");
}

TEST_CASE("errors of the service have OpenAI's status and body") {
  Fixture f;
  RequestError error;
  f.service.answer = [&](const Request&, const EventSink& sink) { sink(error); };
  f.start();
  const auto answer = [&](ErrorCode code, int32_t retry_after_ms = 0) {
    error = RequestError();
    error.code = code;
    error.message = "why";
    error.param = "messages";
    error.retry_after_ms = retry_after_ms;
    return f.post("/v1/chat/completions", kChatBody);
  };
  const HttpResponse too_long = answer(ErrorCode::kContextLength);
  CHECK(too_long.status == 400);
  const json::value body = json::parse(too_long.body).at("error");
  CHECK(body.at("message") == "why");
  CHECK(body.at("type") == "invalid_request_error");
  CHECK(body.at("param") == "messages");
  CHECK(body.at("code") == "context_length_exceeded");
  CHECK(answer(ErrorCode::kModelNotFound).status == 404);
  const HttpResponse limited = answer(ErrorCode::kRateLimited, 1500);
  CHECK(limited.status == 429);
  CHECK(limited.field("retry-after") == "2");
  const HttpResponse overloaded = answer(ErrorCode::kOverloaded);
  CHECK(overloaded.status == 503);
  CHECK(overloaded.field("retry-after") == "1");
  CHECK(answer(ErrorCode::kNodeLost).status == 502);
  CHECK(answer(ErrorCode::kDeadline).status == 504);
  const HttpResponse internal = answer(ErrorCode::kInternal);
  CHECK(internal.status == 500);
  CHECK(json::parse(internal.body).at("error").at("code").is_null());
}

TEST_CASE("an error inside a stream is an event, and no [DONE] follows") {
  Fixture f;
  f.service.answer = [](const Request&, const EventSink& sink) {
    sink(started_event());
    sink(text_chunk("Hel"));
    RequestError error;
    error.code = ErrorCode::kNodeLost;
    error.message = "the node vanished";
    sink(error);
  };
  f.start();
  const auto events = f.events("/v1/chat/completions", kStreamBody);
  REQUIRE(events.size() == 3);
  CHECK(json::parse(events[2]).at("error").at("message") == "the node vanished");
  CHECK(json::parse(events[2]).at("error").at("code") == "node_lost");
}

TEST_CASE("an error before the stream began has its own status") {
  Fixture f;
  f.service.answer = [](const Request&, const EventSink& sink) {
    RequestError error;
    error.code = ErrorCode::kOverloaded;
    error.message = "full";
    sink(error);
  };
  f.start();
  HttpResponse response;
  CHECK(f.events("/v1/chat/completions", kStreamBody, &response).empty());
  CHECK(response.status == 503);
  CHECK(json::parse(response.body).at("error").at("message") == "full");
}

TEST_CASE("a stream's head is sent as soon as the request has a place") {
  Fixture f;
  f.service.hold();
  f.start();
  RawSocket socket(f.server->port());
  REQUIRE(socket.send_all(post_head("/v1/chat/completions", std::string_view(kStreamBody).size()) +
                          kStreamBody));
  const auto request = f.service.wait_request();
  REQUIRE(request);
  f.service.send(request->id, started_event());
  const std::string& received = socket.read_until("\"role\":\"assistant\"");
  CHECK(received.find("x-updraft-node: edge-1\r\n") != std::string::npos);
  CHECK(received.find("\"role\":\"assistant\"") != std::string::npos);
}

TEST_CASE("keys: missing or wrong is 401, right is let in, health needs none (Dynamo #8605)") {
  Fixture f;
  f.config.auth = keys_of({"sesame", "other"});
  f.start();
  const HttpResponse missing = f.post("/v1/chat/completions", kChatBody);
  CHECK(missing.status == 401);
  CHECK(missing.field("www-authenticate") == "Bearer");
  CHECK(json::parse(missing.body).at("error").at("code") == "invalid_api_key");
  CHECK(f.post("/v1/chat/completions", kChatBody, {{"Authorization", "Bearer sesam"}}).status ==
        401);
  CHECK(f.post("/v1/chat/completions", kChatBody, {{"Authorization", "Basic sesame"}}).status ==
        401);
  CHECK(f.post("/v1/chat/completions", kChatBody, {{"Authorization", "Bearer sesame"}}).status ==
        200);
  CHECK(f.service.wait_request()->tenant == sha256_hex("sesame").substr(0, 16));
  for (const char* path : {"/v1/models", "/v1/models/demo", "/metrics"}) {
    CHECK_MESSAGE(f.get(path).status == 401, path);
    CHECK_MESSAGE(f.get(path, {{"Authorization", "Bearer other"}}).status == 200, path);
  }
  for (const char* path : {"/livez", "/readyz", "/health"})
    CHECK_MESSAGE(f.get(path).status == 200, path);
  CHECK(f.service.request_count() == 1);
}

TEST_CASE("a server that others can reach wants keys and TLS, or the word that a proxy does it") {
  Fixture f;
  f.config.bind_address = "0.0.0.0";
  auto refused = HttpServer::start(f.config, f.service, *f.metrics, {});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.message().find("without API keys") != std::string::npos);
  f.config.auth = keys_of({"sesame"});
  auto clear = HttpServer::start(f.config, f.service, *f.metrics, {});
  REQUIRE_FALSE(clear.ok());
  CHECK(clear.message().find("without TLS") != std::string::npos);
  f.config.behind_tls_proxy = true;
  CHECK(HttpServer::start(f.config, f.service, *f.metrics, {}).ok());
  f.config.auth = std::make_shared<const Authenticator>();
  CHECK_FALSE(HttpServer::start(f.config, f.service, *f.metrics, {}).ok());
}

TEST_CASE("an address in use is an error that names it") {
  Fixture f;
  f.start();
  HttpServerConfig second = f.config;
  second.port = f.server->port();
  auto refused = HttpServer::start(second, f.service, *f.metrics, {});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.message().find("127.0.0.1:" + std::to_string(second.port)) != std::string::npos);
}

TEST_CASE("unknown routes, methods and kinds of content are refused by name") {
  Fixture f;
  f.start();
  CHECK(f.get("/nothing").status == 404);
  const HttpResponse method = f.get("/v1/chat/completions");
  CHECK(method.status == 405);
  CHECK(method.field("allow") == "POST");
  CHECK(f.post("/v1/models", "{}").status == 405);
  CHECK(f.post("/v1/chat/completions", kChatBody, {{"Content-Encoding", "gzip"}}).status == 415);
  RawSocket socket(f.server->port());
  REQUIRE(socket.send_all(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
      "Content-Length: 2\r\n\r\n{}"));
  CHECK(socket.read_to_end());
  CHECK(status_of(socket.received()) == 415);
  CHECK(socket.received().find("Access-Control") == std::string::npos);
}

TEST_CASE("a foreign Host is forbidden, the configured ones are not") {
  Fixture f;
  f.config.allowed_hosts = {"gateway.example"};
  f.start();
  const auto ask = [&](const std::string& host) {
    RawSocket socket(f.server->port());
    REQUIRE(
        socket.send_all("GET /livez HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n"));
    CHECK(socket.read_to_end());
    return status_of(socket.received());
  };
  CHECK(ask("evil.example") == 403);
  CHECK(ask("gateway.example") == 200);
  CHECK(ask("Gateway.Example:8080") == 200);
  CHECK(ask("localhost:1") == 200);
  CHECK(ask("127.0.0.1") == 200);
  CHECK(ask("localhost.evil.example") == 403);
  CHECK(ask("localhost:99999") == 400);
}

TEST_CASE("readiness follows the service, liveness does not") {
  Fixture f;
  f.start();
  CHECK(f.get("/readyz").status == 200);
  f.service.set_ready(false);
  const HttpResponse not_ready = f.get("/readyz");
  CHECK(not_ready.status == 503);
  CHECK(not_ready.body == "loading weights\n");
  CHECK(f.get("/health").status == 503);
  CHECK(f.get("/livez").status == 200);
}

TEST_CASE("metrics count by route and status, with no label a client can choose") {
  Fixture f;
  f.start();
  CHECK(f.post("/v1/chat/completions", kChatBody).status == 200);
  CHECK(f.get("/chosen-by-client").status == 404);
  const std::string text = f.get("/metrics").body;
  CHECK(text.find("updraft_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1") !=
        std::string::npos);
  CHECK(text.find("updraft_http_requests_total{route=\"other\",status=\"404\"} 1") !=
        std::string::npos);
  CHECK(text.find("updraft_ttft_seconds_count 1") != std::string::npos);
  CHECK(text.find("updraft_http_request_seconds_bucket{route=") != std::string::npos);
  CHECK(text.find("updraft_open_streams") == std::string::npos);
  CHECK(text.find("chosen-by-client") == std::string::npos);
}

TEST_CASE("each answered request is one record for the access log") {
  Fixture f;
  f.start();
  CHECK(f.post("/v1/chat/completions", kChatBody, {{"x-request-id", "mine"}}).status == 200);
  f.get("/livez");
  f.server->stop(1000);
  REQUIRE(f.log.size() == 2);
  const AccessRecord& record = f.log[0];
  CHECK(record.request_id == "mine");
  CHECK(record.inference_id == f.service.wait_request()->id);
  CHECK(record.method == "POST");
  CHECK(record.path == "/v1/chat/completions");
  CHECK(record.remote.starts_with("127.0.0.1:"));
  CHECK(record.model == "demo");
  CHECK(record.node == "edge-1");
  CHECK(record.tier == "edge");
  CHECK(record.status == 200);
  CHECK(record.body_bytes == static_cast<int64_t>(std::string_view(kChatBody).size()));
  CHECK(record.prompt_tokens == 5);
  CHECK(record.completion_tokens == 2);
  CHECK(record.ttft_ms >= 0);
  CHECK(f.log[1].path == "/livez");
}

TEST_CASE("x-updraft headers become hints") {
  Fixture f;
  f.start();
  const std::string trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  CHECK(f.post("/v1/chat/completions", kChatBody,
               {{"x-updraft-tier", "cloud"},
                {"x-updraft-priority", "bulk"},
                {"x-updraft-session", "s-1"},
                {"x-updraft-deadline-ms", "2500"},
                {"traceparent", trace}})
            .status == 200);
  const auto request = f.service.wait_request();
  REQUIRE(request);
  CHECK(request->hints.tier == Tier::kCloud);
  CHECK(request->hints.priority == Priority::kBulk);
  CHECK(request->hints.session == "s-1");
  CHECK(request->hints.deadline_ms == 2500);
  CHECK(request->trace == trace);
  CHECK(f.post("/v1/chat/completions", kChatBody, {{"x-updraft-deadline-ms", "-1"}}).status == 400);
}
