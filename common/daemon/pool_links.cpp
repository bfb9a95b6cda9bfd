// See the header.
#include "common/daemon/pool_links.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

namespace updraft {

class PoolLinks::Upward : public InferenceService {
 public:
  explicit Upward(const std::vector<std::unique_ptr<PoolLink>>& links) : links_(links) {}

  void submit(Request request, EventSink sink) override {
    for (const auto& link : links_) {
      if (link->connected()) return link->upward().submit(std::move(request), std::move(sink));
    }
    sink(error_of(ErrorCode::kOverloaded,
                  links_.empty() ? "no router is configured" : "no router can be reached", 2000));
  }
  // Links ignore what they do not know.
  void cancel(const RequestId& id) override {
    for (const auto& link : links_) link->upward().cancel(id);
  }
  std::vector<ModelInfo> models() const override {
    std::vector<ModelInfo> all;
    for (const auto& link : links_) {
      for (ModelInfo& model : link->upward().models()) {
        const bool known = std::any_of(all.begin(), all.end(),
                                       [&](const ModelInfo& m) { return m.id == model.id; });
        if (!known) all.push_back(std::move(model));
      }
    }
    return all;
  }
  bool ready(std::string* why_not) const override {
    for (const auto& link : links_) {
      if (link->upward().ready(why_not)) return true;
    }
    if (links_.empty() && why_not != nullptr) *why_not = "no router is configured";
    return false;
  }

 private:
  const std::vector<std::unique_ptr<PoolLink>>& links_;
};

PoolLinks::PoolLinks() : upward_(std::make_unique<Upward>(links_)) {}
PoolLinks::~PoolLinks() = default;
InferenceService& PoolLinks::upward() { return *upward_; }

Result<std::unique_ptr<PoolLinks>> PoolLinks::start(
    const PoolSection& pool, const NodeHello& hello, InferenceService& local, MemoryWatch& memory,
    const std::function<std::function<void(NodeBeat&)>()>& make_filler) {
  std::unique_ptr<PoolLinks> out(new PoolLinks());
  if (pool.router_endpoints.empty()) return out;
  const Result<CurveKeys> keys = load_curve_keys(pool.key_file);
  if (!keys) return keys.error();
  const Result<std::string> router_key = load_public_key(pool.router_key_file);
  if (!router_key) return router_key.error();
  const auto grants = std::make_shared<GrantLedger>(kGrantBeats * pool.beat_interval_ms);
  NodeHello priced = hello;
  priced.price = static_cast<float>(pool.price);
  for (const std::string& endpoint : pool.router_endpoints) {
    PoolLinkConfig config;
    config.grants = grants;
    config.router_endpoint = endpoint;
    config.router_public_key = *router_key;
    config.keys = *keys;
    config.beat_interval_ms = pool.beat_interval_ms;
    config.lease_ttl_ms = pool.lease_ttl_ms;
    // Each beat brings the level of now.
    auto fill_beat = [grants, &memory, fill = make_filler()](NodeBeat& beat) {
      grants->set_memory(memory.level());
      fill(beat);
    };
    auto link = PoolLink::start(config, priced, local, std::move(fill_beat));
    if (!link) return link.error();
    out->links_.push_back(std::move(*link));
  }
  return out;
}

int PoolLinks::connected_count() const {
  return static_cast<int>(std::count_if(links_.begin(), links_.end(),
                                        [](const auto& link) { return link->connected(); }));
}

void PoolLinks::set_state(NodeState state) {
  for (const auto& link : links_) link->set_state(state);
}

void PoolLinks::drain(int grace_ms) {
  std::vector<std::thread> drains;
  for (const auto& link : links_) drains.emplace_back([&link, grace_ms] { link->drain(grace_ms); });
  for (std::thread& thread : drains) thread.join();
}

Result<void> check_pool_keys(const PoolSection& pool) {
  if (pool.router_endpoints.empty()) return {};
  if (const auto keys = load_curve_keys(pool.key_file); !keys) return keys.error();
  if (const auto key = load_public_key(pool.router_key_file); !key) return key.error();
  return {};
}

NodeHello make_hello(const std::string& node_id, Tier tier, const LocalModel& model,
                     const std::vector<std::string>& aliases) {
  NodeHello hello;
  hello.node_id = node_id;
  hello.boot_epoch = static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                               std::chrono::system_clock::now().time_since_epoch())
                                               .count());
  hello.tier = tier;
  hello.models = model.models();
  if (!hello.models.empty()) {
    ModelInfo named = hello.models.front();
    for (const std::string& alias : aliases) {
      named.id = alias;
      hello.models.push_back(named);
    }
  }
  hello.device = model.device();
  hello.software_version = UPDRAFT_VERSION;
  return hello;
}

}  // namespace updraft
