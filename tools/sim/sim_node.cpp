// See the header. A link's turn has the order of common/pool/pool_link.cpp; a local request's way
// is that of edge/edge_service.cpp.
#include "tools/sim/sim_node.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/message/memory_refusal.h"

namespace updraft::sim {
namespace {

constexpr int kFramesPerTurn = 64;
constexpr int64_t kLastFramesNs = 500 * kNsPerMs;  // after the drain, for what is unsent

}  // namespace

SimNode::SimNode(World& world, Network& network, Ledger& ledger, NodeSpec spec,
                 const std::vector<SimModel>& models, int router_count)
    : world_(world),
      network_(network),
      ledger_(ledger),
      spec_(std::move(spec)),
      models_(models),
      router_count_(router_count),
      number_(network.add_node(*this)) {
  ledger.add_node(spec_.id, {spec_.tier, spec_.engine.context_tokens});
  ledger.set_slack({true, number_},
                   [this] { return engine_ ? engine_->longest_step_ns() : int64_t{0}; });
}

void SimNode::start(ProcessClock clock, int64_t wall_ms) {
  UPDRAFT_CHECK(!running());
  clock_ = clock;
  wall_ms_ = wall_ms;
  const uint64_t life = ++life_;
  draining_ = false;
  deferred_.clear();
  const SimModel& model = models_[static_cast<size_t>(spec_.model)];
  engine_ = std::make_shared<SimEngine>(world_, spec_.engine, model, spec_.id, spec_.tier);
  NodeHello hello;
  hello.node_id = spec_.id;
  hello.boot_epoch = static_cast<uint64_t>(wall_ms);
  hello.tier = spec_.tier;
  hello.device = "simulated";
  ModelInfo info;
  info.id = model.id;
  info.digest = model.digest;
  info.context_tokens = spec_.engine.context_tokens;
  hello.models = {info};
  links_.clear();
  grants_ = std::make_shared<GrantLedger>(kGrantBeats * spec_.beat_interval_ms);
  for (int router = 0; router < router_count_; ++router) {
    auto link = std::make_unique<Link>();
    LinkCoreConfig config;
    config.grants = grants_;
    config.hello = hello;
    config.beat_interval_ms = spec_.beat_interval_ms;
    config.lease_ttl_ms = spec_.lease_ttl_ms;
    config.answer_timeout_ms = spec_.answer_timeout_ms;
    config.silence_timeout_ms = spec_.silence_timeout_ms;
    config.upward_max = static_cast<size_t>(spec_.upward_max);
    link->core = std::make_unique<LinkCore>(std::move(config));
    links_.push_back(std::move(link));
  }
  world_.note("node starts", spec_.id, hello.boot_epoch);
  network_.dial(number_);
  world_.after(spec_.load_ns, [this, life] {
    if (life != life_) return;
    deferred_.run([this] {
      if (draining_) return;
      for (int router = 0; router < router_count_; ++router) {
        link(router).core->set_state(NodeState::kReady, now_ns());
        run_soon(router);
      }
    });
  });
}

void SimNode::crash(Farewell farewell) {
  if (!running()) return;
  world_.note("node ends", spec_.id, static_cast<uint64_t>(farewell));
  set_memory(MemoryLevel::kNormal);
  ++life_;
  engine_.reset();
  links_.clear();
  flights_.clear();
  sessions_ = EdgeSessions();
  deferred_.clear();
  network_.hang_up(number_, farewell);
  ledger_.on_entrance_lost({true, number_});
}

void SimNode::pause() {
  if (!running() || deferred_.paused()) return;
  world_.note("node pauses", spec_.id);
  deferred_.pause();
  engine_->set_paused(true);
  ledger_.set_paused({true, number_}, true);
  network_.pause_node(number_, true);
}

void SimNode::resume() {
  if (!running() || !deferred_.paused()) return;
  world_.note("node goes on", spec_.id);
  ledger_.set_paused({true, number_}, false);
  deferred_.resume();
  engine_->set_paused(false);
  for (int router = 0; router < router_count_; ++router) run_soon(router);
  network_.pause_node(number_, false);
}

void SimNode::drain(int32_t grace_ms) {
  if (!running() || draining_) return;
  deferred_.run([this, grace_ms] {
    world_.note("node drains", spec_.id);
    draining_ = true;
    for (int router = 0; router < router_count_; ++router) {
      link(router).core->drain(grace_ms, now_ns());
      run_soon(router);
    }
    world_.after(0, [this, life = life_] { end_when_idle(life); });
    world_.after(grace_ms * kNsPerMs, [this, life = life_] {
      if (life != life_) return;
      deferred_.run([this, life] {
        for (int router = 0; router < router_count_; ++router) {
          link(router).core->abandon_work();
          run_soon(router);
        }
        world_.after(kLastFramesNs, [this, life] {
          if (life == life_) crash(Farewell::kOrderly);
        });
      });
    });
  });
}

void SimNode::end_when_idle(uint64_t life) {
  if (life != life_) return;
  if (!deferred_.paused() && idle()) return crash(Farewell::kOrderly);
  world_.after(50 * kNsPerMs, [this, life] { end_when_idle(life); });
}

bool SimNode::idle() const {
  return flights_.empty() && std::all_of(links_.begin(), links_.end(), [](const auto& l) {
           return l->core->idle() || (!l->core->welcomed() && l->core->work_count() == 0);
         });
}

bool SimNode::draining() const {
  return draining_ || std::any_of(links_.begin(), links_.end(), [](const auto& l) {
           return l->core->state() == NodeState::kDraining;
         });
}

void SimNode::set_memory(MemoryLevel level) {
  if (!running() || level == memory_) return;
  world_.note("node's memory", spec_.id, static_cast<uint64_t>(level));
  memory_ = level;
  grants_->set_memory(level);
  ledger_.on_node_memory(spec_.id, level);
}

void SimNode::heal() {
  set_memory(MemoryLevel::kNormal);
  if (engine_) engine_->heal();
}

// --- links ---

void SimNode::on_frame(int router, std::vector<std::byte>&& frame) {
  if (!running()) return;
  follow_connection(router);
  world_.note("node hears", spec_.id, frame.size(), static_cast<uint64_t>(router));
  if (auto taken = link(router).core->on_frame(frame, now_ns()); !taken)
    world_.note("node refuses", spec_.id, frame.size());
  run(router);
}

void SimNode::on_link_changed(int router) {
  if (!running()) return;
  deferred_.run([this, router] { run_soon(router); });
}

void SimNode::follow_connection(int router) {
  Link& l = link(router);
  const bool up = network_.node_connected(number_, router);
  const uint64_t count = network_.connection_count(number_, router);
  if (l.session_open && (!up || count != l.session)) {
    l.session_open = false;
    l.core->on_disconnected(now_ns());
  }
  if (!l.session_open && up) {
    l.session_open = true;
    l.session = count;
    l.core->on_connected(now_ns());
  }
}

void SimNode::run_soon(int router) {
  if (!running() || std::exchange(link(router).scheduled, true)) return;
  world_.after(0, [this, router, life = life_] {
    if (life != life_) return;
    link(router).scheduled = false;
    run(router);
  });
}

// One turn of the link's thread.
void SimNode::run(int router) {
  if (!running() || deferred_.paused()) return;
  Link& l = link(router);
  for (LocalEvent& event : std::exchange(l.inbox, {}))
    l.core->on_local_event(event.id, event.serial, std::move(event.event), now_ns());
  follow_connection(router);
  const int64_t now = now_ns();
  l.core->tick(now);
  carry_out(router);
  if (l.core->beat_due(now)) {
    NodeBeat beat;
    engine_->fill_beat(beat);
    l.core->send_beat(beat, now);
  }
  l.core->pump();
  int sent = 0;
  if (l.session_open) {
    for (; sent < kFramesPerTurn; ++sent) {
      const std::vector<std::byte>* frame = l.core->outgoing().front();
      if (frame == nullptr || !network_.node_send(number_, router, *frame)) break;
      l.core->outgoing().pop();
    }
  }
  carry_out(router);
  if (sent == kFramesPerTurn) run_soon(router);
  const int64_t due_ns = l.core->next_due_ns();
  if (due_ns == INT64_MAX) return;
  const int64_t wake_ns = std::max(clock_.world_ns(due_ns), world_.now_ns() + kNsPerMs);
  if (l.wake_ns > world_.now_ns() && l.wake_ns <= wake_ns) return;
  l.wake_ns = wake_ns;
  world_.at(wake_ns, [this, router, life = life_, wake_ns] {
    if (life == life_ && link(router).wake_ns == wake_ns) run(router);
  });
}

void SimNode::carry_out(int router) {
  for (LinkCore::Effect& effect : link(router).core->take_effects()) {
    if (auto* submit = std::get_if<LinkCore::SubmitLocal>(&effect)) {
      submit_local(router, std::move(*submit));
    } else if (const auto* cancel = std::get_if<LinkCore::CancelLocal>(&effect)) {
      engine_->cancel(cancel->id);
    } else {
      auto& deliver = std::get<LinkCore::Deliver>(effect);
      deliver.sink(std::move(deliver.event));
    }
  }
}

void SimNode::submit_local(int router, LinkCore::SubmitLocal&& submit) {
  const RequestId id = submit.request.id;
  ledger_.on_node_work(router, spec_.id, id);
  engine_->submit(std::move(submit.request),
                  [this, life = life_, router, id, serial = submit.serial](Event event) {
                    if (life != life_) return;
                    link(router).inbox.push_back({id, serial, std::move(event)});
                    run_soon(router);
                  });
}

// --- local clients ---

Request SimNode::Flight::for_side(int64_t now_ns) const {
  Request out = request;
  if (deadline_ms > 0)
    out.hints.deadline_ms = std::max<int64_t>(1, deadline_ms - (now_ns - received_ns) / kNsPerMs);
  return out;
}

void SimNode::submit(Request request, ClientId client) {
  deferred_.run([this, request = std::move(request), client]() mutable {
    auto flight = std::make_shared<Flight>();
    flight->client = client;
    flight->received_ns = world_.now_ns();
    flight->deadline_ms = request.hints.deadline_ms;
    flight->request = std::move(request);
    flights_.emplace(flight->request.id, flight);
    place(flight);
  });
}

void SimNode::cancel(const RequestId& id) {
  if (!running()) return;
  deferred_.run([this, id] {
    const auto found = flights_.find(id);
    if (found == flights_.end()) return;
    found->second->cancelled = true;
    engine_->cancel(id);
    for (int router = 0; router < router_count_; ++router) {
      link(router).core->on_upward_cancel(id);
      run_soon(router);
    }
  });
}

int SimNode::upward_router() const {
  for (size_t router = 0; router < links_.size(); ++router) {
    if (links_[router]->core->welcomed()) return static_cast<int>(router);
  }
  return -1;
}

EdgeState SimNode::edge_state(const Request& request) const {
  EdgeState state;
  state.model_here = request.model == engine_->model().id;
  state.draining = draining_;
  state.memory = memory_;
  state.context_tokens = spec_.engine.context_tokens;
  state.slots_total = spec_.engine.slots;
  state.slots_free = engine_->slots_free();
  state.waiting = engine_->waiting();
  state.kv_tokens_total = engine_->kv_tokens_total();
  state.kv_tokens_free = engine_->kv_tokens_free();
  state.pool_configured = true;
  state.pool_connected = upward_router() >= 0;
  for (const auto& link : links_) {
    if (!link->core->welcomed()) continue;
    for (const ModelInfo& model : link->core->pool_models())
      state.model_in_pool = state.model_in_pool || model.id == request.model;
  }
  return state;
}

void SimNode::place(const FlightPtr& flight) {
  const Request& request = flight->request;
  const EdgeState state = edge_state(request);
  EdgeNeed need;
  need.prompt_tokens = count_tokens(request, engine_->model());
  need.wanted_tokens = request.sampling.max_tokens.value_or(0);
  need.choice_count = total_choices(request);
  need.is_chat = request.kind == Request::Kind::kChat;
  const SessionPast past = sessions_.past(request.hints.session, now_ns());
  EdgeDecision decision = place_at_edge(request.hints, need, state, past);
  const bool bound_here = request.hints.local_only || request.hints.tier == Tier::kEdge;
  flight->fits_here =
      state.model_here && request.hints.tier != Tier::kCloud && fits_edge(need, state);
  flight->may_rise = !bound_here;
  switch (decision.place) {
    case EdgeDecision::Place::kLocal:
      return go_local(flight);
    case EdgeDecision::Place::kRise:
      return go_up(flight);
    case EdgeDecision::Place::kRefuse:
      return finish(flight, std::move(decision.error));
  }
}

void SimNode::go_local(const FlightPtr& flight) {
  flight->tried_local = true;
  ledger_.on_node_local(spec_.id, flight->request);
  engine_->submit(flight->for_side(world_.now_ns()), [this, life = life_, flight](Event event) {
    if (life == life_) on_flight_event(flight, false, std::move(event));
  });
}

void SimNode::go_up(const FlightPtr& flight) {
  flight->tried_pool = true;
  const int router = upward_router();
  if (router < 0) {
    return on_flight_event(flight, true,
                           error_of(ErrorCode::kOverloaded, "no router can be reached", 2000));
  }
  link(router).core->on_upward(
      flight->for_side(world_.now_ns()),
      [this, life = life_, flight](Event event) {
        if (life == life_) on_flight_event(flight, true, std::move(event));
      },
      now_ns());
  run_soon(router);
}

void SimNode::on_flight_event(const FlightPtr& flight, bool from_pool, Event event) {
  if (std::holds_alternative<Started>(event)) {
    if (!flight->started) sessions_.note(flight->request.hints.session, from_pool, now_ns());
    flight->started = true;
  }
  if (const auto* error = std::get_if<RequestError>(&event)) {
    if (!flight->started && try_other_side(flight, from_pool, *error)) return;
  }
  if (is_end(event)) return finish(flight, std::move(event));
  ledger_.on_event(flight->client, event);
}

bool SimNode::try_other_side(const FlightPtr& flight, bool from_pool, const RequestError& error) {
  if (flight->cancelled) return false;
  if (from_pool) {
    const bool elsewhere =
        error.code == ErrorCode::kOverloaded || error.code == ErrorCode::kModelNotFound ||
        error.code == ErrorCode::kNodeLost || error.code == ErrorCode::kRateLimited;
    if (!elsewhere || flight->tried_local || !flight->fits_here) return false;
    if (memory_refusal(memory_, flight->request.hints.priority)) return false;
    go_local(flight);
    return true;
  }
  const bool elsewhere = error.code == ErrorCode::kOverloaded ||
                         error.code == ErrorCode::kContextLength ||
                         error.code == ErrorCode::kUnsupported;
  if (!elsewhere || flight->tried_pool || !flight->may_rise) return false;
  if (draining_ || upward_router() < 0) return false;
  go_up(flight);
  return true;
}

void SimNode::finish(const FlightPtr& flight, Event end) {
  flights_.erase(flight->request.id);
  ledger_.on_event(flight->client, end);
}

// --- checks ---

bool SimNode::welcomed_by_all() const {
  return running() && std::all_of(links_.begin(), links_.end(),
                                  [](const auto& link) { return link->core->welcomed(); });
}

std::string SimNode::what_is_left() const {
  std::string left;
  const auto add = [&](const char* what, size_t count) {
    if (count > 0) left += (left.empty() ? "" : ", ") + std::to_string(count) + " " + what;
  };
  add("answers in the engine", engine_->live());
  add("local requests", flights_.size());
  for (const auto& link : links_) {
    add("works of a router", link->core->work_count());
    add("requests that rose", link->core->upward_count());
  }
  const std::string pages = engine_->check_pages();
  if (!pages.empty()) left += (left.empty() ? "" : ", ") + pages;
  if (engine_->kv_tokens_free() != engine_->kv_tokens_total())
    add("KV tokens held",
        static_cast<size_t>(engine_->kv_tokens_total() - engine_->kv_tokens_free()));
  return left;
}

std::string SimNode::check_caps() const {
  for (const auto& link : links_) {
    if (link->core->upward_count() > static_cast<size_t>(spec_.upward_max))
      return spec_.id + ": " + std::to_string(link->core->upward_count()) +
             " requests rose, at most " + std::to_string(spec_.upward_max) + " may";
    const size_t bytes_max = 3 * kMessageBytesMax;
    if (link->core->outgoing().bytes() > bytes_max)
      return spec_.id + ": " + std::to_string(link->core->outgoing().bytes()) +
             " bytes wait for the router";
  }
  return {};
}

}  // namespace updraft::sim
