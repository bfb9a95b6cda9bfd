// The router daemon put together: keys, the pool and the HTTP surface on one thread, the
// watch on the allow-list.
#include "cloud/router/router.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>

#include "cloud/router/admin.h"
#include "cloud/router/allow_list_watch.h"
#include "cloud/router/relay.h"
#include "common/base/clock.h"
#include "common/http/http_config.h"
#include "common/log/log.h"
#include "common/log/memory_log.h"
#include "common/metrics/memory_metrics.h"

namespace updraft {
namespace {

constexpr int32_t kAllowListIntervalMs = 2000;

void log_access(const AccessRecord& record) {
  log_info("request", {{"id", record.request_id},
                       {"method", record.method},
                       {"path", record.path},
                       {"status", record.status},
                       {"ms", record.duration_ms},
                       {"ttft_ms", record.ttft_ms},
                       {"model", record.model},
                       {"node", record.node},
                       {"tier", record.tier},
                       {"decision", record.decision},
                       {"tenant", record.tenant},
                       {"user", record.user},
                       {"role", record.role},
                       {"trace", record.trace},
                       {"stream", record.stream},
                       {"replayed", record.replayed},
                       {"prompt_tokens", record.prompt_tokens},
                       {"completion_tokens", record.completion_tokens},
                       {"bytes", record.body_bytes},
                       {"remote", record.remote}});
}

// Another one at each start, so that nodes notice a restart.
uint64_t epoch_of_this_start() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  // Doubled: the odd neighbour of an epoch tells a node that its session is over.
  return 2 *
         static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

class RouterImpl : public Router, private AdminTarget {
 public:
  ~RouterImpl() override { stop(0); }

  Result<void> open(const RouterConfig& config) {
    config_ = config;
    keys_ = config.http.auth;
    Result<CurveKeys> keys = load_curve_keys(config.key_file);
    if (!keys) return keys.error();
    Result<std::vector<AllowedKey>> allowed = load_allowed_keys(config.allowed_keys_folder);
    if (!allowed) return allowed.error();
    memory_ = std::make_unique<MemoryWatch>(config.memory, config.memory_root, log_memory_change);
    export_memory_metrics(*metrics_, *memory_);
    RelayConfig relay;
    relay.core.router_id = config.router_id;
    relay.core.router_epoch = epoch_of_this_start();
    relay.core.seed = relay.core.router_epoch;
    relay.core.queue_max = config.queue_max;
    relay.core.queue_timeout_ms = config.queue_timeout_ms;
    relay.core.edge_reserve_slots = config.edge_reserve_slots;
    relay.core.price_weight = static_cast<float>(config.price_weight_ms) / 1000.0F;
    relay.endpoint = config.pool_endpoint;
    relay.keys = std::move(*keys);
    relay.allowed = std::move(*allowed);
    Result<std::unique_ptr<Relay>> started =
        Relay::start(std::move(relay), *metrics_, *memory_, *loop_);
    if (!started) return started.error();
    relay_ = std::move(started).value();
    Result<std::unique_ptr<HttpServer>> http =
        HttpServer::start(config.http, relay_->service(), *metrics_, log_access);
    if (!http) return http.error();
    http_ = std::move(http).value();
    http_port_ = http_->port();
    if (auto opened = open_admin(); !opened) return opened.error();
    watch_ = std::make_unique<AllowListWatch>(
        config.allowed_keys_folder, kAllowListIntervalMs,
        [this](const std::vector<AllowedKey>& keys_now) { relay_->set_allowed(keys_now); });
    return {};
  }

  uint16_t http_port() const override { return http_port_; }
  uint16_t admin_port() const override { return admin_ == nullptr ? 0 : admin_->port(); }

