// Shared state of a server's connections: their registry, counters and the clock of the Date
// header.
#include "common/http/server_state.h"

#include <ctime>
#include <utility>

#include "common/base/clock.h"
#include "common/http/connection.h"

namespace updraft {
namespace {

const std::vector<double> kRequestSeconds = {0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1,
                                             2.5,   5,     10,   30,   60,  120, 300};
const std::vector<double> kTtftSeconds = {0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
                                          1,     2,    5,    10,   20,  60};

}  // namespace

ServerState::ServerState(HttpServerConfig server_config, InferenceService* inference,
                         Metrics& server_metrics, std::function<void(const AccessRecord&)> log,
                         boost::asio::io_context& loop_io)
    : config(std::move(server_config)),
      service(inference),
      metrics(server_metrics),
      answers(config.idempotency),
      access_log(std::move(log)),
      io(loop_io) {}

void ServerState::add(std::shared_ptr<Connection> connection, bool refused) {
  Connection* key = connection.get();
  connections.emplace(key, std::move(connection));
  if (refused) ++refused_connections;
  metrics.gauge("updraft_http_connections", "Open HTTP connections.")
      .set(static_cast<double>(connections.size()));
}

void ServerState::remove(Connection* connection, bool refused) {
  if (connections.erase(connection) == 0) return;
  if (refused) --refused_connections;
  metrics.gauge("updraft_http_connections", "Open HTTP connections.")
      .set(static_cast<double>(connections.size()));
  if (connections.empty() && on_last_closed) on_last_closed();
}

void ServerState::stream_opened() {
  metrics.gauge("updraft_open_streams", "Answers being streamed.")
      .set(static_cast<double>(++open_streams));
}

void ServerState::stream_closed() {
  metrics.gauge("updraft_open_streams", "Answers being streamed.")
      .set(static_cast<double>(--open_streams));
}

void ServerState::count_request(const std::string& route, int status, double seconds) {
  metrics
      .counter("updraft_http_requests_total", "Answered HTTP requests.",
               {{"route", route}, {"status", std::to_string(status)}})
      .add();
  metrics
      .histogram("updraft_http_request_seconds",
                 "From the end of a request's head to the end of its answer.", kRequestSeconds,
                 {{"route", route}})
      .observe(seconds);
}

void ServerState::count_limited(const char* what) {
  metrics
      .counter("updraft_http_limited_total", "Requests over a limit of their key, by which limit.",
               {{"limit", what}})
      .add();
}

void ServerState::observe_ttft(double seconds) {
  metrics
      .histogram("updraft_ttft_seconds",
                 "From a request's arrival to its first token, at the HTTP surface.", kTtftSeconds)
      .observe(seconds);
}

// RFC 9110 5.6.7; the names are English in every locale.
const std::string& ServerState::date() {
  constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const int64_t now_s = unix_seconds();
  if (now_s != date_unix_s_) {
    date_unix_s_ = now_s;
    const time_t time = now_s;
    tm utc{};
    gmtime_r(&time, &utc);
    char text[64];
    std::snprintf(text, sizeof text, "%s, %02d %s %04d %02d:%02d:%02d GMT", kDays[utc.tm_wday],
                  utc.tm_mday, kMonths[utc.tm_mon], utc.tm_year + 1900, utc.tm_hour, utc.tm_min,
                  utc.tm_sec);
    date_ = text;
  }
  return date_;
}

}  // namespace updraft
