// One request and its answer on a connection: checks in the order in which they cost, routing, the
// way from events to response bytes.
#include <algorithm>
#include <array>
#include <utility>

#include "common/base/bytes.h"
#include "common/base/clock.h"
#include "common/http/connection_answer.h"

namespace updraft {

using std::string;
using std::string_view;

namespace {

constexpr const char* kJson = "application/json";
constexpr const char* kPlain = "text/plain; charset=utf-8";

const char* reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Error";
  }
}

// Values that come from other machines must not become header lines of their own.
string header_safe(string_view text) { return printable(text, 200); }

string retry_after(int32_t retry_after_ms) {
  const int32_t ms = std::max(retry_after_ms, 1);
  return "Retry-After: " + std::to_string((ms + 999) / 1000) +
         "\r\nretry-after-ms: " + std::to_string(ms) + "\r\n";
}

int64_t ms_since(int64_t since_ns) { return (monotonic_ns() - since_ns) / kNsPerMs; }

// The target has passed check_target: every escape is well-formed.
string percent_decoded(string_view text) {
  string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    out += static_cast<char>(std::stoi(string(text.substr(i + 1, 2)), nullptr, 16));
    i += 2;
  }
  return out;
}

}  // namespace

const Connection::Route* Connection::find_route(string_view path) {
  static constexpr std::array<Route, 8> kRoutes = {{
      {"/v1/chat/completions", "/v1/chat/completions", true, true, false},
      {"/v1/completions", "/v1/completions", true, true, false},
      {"/v1/models", "/v1/models", false, true, false},
      {"/v1/models/", "/v1/models/{id}", false, true, true},
      {"/livez", "/livez", false, false, false},
      {"/readyz", "/readyz", false, false, false},
      {"/health", "/health", false, false, false},
      {"/metrics", "/metrics", false, true, false},
  }};
  for (const Route& route : kRoutes) {
    if (route.is_prefix ? path.starts_with(route.path) && path.size() > route.path.size()
                        : path == route.path) {
      return &route;
    }
  }
  return nullptr;
}

// --- taking a request
// ----------------------------------------------------------------------------------------------

void Connection::begin_exchange() {
  arrived_ns_ = monotonic_ns();
  exchange_open_ = true;
  answered_ = false;
  route_ = nullptr;
  request_id_ = new_request_id();
  record_ = AccessRecord();
  record_.remote = remote_;
}

void Connection::on_fault() {
  if (!exchange_open_) begin_exchange();
  close_after_ = true;
  const HttpFault fault = reader_->fault();
  respond_error(fault.status, fault.message,
                fault.status >= 500 ? "server_error" : "invalid_request_error", "");
}

bool Connection::check_host_header() {
  std::vector<string> allowed = server_.allowed_hosts;
  // The address that this connection reached: an address in a Host field cannot have been rebound.
  boost::system::error_code ignored;
  auto address = socket_.local_endpoint(ignored).address();
  if (address.is_v6() && address.to_v6().is_v4_mapped()) {
    address = boost::asio::ip::make_address_v4(boost::asio::ip::v4_mapped, address.to_v6());
  }
  allowed.push_back(address.is_v6() ? "[" + address.to_string() + "]" : address.to_string());
  const auto fault = check_host(reader_->head().field("host"), allowed);
  if (!fault) return true;
  respond_error(fault->status, fault->message,
                fault->status == 403 ? "permission_error" : "invalid_request_error",
                fault->status == 403 ? "forbidden" : "");
  return false;
}