  Result<ReloadReport> reload() override {
    const std::lock_guard lock(reload_mutex_);
    if (config_.file.empty()) return fail("the configuration did not come from a file");
    const Result<RouterConfig> fresh = load_router_config(config_.file);
    if (!fresh) return fresh.error();
    if (admin_ != nullptr) {
      // Whoever asked for this must be able to ask again.
      if (fresh->http.auth == nullptr || !fresh->http.auth->has_admin())
        return fail(config_.file + ": no key with the role admin would be left");
      HttpServerConfig admin = fresh->http;
      admin.bind_address = config_.admin.bind_address;
      admin.port = config_.admin.port;
      if (auto done = admin_->reconfigure(admin); !done) return done.error();
    }
    if (auto done = http_->reconfigure(fresh->http); !done) return done.error();
    keys_ = fresh->http.auth;
    ReloadReport report{needs_restart(config_.settings, fresh->settings)};
    std::string names;
    for (const std::string& name : report.needs_restart) names += (names.empty() ? "" : " ") + name;
    log_info("configuration reloaded", {{"file", config_.file}, {"needs_restart", names}});
    return report;
  }
  std::string pool_endpoint() const override { return relay_->endpoint(); }

  std::vector<NodeView> nodes() const override {
    std::vector<NodeView> views;
    for (RouterCore::NodeInfo& node : relay_->nodes()) {
      views.push_back(
          {std::move(node.id), node.tier, node.state, std::move(node.models), node.running});
    }
    return views;
  }

  // New requests are refused, those under way may end; then whatever is left ends with an error.
  void stop(int grace_ms) override {
    const std::lock_guard lock(stop_mutex_);
    if (stopped_) return;
    stopped_ = true;
    watch_.reset();
    if (relay_ != nullptr) relay_->stop_taking();
    if (http_ != nullptr) http_->stop(grace_ms);
    if (admin_ != nullptr) admin_->stop(0);
    if (relay_ != nullptr) relay_->stop();
    loop_->stop();
  }

 private:
  Result<void> open_admin() {
    if (!config_.has_admin) return {};
    auto audit = AuditLog::open(config_.audit_file);
    if (!audit) return audit.error();
    audit_ = std::move(*audit);
    auto admin = HttpServer::start(config_.admin, admin_routes(*this, *audit_), *admin_metrics_,
                                   [this](const AccessRecord& record) {
                                     audit_refusal(*audit_, record);
                                     log_access(record);
                                   });
    if (!admin) return admin.error("admin");
    admin_ = std::move(*admin);
    return {};
  }

  bool drain_node(const std::string& node_id, int32_t grace_ms) override {
    return relay_->drain_node(node_id, grace_ms);
  }
  bool undrain_node(const std::string& node_id) override { return relay_->undrain_node(node_id); }
  std::vector<AdminBreaker> breakers() const override {
    std::vector<AdminBreaker> out;
    for (RouterCore::BreakerView& view : relay_->breakers()) {
      out.push_back({std::move(view.node_id), std::move(view.model), view.state, view.faults,
                     view.requests, view.retry_ms});
    }
    return out;
  }
  std::shared_ptr<const Authenticator> keys() const override {
    const std::lock_guard lock(reload_mutex_);
    return keys_;
  }

  // Destroyed from the last to the first: the server uses the relay's service, both use the
  // metrics. The relay works on the loop.
  std::unique_ptr<MemoryWatch> memory_;
  const std::unique_ptr<EventLoop> loop_ = EventLoop::start();
  std::unique_ptr<Metrics> metrics_ = Metrics::create();
  std::unique_ptr<Metrics> admin_metrics_ = Metrics::create();  // its own: not those of requests
  RouterConfig config_;                                         // as started
  mutable std::mutex reload_mutex_;
  std::shared_ptr<const Authenticator> keys_;  // guarded by reload_mutex_
  std::unique_ptr<AuditLog> audit_;
  std::unique_ptr<Relay> relay_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<HttpServer> admin_;  // asks all of the above
  std::unique_ptr<AllowListWatch> watch_;
  uint16_t http_port_ = 0;
  std::mutex stop_mutex_;
  bool stopped_ = false;  // guarded by stop_mutex_
};

}  // namespace

Result<std::unique_ptr<Router>> Router::start(const RouterConfig& config) {
  auto router = std::make_unique<RouterImpl>();
  if (Result<void> opened = router->open(config); !opened) return opened.error();
  return std::unique_ptr<Router>(std::move(router));
}

}  // namespace updraft
