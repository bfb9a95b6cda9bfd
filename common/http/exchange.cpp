// One request and its answer on a connection: checks in the order in which they cost, routing, the
// way from events to response bytes.
#include <algorithm>
#include <limits>
#include <utility>

#include "common/base/bytes.h"
#include "common/base/clock.h"
#include "common/http/connection_answer.h"
#include "common/http/trace_context.h"
#include "common/metrics/memory_metrics.h"

namespace updraft {

using std::string;
using std::string_view;

namespace {

constexpr const char* kJson = "application/json";

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
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
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

// As OpenAI writes them: "87ms", "1.5s", "6m0s".
string duration_text(int64_t ms) {
  if (ms < 1000) return std::to_string(ms) + "ms";
  string text = ms >= 60'000 ? std::to_string(ms / 60'000) + "m" : "";
  text += std::to_string(ms / 1000 % 60);
  if (ms % 1000 != 0) {
    string digits = std::to_string(1000 + ms % 1000).substr(1);
    digits.erase(digits.find_last_not_of('0') + 1);
    text += "." + digits;
  }
  return text + "s";
}

// What a client needs to keep within its key's limits. No field for a limit that there is not.
string rate_headers(const RateLimits::Room& room) {
  string text;
  const auto add = [&](const char* what, const RateLimits::Left& left) {
    if (left.limit == 0) return;
    const string name = "x-ratelimit-";
    text += name + "limit-" + what + ": " + std::to_string(left.limit) + "\r\n" + name +
            "remaining-" + what + ": " + std::to_string(left.remaining) + "\r\n" + name + "reset-" +
            what + ": " + duration_text(left.reset_ms) + "\r\n";
  };
  add("requests", room.requests);
  add("tokens", room.tokens);
  return text;
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

constexpr string_view kLastChunk = "0\r\n\r\n";

// All that makes a request what it is: two with one digest are one request sent twice.
string digest_of(const HttpRequestHead& head, const RequestHeaders& headers, string_view body) {
  string text;
  for (const string_view part : {string_view(head.path), headers.tier, headers.residency,
                                 headers.priority, headers.session, headers.deadline_ms, body}) {
    text += std::to_string(part.size()) + ':';
    text += part;
  }
  return sha256_hex(text);
}

// Tokens that a request will use, before anybody has counted: four bytes of text a token, and what
// its answers may have.
int64_t estimated_prompt_tokens(const Request& request) {
  constexpr int64_t kBytesPerToken = 4;
  int64_t tokens = prompt_text_bytes(request) / kBytesPerToken;
  for (const auto& ids : request.prompt_ids) tokens += static_cast<int64_t>(ids.size());
  return tokens;
}
int64_t estimated_answer_tokens(const Request& request) {
  constexpr int64_t kUnlimitedAnswerTokens = 256;
  const int64_t each =
      request.sampling.max_tokens ? *request.sampling.max_tokens : kUnlimitedAnswerTokens;
  return each * total_choices(request);
}

}  // namespace

// --- taking a request
// ----------------------------------------------------------------------------------------------

void Connection::begin_exchange() {
  arrived_ns_ = monotonic_ns();
  exchange_open_ = true;
  answered_ = false;
  route_.reset();
  who_ = Principal();
  request_id_ = new_request_id();
  limit_headers_.clear();
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

  if (!check_host_header() || !choose_route() || !authorize() || !check_content()) return;
  if (server_.draining && std::holds_alternative<Request::Kind>(route_->route->answer)) {
    respond_error(503, "the server is going down", "server_error", "overloaded", retry_after(1000));
    return;
  }
  if (std::holds_alternative<Request::Kind>(route_->route->answer)) {
    if (const auto refusal = server_.service->short_of_memory()) {
      // Its body is not read, and the client may find another router by a new connection.
      close_after_ = true;
      memory_refused(server_.metrics, "refuse").add();
      respond_error(*refusal);
      return;
    }
  }
  close_after_ = !keep_alive;
  if (head.expects_continue && head.has_body && in_.empty()) {
    out_ += "HTTP/1.1 100 Continue\r\n\r\n";
    flush();
  }
}

bool Connection::choose_route() {
  const HttpRequestHead& head = reader_->head();
  RouteMatch match = find_route(server_.routes, head.method, head.path);
  if (match.route != nullptr) {
    route_ = std::move(match);
    return true;
  }
  if (match.allowed.empty()) {
    respond_error(404, "there is no " + record_.method + " " + record_.path + " here",
                  "invalid_request_error", "not_found");
  } else {
    respond_error(405, record_.path + " takes " + match.allowed + ", not " + record_.method,
                  "invalid_request_error", "method_not_allowed",
                  "Allow: " + match.allowed + "\r\n");
  }
  return false;
}

// Who asks, and whether the route is for such.
bool Connection::authorize() {
  const HttpRoute& route = *route_->route;
  if (route.least == Role::kNobody) return true;
  const auto& auth = server_.config.auth;
  if (auth == nullptr || auth->empty()) {
    who_.role = Role::kDeveloper;  // whoever reaches a loopback address
  } else {
    auto known = auth->authenticate(reader_->head().field("authorization"), unix_seconds());
    if (const auto* unknown = std::get_if<Unauthenticated>(&known)) {
      respond_error(401, unknown->message, "invalid_request_error", "invalid_api_key",
                    "WWW-Authenticate: Bearer\r\n");
      return false;
    }
    who_ = std::move(std::get<Principal>(known));
    record_.tenant = who_.tenant;
    record_.user = printable(who_.name, 100);
    record_.role = role_name(who_.role);
  }
  if (who_.role >= route.least) return true;
  respond_error(403,
                route.method + " " + route.path + " needs the role " + role_name(route.least) +
                    ", this key has " + role_name(who_.role),
                "permission_error", "insufficient_role");
  return false;
}

// What kind of body comes, if any.
bool Connection::check_content() {
  const HttpRequestHead& head = reader_->head();
  const bool is_post = head.method == "POST";
  if (!is_post && head.has_body) {
    respond_error(400, record_.path + " takes no body", "invalid_request_error", "");
    return false;
  }
  const bool is_inference = std::holds_alternative<Request::Kind>(route_->route->answer);
  if (is_post && (is_inference || head.has_body) &&
      !is_json_content_type(head.field("content-type"))) {
    respond_error(415,
                  "Content-Type must be application/json, got '" +
                      printable(head.field("content-type")) + "'",
                  "invalid_request_error", "unsupported_media_type");
    return false;
  }
  if (!head.field("content-encoding").empty() &&
      ascii_lower(head.field("content-encoding")) != "identity") {
    respond_error(415,
                  "Content-Encoding is not supported, got '" +
                      printable(head.field("content-encoding")) + "'",
                  "invalid_request_error", "unsupported_media_type");
    return false;
  }
  return true;
}

void Connection::on_body() {
  if (const auto* kind = std::get_if<Request::Kind>(&route_->route->answer)) {
    answer_inference(*kind);
  } else {
    answer_function(std::get<RouteFunction>(route_->route->answer));
  }
}

void Connection::answer_function(const RouteFunction& function) {
  const string argument = percent_decoded(route_->argument);
  const string body = reader_->take_body();
  account_body();
  record_.body_bytes = static_cast<int64_t>(body.size());
  RouteReply reply = function({who_, remote_, argument, body});
  respond(reply.status, reply.content_type, reply.body, std::move(reply.headers));
}

void Connection::answer_inference(Request::Kind kind) {
  const HttpRequestHead& head = reader_->head();
  const string trace_state = head.joined("tracestate");
  const RequestHeaders headers = {.request_id = head.field("x-request-id"),
                                  .traceparent = head.field("traceparent"),
                                  .tracestate = trace_state,
                                  .tier = head.field("x-updraft-tier"),
                                  .residency = head.field("x-updraft-residency"),
                                  .priority = head.field("x-updraft-priority"),
                                  .session = head.field("x-updraft-session"),
                                  .deadline_ms = head.field("x-updraft-deadline-ms")};
  string body = reader_->take_body();
  account_body();
  record_.body_bytes = static_cast<int64_t>(body.size());
  auto parsed = read_openai_call(kind, body, headers);
  // A copy: once an answer is out, the request's head is gone.
  const string key(head.field("idempotency-key"));
  const string digest = key.empty() ? "" : digest_of(head, headers, body);
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
  record_.trace = call.request.trace;
  record_.trace_state = call.request.trace_state;
  record_.stream = call.stream;
  if (who_.role == Role::kGuest && call.request.hints.priority < Priority::kDefault) {
    respond_error(403, "a guest's x-updraft-priority is default or bulk", "permission_error",
                  "insufficient_role");
    return;
  }
  if (!key.empty() && answered_before(key, digest)) return;
  std::optional<RateLimits::Ticket> ticket = within_limits(call.request);
  if (!ticket) {
    if (!key.empty()) server_.answers.abandon(record_.tenant, key);
    return;
  }
  answer_ = std::make_unique<Answer>();
  answer_->ticket = std::move(*ticket);
  answer_->prompt_tokens_assumed = estimated_prompt_tokens(call.request);
  answer_->idempotency_key = key;
  submit(std::move(call));
}

// The answer to a request that was sent before under the same Idempotency-Key; false: it is the
// first, and this connection owes the store an answer.
bool Connection::answered_before(const string& key, const string& digest) {
  if (!is_idempotency_key(key)) {
    respond_error(400,
                  "Idempotency-Key must be 1 to 255 visible ASCII characters, got '" +
                      printable(key, 40) + "'",
                  "invalid_request_error", "");
    return true;
  }
  const auto begun = server_.answers.begin(record_.tenant, key, digest, monotonic_ns());
  switch (begun.verdict) {
    case IdempotencyStore::Verdict::kRun:
      return false;
    case IdempotencyStore::Verdict::kInFlight:
      respond_error(409, "a request with this Idempotency-Key is being answered",
                    "invalid_request_error", "idempotency_key_in_use", retry_after(1000));
      return true;
    case IdempotencyStore::Verdict::kOtherRequest:
      respond_error(422, "this Idempotency-Key was used for another request",
                    "invalid_request_error", "idempotency_key_reused");
      return true;
    case IdempotencyStore::Verdict::kStored:
      replay(*begun.stored);
      return true;
  }
  return true;
}

void Connection::replay(const StoredAnswer& stored) {
  record_.replayed = true;
  const string headers = stored.headers + "Idempotent-Replayed: true\r\n";
  if (!stored.is_stream) {
    respond(stored.status, kJson, stored.body, headers);
    return;
  }
  state_ = State::kAnswering;
  record_.status = stored.status;
  out_ += stream_head(headers);
  stream(stored.body);
  if (!reader_->head().http_1_0) out_ += kLastChunk;
  answered_ = true;
  flush();
}

// Room within the key's limits, or a 429 that says when there will be some.
std::optional<RateLimits::Ticket> Connection::within_limits(const Request& request) {
  const int64_t now_ns = monotonic_ns();
  auto admitted = server_.rates.admit(
      who_.tenant, who_.limits, estimated_prompt_tokens(request) + estimated_answer_tokens(request),
      now_ns);
  limit_headers_ = rate_headers(server_.rates.room(who_.tenant, who_.limits, now_ns));
  if (auto* ticket = std::get_if<RateLimits::Ticket>(&admitted)) return std::move(*ticket);
  const auto& refusal = std::get<RateLimits::Refusal>(admitted);
  server_.count_limited(refusal.what);
  respond_error(error_of(
      ErrorCode::kRateLimited,
      "this key has reached its limit of " + std::to_string(refusal.limit) + " " + refusal.what,
      static_cast<int32_t>(
          std::min<int64_t>(refusal.retry_after_ms, std::numeric_limits<int32_t>::max()))));
  return std::nullopt;
}

void Connection::submit(OpenAiCall call) {
  state_ = State::kAnswering;
  set_deadline(0);
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
  server_.service->submit(std::move(call.request),
                          [inbox = answer_->inbox](Event event) { inbox->push(std::move(event)); });
}

// --- from events to the answer
// -------------------------------------------------------------------------------------

void Connection::on_events(std::vector<Event> events) {
  for (const Event& event : events) {
    if (answer_ == nullptr || state_ != State::kAnswering) return;
    std::visit([this](const auto& alternative) { on_event(alternative); }, event);
  }
  if (answer_ != nullptr) send_pending();
  // A reader slower than the model: its answer ends, its siblings never notice.
  if (answer_ != nullptr &&
      out_.size() - out_sent_ > server_.config.limits.stream_buffer_bytes_max &&
      answer_->streaming) {
    RequestError error;
    error.code = ErrorCode::kInternal;
    error.message = "the stream is read too slowly; more than " +
                    std::to_string(server_.config.limits.stream_buffer_bytes_max) +
                    " bytes wait to be sent";
    server_.service->cancel(answer_->id);
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
  record_.decision = printable(started.decision, 200);
  if (answer_->whole) {
    answer_->whole->started(started);
    return;
  }
  begin_stream();
  answer_->pending += answer_->stream->started(started);
}

void Connection::on_event(const TokenChunk& chunk) {
  answer_->tokens_seen += static_cast<int64_t>(chunk.ids.size());
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
  answer_->complete = true;
  const ServedInfo served = served_info(finished);
  if (answer_->whole) {
    const string body = answer_->whole->body(finished, served);
    const string headers = served_headers();
    if (!answer_->idempotency_key.empty()) keep({200, headers, body, false});
    respond(200, kJson, body, headers);
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
  out_ += stream_head(served_headers());
}

string Connection::stream_head(const string& more_headers) {
  string headers =
      "Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: "
      "no-cache\r\nX-Accel-Buffering: no\r\n";
  if (reader_->head().http_1_0) {
    close_after_ =
        true;  // the end of the connection is the only end of the answer that this version knows
  } else {
    headers += "Transfer-Encoding: chunked\r\n";
  }
  return head_text(200, headers + more_headers);
}

// What has become ready since the last batch, as one chunk.
void Connection::send_pending() {
  if (answer_->pending.empty()) return;
  const string events = std::exchange(answer_->pending, {});
  // One byte beyond the limit is enough to know that it is not worth keeping.
  if (!answer_->idempotency_key.empty() &&
      answer_->kept.size() <= server_.answers.limits().answer_bytes_max)
    answer_->kept += events;
  stream(events);
}

// Whoever asks again with this answer's key gets it from now on.
void Connection::keep(StoredAnswer stored) {
  server_.answers.finish(record_.tenant, std::exchange(answer_->idempotency_key, {}),
                         std::move(stored), monotonic_ns());
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
  send_pending();
  if (answer_->complete && !answer_->idempotency_key.empty())
    keep({200, served_headers(), std::move(answer_->kept), true});
  if (!reader_->head().http_1_0) out_ += kLastChunk;
  answered_ = true;
  leave_answer(false);
}

// Forgets the service's side. cancel: it has not ended by itself.
void Connection::leave_answer(bool cancel) {
  if (answer_ == nullptr) return;
  answer_->inbox->close();
  if (answer_->streaming) server_.stream_closed();
  if (cancel && !answer_->ended) server_.service->cancel(answer_->id);
  if (!answer_->idempotency_key.empty())
    server_.answers.abandon(record_.tenant, answer_->idempotency_key);
  const int64_t counted = record_.prompt_tokens + record_.completion_tokens;
  const int64_t assumed =
      answer_->placed ? answer_->prompt_tokens_assumed + answer_->tokens_seen : 0;
  server_.rates.settle(answer_->ticket, answer_->complete ? counted : assumed, monotonic_ns());
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
  out += limit_headers_;
  if (!record_.trace.empty()) out += "traceparent: " + record_.trace + "\r\n";
  if (!record_.trace_state.empty()) out += "tracestate: " + record_.trace_state + "\r\n";
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
  server_.count_request(route_ ? route_->route->path : "other", status,
                        static_cast<double>(monotonic_ns() - arrived_ns_) / kNsPerSecond);
  if (server_.access_log) server_.access_log(record_);
  reader_.reset();
  account_body();
}

}  // namespace updraft