// What can be said before the body is read: where, how, who, what kind.
void Connection::on_head() {
  begin_exchange();
  const HttpRequestHead& head = reader_->head();
  record_.method = printable(head.method, 20);
  record_.path = printable(head.path, 200);
  const string_view client_id = head.field("x-request-id");
  if (is_request_id(client_id)) request_id_ = client_id;
  // Until the body is taken: an early answer leaves it unread, and then the connection cannot go
  // on.
  const bool keep_alive = head.keep_alive && !server_.draining && !close_after_;
  close_after_ = head.has_body || !keep_alive;

  if (!check_host_header()) return;
  route_ = find_route(head.path);
  if (route_ == nullptr) {
    respond_error(404, "there is no " + record_.method + " " + record_.path + " here",
                  "invalid_request_error", "not_found");
    return;
  }
  const bool method_ok =
      route_->is_post ? head.method == "POST" : head.method == "GET" || head.method == "HEAD";
  if (!method_ok) {
    const char* allow = route_->is_post ? "POST" : "GET, HEAD";
    respond_error(405, record_.path + " takes " + allow + ", not " + record_.method,
                  "invalid_request_error", "method_not_allowed",
                  "Allow: " + string(allow) + "\r\n");
    return;
  }
  if (route_->needs_key) {
    const auto tenant = server_.keys.tenant_of(head.field("authorization"));
    if (!tenant) {
      const bool missing = head.field("authorization").empty();
      respond_error(401,
                    missing ? "an API key is needed: Authorization: Bearer <key>"
                            : "this API key is not known here",
                    "invalid_request_error", "invalid_api_key", "WWW-Authenticate: Bearer\r\n");
      return;
    }
    record_.tenant = *tenant;
  }
  if (!route_->is_post && head.has_body) {
    respond_error(400, record_.path + " takes no body", "invalid_request_error", "");
    return;
  }
  if (route_->is_post && !is_json_content_type(head.field("content-type"))) {
    respond_error(415,
                  "Content-Type must be application/json, got '" +
                      printable(head.field("content-type")) + "'",
                  "invalid_request_error", "unsupported_media_type");
    return;
  }
  if (!head.field("content-encoding").empty() &&
      ascii_lower(head.field("content-encoding")) != "identity") {
    respond_error(415,
                  "Content-Encoding is not supported, got '" +
                      printable(head.field("content-encoding")) + "'",
                  "invalid_request_error", "unsupported_media_type");
    return;
  }
  if (server_.draining && route_->is_post) {
    respond_error(503, "the server is going down", "server_error", "overloaded", retry_after(1000));
    return;
  }
  close_after_ = !keep_alive;
  if (head.expects_continue && head.has_body && in_.empty()) {
    out_ += "HTTP/1.1 100 Continue\r\n\r\n";
    flush();
  }
}

void Connection::on_body() {
  if (!route_->is_post) {
    answer_get(*route_);
    return;
  }
  answer_inference(route_->path == "/v1/chat/completions" ? Request::Kind::kChat
                                                          : Request::Kind::kCompletion);
}

void Connection::answer_get(const Route& route) {
  if (route.path == "/livez") {
    respond(200, kPlain, "ok\n");
  } else if (route.path == "/readyz" || route.path == "/health") {
    string why_not = "going down";
    if (!server_.draining && server_.service.ready(&why_not)) {
      respond(200, kPlain, "ok\n");
    } else {
      respond(503, kPlain, printable(why_not, 200) + "\n", retry_after(1000));
    }
  } else if (route.path == "/metrics") {
    respond(200, "text/plain; version=0.0.4; charset=utf-8", server_.metrics.text());
  } else if (route.path == "/v1/models") {
    respond(200, kJson, models_json(server_.service.models()));
  } else {
    const string id = percent_decoded(string_view(reader_->head().path).substr(route.path.size()));
    for (const ModelInfo& model : server_.service.models()) {
      if (model.id == id) {
        respond(200, kJson, model_json(model));
        return;
      }
    }
    RequestError error;
    error.code = ErrorCode::kModelNotFound;
    error.message = "the model '" + printable(id) + "' is not served here";
    error.param = "model";
    respond_error(error);
  }
}

