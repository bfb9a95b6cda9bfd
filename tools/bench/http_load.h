// Load on an HTTP endpoint, from one thread: arrivals that do not wait for answers (open loop), and
// many streams at once. A request's time counts from the moment it was due, so that a slow answer
// does not hide the wait of those behind it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"

namespace updraft {

struct HttpEndpoint {
  std::string host = "127.0.0.1";  // an address
  uint16_t port = 0;
};

// A POST of `body` (JSON) as bytes on the wire, for a connection that is kept.
std::string http_post_bytes(const HttpEndpoint& endpoint, const std::string& path,
                            const std::string& body);

struct HttpLoadPlan {
  HttpEndpoint endpoint;
  std::string request;       // whole, as by http_post_bytes()
  double rate_per_s = 1000;  // Poisson arrivals
  int64_t duration_ns = 0;
  int connections = 64;  // kept alive; an arrival that finds all busy waits, and its time counts
  uint64_t seed = 1;
};

struct HttpLoadResult {
  uint64_t answered = 0;  // with 200, whole
  uint64_t refused = 0;   // with another status
  uint64_t broken = 0;    // the connection ended before the answer did
  double p50_us = 0;      // of the answered ones, from due to the last byte
  double p99_us = 0;
  double mean_us = 0;
};
// Errors: the endpoint does not take connections.
Result<HttpLoadResult> run_http_load(const HttpLoadPlan& plan);

// Many streaming requests, each on a connection of its own.
class HttpStreams {
 public:
  virtual ~HttpStreams() = default;  // closes them, which cancels at the server
  // Connects `count` times and sends `request` on each (nothing when it is empty: connections that
  // stay idle). Returns when all are connected. Errors: a connection that is refused.
  static Result<std::unique_ptr<HttpStreams>> open(const HttpEndpoint& endpoint,
                                                   const std::string& request, int count);
  // Reads for that long.
  virtual void pump(int64_t for_ns) = 0;

  virtual int started() const = 0;      // streams whose first event has come
  virtual int ended() const = 0;        // streams that have ended, well or not
  virtual uint64_t events() const = 0;  // of all streams so far
  virtual uint64_t bytes() const = 0;
};

}  // namespace updraft
