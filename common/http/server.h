// The HTTP/1.1 surface: one thread that accepts, reads strictly, routes, streams SSE. Router and
// edge use the same code over different InferenceServices.
//
// Threads: everything here runs on the thread of one EventLoop, the server's own or one that it
// shares with a service, except the public methods marked "any thread". Events of services may
// arrive on any thread and are posted to the loop.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/auth/authenticator.h"
#include "common/base/result.h"
#include "common/http/event_loop.h"
#include "common/http/idempotency.h"
#include "common/http/routes.h"
#include "common/message/service.h"
#include "common/metrics/metrics.h"

namespace updraft {

struct HttpLimits {
  size_t header_bytes_max = 8 * 1024;
  int header_count_max = 64;
  size_t body_bytes_max = 16 * 1024 * 1024;
  size_t bodies_bytes_max =
      512 * 1024 * 1024;  // of all bodies being received at once; beyond that 503
  int connections_max = 10000;
  int request_read_timeout_ms =
      30000;                    // whole header + body, so that a slow sender cannot hold a slot
  int idle_timeout_ms = 75000;  // keep-alive
  int write_stall_timeout_ms = 10000;  // a reader that takes nothing for that long is closed
  size_t stream_buffer_bytes_max =
      256 * 1024;  // unsent SSE bytes of one stream; then the stream ends with an error
  int sse_keepalive_ms = 15000;  // comment line while nothing else is sent
};

struct HttpServerConfig {
  std::string bind_address = "127.0.0.1";
  uint16_t port = 0;                          // 0: any free one
  std::shared_ptr<const Authenticator> auth;  // null: whoever reaches the address is a developer
  std::vector<std::string> allowed_hosts;     // Host header names accepted besides localhost,
                                              // 127.0.0.1, [::1] and bind_address
  std::string tls_cert_file, tls_key_file;    // PEM; empty: plain HTTP
  bool behind_tls_proxy = false;              // plain HTTP on another address than loopback's
  HttpLimits limits;
  IdempotencyLimits idempotency;
  std::string server_name = "updraft";
};

// One line for the access log of each answered request, given to the owner (who logs it).
struct AccessRecord {
  std::string request_id;    // as answered in x-request-id
  std::string inference_id;  // Request::id, by which services log; empty when none was submitted
  std::string method, path, remote, model, node, tier, tenant;
  std::string user, role;   // the key's name or the token's subject, and what it may
  std::string decision;     // why it was placed there
  std::string trace;        // W3C traceparent, empty: none came
  std::string trace_state;  // its tracestate
  bool stream = false;
  bool replayed = false;  // answered by what was stored under its Idempotency-Key
  int status = 0;         // 499: the client left
  int64_t duration_ms = 0;
  int64_t body_bytes = 0;
  int64_t prompt_tokens = 0, completion_tokens = 0;
  int64_t ttft_ms = -1;
};

class HttpServer {
 public:
  virtual ~HttpServer() = default;  // stops; open streams end with an error event

  // Binds and starts serving openai_routes() over `service`. Errors: address in use, not allowed,
  // bad address: one line with address and port; TLS files that cannot be used. Refused: another
  // address than loopback's without keys, or without TLS (unless behind_tls_proxy).
  // shared_loop: outlives the server; null: a thread of its own.
  static Result<std::unique_ptr<HttpServer>> start(
      const HttpServerConfig& config, InferenceService& service, Metrics& metrics,
      std::function<void(const AccessRecord&)> access_log, EventLoop* shared_loop = nullptr);
  // Serves these routes and /livez. Refused besides: no keys at all.
  static Result<std::unique_ptr<HttpServer>> start(
      const HttpServerConfig& config, std::vector<HttpRoute> routes, Metrics& metrics,
      std::function<void(const AccessRecord&)> access_log);

  virtual uint16_t port() const = 0;
  // Any thread. Takes over keys, TLS files (read anew), hosts and limits from `config` for what
  // comes from now on; what is being answered goes on as it began. Error: nothing has changed.
  // Bind address and port stay what they were.
  virtual Result<void> reconfigure(const HttpServerConfig& config) = 0;
  // Any thread but the loop's, which must still run. Stops accepting, lets open requests end for at
  // most grace_ms, then closes; returns when all is closed and nothing of this server runs any
  // more.
  virtual void stop(int grace_ms) = 0;
};

}  // namespace updraft