void Connection::answer_inference(Request::Kind kind) {
  const HttpRequestHead& head = reader_->head();
  const RequestHeaders headers = {.request_id = head.field("x-request-id"),
                                  .traceparent = head.field("traceparent"),
                                  .tier = head.field("x-updraft-tier"),
                                  .residency = head.field("x-updraft-residency"),
                                  .priority = head.field("x-updraft-priority"),
                                  .session = head.field("x-updraft-session"),
                                  .deadline_ms = head.field("x-updraft-deadline-ms")};
  string body = reader_->take_body();
  account_body();
  record_.body_bytes = static_cast<int64_t>(body.size());
  auto parsed = read_openai_call(kind, body, headers);
  string().swap(body);
  if (auto* error = std::get_if<RequestError>(&parsed)) {
    respond_error(*error);
    return;
  }
  OpenAiCall& call = std::get<OpenAiCall>(parsed);
  if (headers.request_id.empty()) request_id_ = call.request.id;
  call.request.tenant = record_.tenant;
  record_.model = call.request.model;
  record_.inference_id = call.request.id;

  state_ = State::kAnswering;
  set_deadline(0);
  answer_ = std::make_unique<Answer>();
  answer_->id = call.request.id;
  const AnswerHead answer_head(call, unix_seconds());
  if (call.stream) {
    answer_->stream.emplace(answer_head);
  } else {
    answer_->whole.emplace(answer_head);
  }
  answer_->inbox = std::make_shared<EventInbox>(
      server_.io, [weak = weak_from_this()](std::vector<Event> events) {
        if (const auto self = weak.lock()) self->on_events(std::move(events));
      });
  server_.service.submit(std::move(call.request),
                         [inbox = answer_->inbox](Event event) { inbox->push(std::move(event)); });
}

// --- from events to the answer
// -------------------------------------------------------------------------------------

void Connection::on_events(std::vector<Event> events) {
  for (const Event& event : events) {
    if (answer_ == nullptr || state_ != State::kAnswering) return;
    std::visit([this](const auto& alternative) { on_event(alternative); }, event);
  }
  if (answer_ != nullptr && !answer_->pending.empty()) stream(std::exchange(answer_->pending, {}));
  // A reader slower than the model: its answer ends, its siblings never notice.
  if (answer_ != nullptr &&
      out_.size() - out_sent_ > server_.config.limits.stream_buffer_bytes_max &&
      answer_->streaming) {
    RequestError error;
    error.code = ErrorCode::kInternal;
    error.message = "the stream is read too slowly; more than " +
                    std::to_string(server_.config.limits.stream_buffer_bytes_max) +
                    " bytes wait to be sent";
    server_.service.cancel(answer_->id);
    on_event(error);
    record_.status = 499;
  }
  if (state_ == State::kAnswering) flush();
}

void Connection::on_event(const Started& started) {
  answer_->started = started;
  answer_->placed = true;
  record_.node = started.node_id;
  record_.tier = tier_name(started.tier);
  if (answer_->whole) {
    answer_->whole->started(started);
    return;
  }
  begin_stream();
  answer_->pending += answer_->stream->started(started);
}

void Connection::on_event(const TokenChunk& chunk) {
  if (answer_->ttft_ms < 0 && (!chunk.ids.empty() || !chunk.text.empty())) {
    answer_->ttft_ms = ms_since(arrived_ns_);
    record_.ttft_ms = answer_->ttft_ms;
    server_.observe_ttft(static_cast<double>(monotonic_ns() - arrived_ns_) / kNsPerSecond);
  }
  if (answer_->whole) {
    answer_->whole->chunk(chunk);
    return;
  }
  begin_stream();
  answer_->pending += answer_->stream->chunk(chunk);
}

void Connection::on_event(const Finished& finished) {
  answer_->ended = true;
  record_.prompt_tokens = finished.usage.prompt_tokens;
  record_.completion_tokens = finished.usage.completion_tokens;
  const ServedInfo served = served_info(finished);
  if (answer_->whole) {
    const string body = answer_->whole->body(finished, served);
    respond(200, kJson, body, served_headers());
    return;
  }
  begin_stream();
  answer_->pending += answer_->stream->finished(finished, served);
  end_stream();
}

void Connection::on_event(const RequestError& error) {
  answer_->ended = true;
  if (!answer_->streaming) {
    respond_error(error, served_headers());
    return;
  }
  // The status is out already; no [DONE] tells the client that this is not the whole answer.
  record_.status = http_status(error.code);
  answer_->pending += error_event(error);
  close_after_ = true;
  end_stream();
}

