// The edge daemon: one model, one EdgeService before it, two doors for local clients (loopback HTTP
// and the shared-memory handoff), links to the routers. The daemon's own thread (the caller's) only
// starts and stops.
#include "edge/edge_daemon.h"

#include <algorithm>
#include <mutex>
#include <thread>

#include "common/base/clock.h"
#include "common/daemon/access_log.h"
#include "common/daemon/machine_metrics.h"
#include "common/daemon/measured_service.h"
#include "common/daemon/node_metrics.h"
#include "common/daemon/node_model.h"
#include "common/daemon/pool_links.h"
#include "common/log/memory_log.h"
#include "common/metrics/memory_metrics.h"
#include "edge/edge_service.h"
#include "edge/local_server.h"

namespace updraft {
namespace {

class Daemon : public EdgeDaemon {
 public:
  Daemon(const EdgeConfig& config, std::unique_ptr<LocalModel> model)
      : config_(config),
        memory_(config.memory, config.memory_root, log_memory_change),
        metrics_(Metrics::create()),
        model_(std::move(model)) {}
  ~Daemon() override { stop(); }

  Result<void> open() {
    export_model_metrics(*metrics_, *model_, config_.model);
    export_machine_metrics(*metrics_);
    export_memory_metrics(*metrics_, memory_);
    const std::vector<ModelInfo> models = model_->models();
    measured_ = std::make_unique<MeasuredService>(
        *model_, *metrics_, models.empty() ? config_.model.served_name : models[0].id,
        MeasuredService::Log::kAnswers);
    measured_local_ = std::make_unique<MeasuredService>(
        *model_, *metrics_, models.empty() ? config_.model.served_name : models[0].id,
        MeasuredService::Log::kNothing);
    const NodeHello hello =
        make_hello(config_.node_id, Tier::kEdge, *model_, config_.model.aliases);
    // Work of the router's goes to the model itself: it was placed already.
    auto links = PoolLinks::start(config_.pool, hello, *measured_, memory_,
                                  [this] { return BeatFiller(*model_); });
    if (!links) return links.error();
    links_ = std::move(*links);

    EdgeServiceConfig service;
    service.aliases = config_.model.aliases;
    service.pool_configured = links_->configured();
    service.memory = &memory_;
    service_ = std::make_unique<EdgeService>(service, *model_, links_->upward(), *metrics_,
                                             measured_local_.get());

    auto http = HttpServer::start(config_.http, *service_, *metrics_, log_access);
    if (!http) return http.error();
    http_ = std::move(*http);
    if (auto opened = open_local_door(); !opened) return opened;
    export_metrics();
    links_->set_state(NodeState::kReady);
    serves_ = true;
    log_info("edge serves",
             {{"id", config_.node_id},
              {"model", model_->description()},
              {"http_port", http_->port()},
              {"socket", config_.socket_path},
              {"routers", static_cast<int64_t>(config_.pool.router_endpoints.size())}});
    return {};
  }

  uint16_t http_port() const override { return http_->port(); }
  std::string socket_path() const override { return config_.socket_path; }
  bool connected() const override { return links_->connected_count() > 0; }
  Result<std::vector<std::string>> reload() override {
    if (config_.file.empty()) return fail("the configuration did not come from a file");
    const auto fresh = load_edge_config(config_.file);
    if (!fresh) return fresh.error();
    return reload_http(*http_, fresh->http, config_.settings, fresh->settings, config_.file);
  }

