// See the header. The order of things is that of cloud/router/relay.cpp.
#include "tools/sim/sim_router.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "common/base/clock.h"

namespace updraft::sim {
namespace {

constexpr int64_t kTickNs = 20 * kNsPerMs;

const char* name_of(const PoolMessage& message) {
  static constexpr std::array<const char*, 13> kNames = {
      "hello",  "beat",   "submit", "accepted", "rejected", "tokens", "done",
      "failed", "cancel", "drain",  "welcome",  "part",     "echo"};
  static_assert(kNames.size() == std::variant_size_v<PoolMessage>);
  return kNames[message.index()];
}

// "c3 r000012 e5": the connection, and of what belongs to a request its id and epoch.
std::string about(const PeerId& peer, const PoolMessage& message) {
  return std::visit(
      [&](const auto& value) -> std::string {
        if constexpr (requires { value.id; })
          return peer + ' ' + value.id + " e" + std::to_string(value.epoch);
        if constexpr (requires { value.request.id; })
          return peer + ' ' + value.request.id + " e" + std::to_string(value.epoch);
        return peer;
      },
      message);
}

}  // namespace

class SimRouter::Socket final : public PoolListener {
 public:
  explicit Socket(Network& network) : network_(network) {}
  std::string endpoint() const override { return "simulated"; }
  void set_allowed(const std::vector<AllowedKey>&) override {}
  int receive(int, const std::function<void(Inbound&&)>&) override { return 0; }
  SendOutcome try_send(const std::string& peer, ByteView frame) override {
    return network_.router_send(peer, frame);
  }
  int poll_fd() const override { return -1; }
  uint64_t refused_count() const override { return 0; }

 private:
  Network& network_;
};

SimRouter::SimRouter(World& world, Network& network, Ledger& ledger, RouterCoreConfig config,
                     int number)
    : world_(world),
      network_(network),
      ledger_(ledger),
      config_(std::move(config)),
      number_(number),
      socket_(std::make_unique<Socket>(network)) {}

void SimRouter::start(ProcessClock clock) {
  clock_ = clock;
  ++life_;
  config_.router_epoch = 1000 * (static_cast<uint64_t>(number_) + 1) + 10 * life_;
  config_.seed = world_.random.next();
  ledger_.on_router_start(number_, config_);
  core_ = std::make_unique<RouterCore>(config_, now_ns());
  peers_ = std::make_unique<PeerTable>(PeerTable::Limits{});
  actions_.clear();
  deferred_.clear();
  network_.open(number_);
  world_.note("router starts", config_.router_id, config_.router_epoch);
  world_.after(kTickNs, [this, life = life_] { tick(life); });
}

void SimRouter::crash(Farewell farewell) {
  if (!running()) return;
  world_.note("router crashes", config_.router_id);
  ++life_;
  core_.reset();
  peers_.reset();
  clients_.clear();
  deferred_.clear();
  network_.shut(number_, farewell);
  ledger_.on_entrance_lost({false, number_});
}

void SimRouter::pause() {
  if (!running() || deferred_.paused()) return;
  world_.note("router pauses", config_.router_id);
  deferred_.pause();
  ledger_.set_paused({false, number_}, true);
  network_.pause_router(number_, true);
}

void SimRouter::resume() {
  if (!running() || !deferred_.paused()) return;
  world_.note("router goes on", config_.router_id);
  ledger_.set_paused({false, number_}, false);
  deferred_.resume();
  network_.pause_router(number_, false);
}

void SimRouter::submit(Request request, ClientId client) {
  deferred_.run([this, request = std::move(request), client]() mutable {
    clients_.insert(client);
    ledger_.on_router_request(number_, request);
    const auto began = std::chrono::steady_clock::now();
    core_->submit(std::move(request), client, now_ns(), actions_);
    if (placements_us_ != nullptr) {
      placements_us_->push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - began)
              .count());
    }
    carry_out();
    flush();
  });
}

void SimRouter::cancel(const RequestId& id) {
  deferred_.run([this, id] {
    core_->cancel(id, now_ns(), actions_);
    carry_out();
    flush();
  });
}