void Connection::begin_stream() {
  if (answer_->streaming) return;
  answer_->streaming = true;
  record_.status = 200;
  server_.stream_opened();
  string headers =
      "Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: "
      "no-cache\r\nX-Accel-Buffering: no\r\n";
  if (reader_->head().http_1_0) {
    close_after_ =
        true;  // the end of the connection is the only end of the answer that this version knows
  } else {
    headers += "Transfer-Encoding: chunked\r\n";
  }
  out_ += head_text(200, headers + served_headers());
}

// One batch of events as one chunk.
void Connection::stream(string_view events) {
  if (reader_->head().http_1_0) {
    out_ += events;
    return;
  }
  char size[20];
  std::snprintf(size, sizeof size, "%zx\r\n", events.size());
  out_ += size;
  out_ += events;
  out_ += "\r\n";
}

void Connection::end_stream() {
  if (!answer_->pending.empty()) stream(std::exchange(answer_->pending, {}));
  if (!reader_->head().http_1_0) out_ += "0\r\n\r\n";
  answered_ = true;
  leave_answer(false);
}

// Forgets the service's side. cancel: it has not ended by itself.
void Connection::leave_answer(bool cancel) {
  if (answer_ == nullptr) return;
  answer_->inbox->close();
  if (answer_->streaming) server_.stream_closed();
  if (cancel && !answer_->ended) server_.service.cancel(answer_->id);
  answer_.reset();
}

ServedInfo Connection::served_info(const Finished& finished) const {
  ServedInfo served;
  served.started = answer_->started;
  served.queued_ms = finished.timings.queued_ns / kNsPerMs;
  served.ttft_ms = answer_->ttft_ms;
  served.total_ms = ms_since(arrived_ns_);
  return served;
}

string Connection::served_headers() const {
  if (answer_ == nullptr || !answer_->placed) return "";
  const Started& started = answer_->started;
  return "x-updraft-node: " + header_safe(started.node_id) +
         "\r\nx-updraft-tier: " + tier_name(started.tier) +
         "\r\nx-updraft-decision: " + header_safe(started.decision) + "\r\n";
}

// --- responses
// -----------------------------------------------------------------------------------------------------

string Connection::head_text(int status, string extra_headers) {
  string out = "HTTP/1.1 " + std::to_string(status) + " " + reason_phrase(status) +
               "\r\nDate: " + server_.date() + "\r\nServer: " + server_.config.server_name +
               "\r\nx-request-id: " + request_id_ + "\r\nX-Content-Type-Options: nosniff\r\n" +
               extra_headers;
  if (close_after_) {
    out += "Connection: close\r\n";
  } else if (reader_ != nullptr && reader_->head().http_1_0) {
    out += "Connection: keep-alive\r\n";
  }
  return out + "\r\n";
}

void Connection::respond(int status, string_view content_type, string_view body,
                         string extra_headers) {
  if (!exchange_open_) begin_exchange();
  state_ = State::kAnswering;
  record_.status = status;
  extra_headers += "Content-Type: " + string(content_type) +
                   "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  out_ += head_text(status, std::move(extra_headers));
  if (record_.method != "HEAD") out_ += body;
  answered_ = true;
  leave_answer(false);
  flush();
}

void Connection::respond_error(const RequestError& error, string extra_headers) {
  const int status = http_status(error.code);
  if (status == 429 || status == 503)
    extra_headers += retry_after(error.retry_after_ms > 0 ? error.retry_after_ms : 1000);
  respond(status, kJson, error_json(error), std::move(extra_headers));
}

void Connection::respond_error(int status, string_view message, string_view type, string_view code,
                               string extra_headers) {
  respond(status, kJson, error_json(message, type, "", code), std::move(extra_headers));
}

// The answer is with the kernel, or the client is gone: count and log.
void Connection::finish_exchange(int status) {
  if (!exchange_open_) return;
  exchange_open_ = false;
  record_.status = status;
  record_.request_id = request_id_;
  record_.duration_ms = ms_since(arrived_ns_);
  server_.count_request(route_ == nullptr ? "other" : route_->label, status,
                        static_cast<double>(monotonic_ns() - arrived_ns_) / kNsPerSecond);
  if (server_.access_log) server_.access_log(record_);
  reader_.reset();
  account_body();
}

}  // namespace updraft