  // First the doors close for new requests, then what runs may end, of local clients and of the
  // router, within one grace.
  void stop() override {
    const std::lock_guard lock(stop_mutex_);
    if (stopped_) return;
    stopped_ = true;
    const int64_t begin_ns = monotonic_ns();
    const auto left_ms = [&] {
      return static_cast<int>(
          std::max<int64_t>(0, config_.drain_grace_ms - (monotonic_ns() - begin_ns) / kNsPerMs));
    };
    if (service_) service_->drain();
    if (links_) links_->set_state(NodeState::kDraining);
    if (http_) http_->stop(left_ms());
    while (local_ && local_->stats().requests_in_flight > 0 && left_ms() > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    local_.reset();
    if (links_) links_->drain(left_ms());
    model_->drain();
    if (service_) service_->close();
    if (!serves_) return;
    log_info("edge stopped",
             {{"id", config_.node_id}, {"drain_ms", (monotonic_ns() - begin_ns) / kNsPerMs}});
  }

 private:
  // The door for local programs: shared memory, handed over on a Unix socket. Without a path
  // (tests, gateways that want HTTP only) it stays shut.
  Result<void> open_local_door() {
    if (config_.socket_path.empty()) return {};
    LocalServerConfig local;
    local.socket_path = config_.socket_path;
    local.sessions_max = config_.sessions_max;
    local.sessions_per_uid_max = config_.sessions_per_uid_max;
    local.segment_bytes_max = config_.segment_bytes_max;
    local.segment_bytes_per_uid_max = config_.segment_bytes_per_uid_max;
    local.requests_per_uid_max = config_.requests_per_uid_max;
    local.stall_ms = config_.stall_ms;
    local.spin_us = config_.local_spin_us;
    auto server = LocalServer::start(local, *service_);
    if (!server) return server.error();
    local_ = std::move(*server);
    return {};
  }

  void export_metrics() {
    Gauge& connected =
        metrics_->gauge("updraft_pool_routers_connected", "Routers this node is connected to.");
    Gauge& in_flight = metrics_->gauge("updraft_edge_requests_in_flight",
                                       "Requests of local clients not yet ended.");
    Gauge& sessions =
        metrics_->gauge("updraft_local_sessions", "Programs connected through shared memory.");
    Gauge& mapped =
        metrics_->gauge("updraft_local_mapped_bytes", "Shared memory of their sessions.");
    Gauge& huge = metrics_->gauge("updraft_local_huge_page_bytes",
                                  "Of that memory, what lies in whole huge pages.");
    const char* const refused_name = "updraft_local_refused_total";
    Counter& sessions_refused =
        metrics_->counter(refused_name,
                          "What local programs were refused: sessions, further segments, requests "
                          "over a quota; and answers ended because nobody read them.",
                          {{"what", "session"}});
    Counter& segments_refused = metrics_->counter(refused_name, "", {{"what", "segment"}});
    Counter& over_quota = metrics_->counter(refused_name, "", {{"what", "request"}});
    Counter& stalled = metrics_->counter(refused_name, "", {{"what", "stalled_answer"}});
    metrics_->on_scrape([this, &connected, &in_flight, &sessions, &mapped, &huge, &sessions_refused,
                         &segments_refused, &over_quota, &stalled] {
      connected.set(links_->connected_count());
      in_flight.set(static_cast<double>(service_->in_flight()));
      if (!local_) return;
      const LocalServerStats stats = local_->stats();
      sessions.set(stats.sessions);
      mapped.set(static_cast<double>(stats.mapped_bytes));
      huge.set(static_cast<double>(stats.huge_page_bytes));
      // Counters only grow: by what came since the last scrape.
      sessions_refused.add(
          static_cast<double>(stats.sessions_refused - exported_.sessions_refused));
      segments_refused.add(
          static_cast<double>(stats.segments_refused - exported_.segments_refused));
      over_quota.add(
          static_cast<double>(stats.requests_over_quota - exported_.requests_over_quota));
      stalled.add(static_cast<double>(stats.streams_stalled - exported_.streams_stalled));
      exported_ = stats;
    });
  }

  const EdgeConfig config_;
  MemoryWatch memory_;
  std::unique_ptr<Metrics> metrics_;
  // Order of destruction, from the bottom: the doors, the links (what rose ends through the
  // service), the model (what runs ends through the service), the service.
  std::unique_ptr<EdgeService> service_;
  std::unique_ptr<MeasuredService> measured_;  // the router's work; sinks run as long as the model
  std::unique_ptr<MeasuredService> measured_local_;  // requests of local clients
  std::unique_ptr<LocalModel> model_;
  std::unique_ptr<PoolLinks> links_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<LocalServer> local_;
  std::mutex stop_mutex_;
  bool stopped_ = false;
  bool serves_ = false;        // open() has done all
  LocalServerStats exported_;  // what the counters show; the HTTP thread's
};

}  // namespace

Result<std::unique_ptr<EdgeDaemon>> EdgeDaemon::start(const EdgeConfig& config,
                                                      std::unique_ptr<LocalModel> model) {
  auto daemon = std::make_unique<Daemon>(config, std::move(model));
  if (auto opened = daemon->open(); !opened) return opened.error();
  return std::unique_ptr<EdgeDaemon>(std::move(daemon));
}

Result<std::unique_ptr<EdgeDaemon>> EdgeDaemon::start(const EdgeConfig& config,
                                                      const Progress& progress) {
  if (auto keys = check_pool_keys(config.pool); !keys) return keys.error();
  auto model = open_node_model(config.model, config.node_id, Tier::kEdge, progress);
  if (!model) return model.error();
  return start(config, std::move(*model));
}

}  // namespace updraft
