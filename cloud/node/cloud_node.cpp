// The cloud node: model, links to the routers, a listener for metrics and health. The daemon's own
// thread (the caller's) only starts and stops; work flows between the links' threads and the
// model's.
#include "cloud/node/cloud_node.h"

#include <algorithm>
#include <mutex>

#include "common/base/clock.h"
#include "common/daemon/access_log.h"
#include "common/daemon/machine_metrics.h"
#include "common/daemon/measured_service.h"
#include "common/daemon/node_metrics.h"
#include "common/daemon/node_model.h"
#include "common/daemon/pool_links.h"
#include "common/http/server.h"
#include "common/log/memory_log.h"
#include "common/message/memory_refusal.h"
#include "common/metrics/memory_metrics.h"

namespace updraft {
namespace {

// What the node's HTTP listener says: health and metrics; requests belong to the router.
class HealthService : public InferenceService {
 public:
  HealthService(const LocalModel& model, const PoolLinks& links, MemoryWatch& memory)
      : model_(model), links_(links), memory_(memory) {}
  void submit(Request, EventSink sink) override {
    sink(error_of(ErrorCode::kForbidden,
                  "this listener serves metrics and health only; send requests to the router"));
  }
  void cancel(const RequestId&) override {}
  std::vector<ModelInfo> models() const override { return model_.models(); }
  bool ready(std::string* why_not) const override {
    if (!model_.ready(why_not)) return false;
    if (const auto refusal = short_of_memory()) {
      if (why_not != nullptr) *why_not = refusal->message;
      return false;
    }
    if (links_.connected_count() > 0) return true;
    if (why_not != nullptr) *why_not = "no router is connected";
    return false;
  }
  std::optional<RequestError> short_of_memory() const override {
    return memory_refusal(memory_.level(), Priority::kSystem);
  }

 private:
  const LocalModel& model_;
  const PoolLinks& links_;
  MemoryWatch& memory_;
};

class Node : public CloudNode {
 public:
  Node(const CloudConfig& config, std::unique_ptr<LocalModel> model)
      : config_(config),
        memory_(config.memory, config.memory_root, log_memory_change),
        metrics_(Metrics::create()),
        model_(std::move(model)) {}
  ~Node() override { stop(); }

  Result<void> open() {
    export_model_metrics(*metrics_, *model_, config_.model);
    export_machine_metrics(*metrics_);
    export_memory_metrics(*metrics_, memory_);
    const std::vector<ModelInfo> models = model_->models();
    measured_ = std::make_unique<MeasuredService>(
        *model_, *metrics_, models.empty() ? config_.model.served_name : models[0].id,
        MeasuredService::Log::kAnswers);
    const NodeHello hello =
        make_hello(config_.node_id, Tier::kCloud, *model_, config_.model.aliases);
    auto links = PoolLinks::start(config_.pool, hello, *measured_, memory_,
                                  [this] { return BeatFiller(*model_); });
    if (!links) return links.error();
    links_ = std::move(*links);
    health_ = std::make_unique<HealthService>(*model_, *links_, memory_);
    Gauge& connected =
        metrics_->gauge("updraft_pool_routers_connected", "Routers this node is connected to.");
    metrics_->on_scrape([this, &connected] { connected.set(links_->connected_count()); });

    auto server = HttpServer::start(config_.http, *health_, *metrics_, log_access);
    if (!server) return server.error();
    server_ = std::move(*server);
    links_->set_state(NodeState::kReady);
    serves_ = true;
    log_info("cloud node serves", {{"id", config_.node_id},
                                   {"model", model_->description()},
                                   {"http_port", server_->port()}});
    return {};
  }

  bool connected() const override { return links_->connected_count() > 0; }
  uint16_t http_port() const override { return server_->port(); }
  Result<std::vector<std::string>> reload() override {
    if (config_.file.empty()) return fail("the configuration did not come from a file");
    const auto fresh = load_cloud_config(config_.file);
    if (!fresh) return fresh.error();
    return reload_http(*server_, fresh->http, config_.settings, fresh->settings, config_.file);
  }

  // New work is refused from here on; the links say goodbye when what runs has ended; the listener
  // goes last, so that a drain can be watched.
  void stop() override {
    const std::lock_guard lock(stop_mutex_);
    if (stopped_) return;
    stopped_ = true;
    const int64_t begin_ns = monotonic_ns();
    if (links_) {
      links_->set_state(NodeState::kDraining);
      links_->drain(config_.drain_grace_ms);
    }
    model_->drain();
    if (server_) server_->stop(0);
    if (!serves_) return;
    log_info("cloud node stopped",
             {{"id", config_.node_id}, {"drain_ms", (monotonic_ns() - begin_ns) / kNsPerMs}});
  }

 private:
  const CloudConfig config_;
  MemoryWatch memory_;
  // Order of destruction, from the bottom: the listener, what it asks, the links, then the model
  // they hold.
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<MeasuredService> measured_;  // its sinks run until the model has gone
  std::unique_ptr<LocalModel> model_;
  std::unique_ptr<PoolLinks> links_;
  std::unique_ptr<HealthService> health_;
  std::unique_ptr<HttpServer> server_;
  std::mutex stop_mutex_;
  bool stopped_ = false;
  bool serves_ = false;  // open() has done all
};

}  // namespace

Result<std::unique_ptr<CloudNode>> CloudNode::start(const CloudConfig& config,
                                                    std::unique_ptr<LocalModel> model) {
  auto node = std::make_unique<Node>(config, std::move(model));
  if (auto opened = node->open(); !opened) return opened.error();
  return std::unique_ptr<CloudNode>(std::move(node));
}

Result<std::unique_ptr<CloudNode>> CloudNode::start(const CloudConfig& config,
                                                    const Progress& progress) {
  if (auto keys = check_pool_keys(config.pool); !keys) return keys.error();
  auto model = open_node_model(config.model, config.node_id, Tier::kCloud, progress);
  if (!model) return model.error();
  return start(config, std::move(*model));
}

}  // namespace updraft