void SimRouter::drain(const std::string& node_id, int32_t grace_ms) {
  if (!running() || deferred_.paused()) return;
  world_.note("operator drains", node_id, static_cast<uint64_t>(number_));
  if (core_->drain_node(node_id, grace_ms, actions_)) ledger_.on_router_drain(number_, node_id);
  carry_out();
  flush();
}

void SimRouter::on_frame(const PeerId& peer, int node, std::vector<std::byte>&& frame) {
  const int64_t now = now_ns();
  Result<std::optional<PoolMessage>> message = peers_->read(peer, frame, now);
  if (!message) {
    world_.note("frame refused", peer, frame.size());
    core_->on_bad_frame(peer);
    return;
  }
  if (!message->has_value()) return;
  const PeerInfo from{peer, "key-" + std::to_string(node), "name-" + std::to_string(node)};
  world_.note(name_of(**message), about(peer, **message), 0, frame.size());
  const NodeIndex index = core_->registry().find_peer(peer);
  const uint64_t beat_seq = index == kNoNode ? 0 : core_->registry().node(index).beat_seq;
  // What the ledger needs of it; a request's payload may be long.
  PoolMessage seen = [&]() -> PoolMessage {
    if (const auto* submit = std::get_if<Submit>(&**message)) {
      Submit light;
      light.request.id = submit->request.id;
      light.request.model = submit->request.model;
      light.request.hints = submit->request.hints;
      light.request.choice_count = submit->request.choice_count;
      light.request.kind = submit->request.kind;
      light.request.prompt_ids.resize(submit->request.prompt_ids.size());
      light.epoch = submit->epoch;
      return light;
    }
    return **message;
  }();
  const bool known =
      index != kNoNode && core_->registry().load(index).freshness != Freshness::kDead;
  const auto* hello = std::get_if<NodeHello>(&seen);
  const bool new_session =
      hello != nullptr &&
      (!known || core_->registry().node(index).hello.boot_epoch != hello->boot_epoch);
  core_->on_message(from, std::move(**message), now, actions_);
  if (known || hello != nullptr)
    ledger_.on_router_in(number_, from, seen, *core_, beat_seq, new_session);
  carry_out();
  flush();
}

void SimRouter::tick(uint64_t life) {
  if (life != life_) return;
  world_.after(kTickNs, [this, life] { tick(life); });
  if (deferred_.paused()) return;
  core_->on_tick(now_ns(), actions_);
  carry_out();
  core_->take_changes();
  flush();
}

void SimRouter::carry_out() {
  for (size_t i = 0; i < actions_.size(); ++i) {
    Action action = std::move(actions_[i]);
    if (auto* deliver = std::get_if<Deliver>(&action)) {
      ledger_.on_router_deliver(number_, deliver->client, deliver->event);
      ledger_.on_event(deliver->client, deliver->event);
      if (is_end(deliver->event)) clients_.erase(deliver->client);
      continue;
    }
    const auto& send = std::get<Send>(action);
    world_.note(std::string("-> ") + name_of(send.message), about(send.peer, send.message));
    ledger_.on_router_out(number_, send.peer, send.message);
    if (peers_->queue(send.peer, send.message, now_ns())) continue;
    if (const auto* submit = std::get_if<Submit>(&send.message)) {
      ledger_.on_router_unsent(number_, send.peer, *submit);
      core_->on_unsendable(*submit, now_ns(), actions_);
    }
  }
  actions_.clear();
  ledger_.on_router_idle(number_, *core_);
}

void SimRouter::flush() {
  if (!running() || deferred_.paused()) return;
  bool more = true;
  while (more) {
    more = peers_->flush(*socket_, now_ns(), gone_);
    for (const PeerTable::Gone& gone : gone_) {
      world_.note("peer gone", gone.peer);
      core_->on_peer_gone(gone.peer, gone.why, now_ns(), actions_);
      more = true;
    }
    gone_.clear();
    carry_out();
  }
}

}  // namespace updraft::sim
