// What nodes say to the router's core, and the passing of time. A request's own way is in
// core_requests.cpp.
#include "cloud/router/core.h"

#include <algorithm>

#include "common/base/bytes.h"
#include "common/base/clock.h"
#include "common/base/plant.h"

namespace updraft {
namespace {

constexpr int64_t kSweepEveryNs = 50 * kNsPerMs;
constexpr int64_t kModelsEveryNs = 100 * kNsPerMs;
constexpr int64_t kPauseNs = 500 * kNsPerMs;
constexpr size_t kRisenEndedMax = 8192;
constexpr uint64_t kBreakerSeed = 0x5851F42D4C957F2DULL;  // its draws are not the placement's
constexpr int32_t kRefusalsMax =
    64;  // of one request; then the pool's nodes and this router disagree for good

bool same_models(const std::vector<ModelInfo>& a, const std::vector<ModelInfo>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const ModelInfo& x, const ModelInfo& y) {
                      return x.id == y.id && x.digest == y.digest &&
                             x.context_tokens == y.context_tokens && x.images == y.images;
                    });
}

// Whether another node may do better; what the caller did wrong stays wrong everywhere.
bool worth_a_retry(ErrorCode code) {
  switch (code) {
    case ErrorCode::kOverloaded:
    case ErrorCode::kNodeLost:
    case ErrorCode::kCancelled:  // the node gave it up, nobody here asked for that
    case ErrorCode::kInternal:
    case ErrorCode::kRejectedBusy:
    case ErrorCode::kRejectedTooLong:
      return true;
    default:
      return false;
  }
}

// What a node's own answer says of it.
BreakerTable::Outcome outcome_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInternal:
    case ErrorCode::kNodeLost:
      return BreakerTable::Outcome::kFault;
    case ErrorCode::kRateLimited:
    case ErrorCode::kOverloaded:
    case ErrorCode::kRejectedBusy:
    case ErrorCode::kRejectedTooLong:
    case ErrorCode::kCancelled:
    case ErrorCode::kDeadline:  // the caller's; a node that never answers is found out by others
      return BreakerTable::Outcome::kNeutral;
    default:
      return BreakerTable::Outcome::kSuccess;
  }
}

// Codes between node and router only never reach a client.
RequestError for_client(RequestError error, const std::string& node_id) {
  if (error.code == ErrorCode::kCancelled || error.code == ErrorCode::kRejectedBusy ||
      error.code == ErrorCode::kRejectedTooLong) {
    error.message = "node '" + node_id + "' gave the request up: " + error.message;
    error.code = ErrorCode::kNodeLost;
  }
  return error;
}

}  // namespace

RouterCore::RouterCore(RouterCoreConfig config, int64_t now_ns)
    : config_(std::move(config)),
      start_ns_(now_ns),
      registry_(config_.registry),
      breakers_(config_.breaker, registry_, config_.seed ^ kBreakerSeed),
      placer_({config_.edge_reserve_slots, config_.answer_tokens_assumed, config_.seed,
               config_.price_weight},
              registry_, &breakers_, &affinity_),
      sessions_(config_.sessions_max, config_.session_idle_ms_max),
      queue_(static_cast<size_t>(config_.queue_max)),
      streams_(static_cast<size_t>(config_.streams_max)) {}

void RouterCore::on_message(const PeerInfo& from, PoolMessage message, int64_t now_ns,
                            Actions& out) {
  if (!std::holds_alternative<NodeHello>(message) && !std::holds_alternative<NodeBeat>(message)) {
    const NodeIndex node = registry_.find_peer(from.peer);
    if (node == kNoNode || registry_.load(node).freshness == Freshness::kDead) {
      ++stats_.stale_messages;  // of a session that is over
      return;
    }
    registry_.heard(node, now_ns);
  }
  std::visit([&](auto&& value) { handle(from, std::forward<decltype(value)>(value), now_ns, out); },
             std::move(message));
}

void RouterCore::on_bad_frame(const PeerId&) { ++stats_.frames_refused; }

// --- membership ---

void RouterCore::handle(const PeerInfo& from, NodeHello&& hello, int64_t now_ns, Actions& out) {
  const bool wants_echo = hello.wants_echo;
  const Registry::HelloResult result =
      registry_.on_hello(from.peer, from.public_key, from.name, std::move(hello), now_ns);
  if (result.outcome == Registry::HelloOutcome::kOld) return;
  if (result.outcome == Registry::HelloOutcome::kRefused) return;
  if (result.node >= echoing_.size()) echoing_.resize(result.node + 1);
  echoing_[result.node] = {wants_echo, now_ns};
  welcome(from.peer, config_.router_epoch, out);  // before any work: the node takes none without it
  if (result.outcome == Registry::HelloOutcome::kRestarted) {
    lose_node(result.node, "restarted", now_ns, out);
    breakers_.rebooted(result.node, now_ns);
  }
  if (result.outcome == Registry::HelloOutcome::kReconnected) {
    lose_node(result.node, "lost its connection", now_ns, out);
  }
}

void RouterCore::welcome(const PeerId& peer, uint64_t epoch, Actions& out) const {
  out.push_back(Send{peer, Welcome{config_.router_id, epoch, pool_models_, true, config_.echo_ms}});
}

// So that a node notices when nobody takes its beats any more. What a beat says does not matter
// here: also one that is refused came from a node whose connection stands.
void RouterCore::echo(const PeerId& peer, uint64_t beat_seq, int64_t now_ns, Actions& out) {
  const NodeIndex node = registry_.find_peer(peer);
  if (node == kNoNode || node >= echoing_.size()) return;
  Echoing& echoing = echoing_[node];
  if (!echoing.wanted || now_ns < echoing.due_ns || config_.echo_ms <= 0) return;
  echoing.due_ns = now_ns + config_.echo_ms * kNsPerMs;
  out.push_back(Send{peer, Echo{beat_seq}});
}

void RouterCore::handle(const PeerInfo& from, NodeBeat&& beat, int64_t now_ns, Actions& out) {
  echo(from.peer, beat.seq, now_ns, out);
  NodeIndex node = kNoNode;
  switch (registry_.on_beat(from.peer, beat, now_ns, &node)) {
    case Registry::BeatOutcome::kUnknownPeer:
      // The session is over on this side. Another epoch than its own makes the node end it too and
      // say hello again.
      if (!registry_.refused_peer(from.peer)) {
        welcome(from.peer, config_.router_epoch + 1, out);
      }
      return;
    case Registry::BeatOutcome::kOld:
    case Registry::BeatOutcome::kAbsurd:
      return;
    case Registry::BeatOutcome::kTaken:
      break;
  }
  if (beat.prefixes) affinity_.apply(node, *beat.prefixes);
  const bool idle = beat.running == 0 && beat.waiting == 0;
  if (idle && !streams_.on_node(node).empty())
    find_orphans(node, beat.last_assignment_seq, now_ns, out);
  serve_queue(node, now_ns, out);
}

// Messages may be lost when a connection breaks. A node that shows no work for long while it should
// have some has lost it. Once that may be the connection's doing; a node that loses a request
// twice, or beats on without ever taking it, does not get it again.
void RouterCore::find_orphans(NodeIndex node, uint64_t counted_seq, int64_t now_ns, Actions& out) {
  const int64_t idle_since_ns = registry_.load(node).idle_since_ns;
  for (const auto& [slot, generation] : snapshot(streams_.on_node(node))) {
    Stream* stream = streams_.at(slot, generation);
    if (stream == nullptr || stream->node != node) continue;
    const bool counted = stream->assignment_seq <= counted_seq;
    const int64_t grace_ms = counted ? config_.orphan_grace_ms : config_.arrival_grace_ms;
    const int64_t since_ns = std::max(idle_since_ns, stream->dispatched_ns);
    if (now_ns - since_ns < grace_ms * kNsPerMs) continue;
    ++stats_.orphans;
    cancel_on_node(*stream, out);
    lose(*stream, counted ? "no longer knows the request" : "never took the request",
         counted && stream->retries == 0 ? Loss::kGone : Loss::kAtFault,
         BreakerTable::Outcome::kFault, now_ns, out);
  }
}

void RouterCore::handle(const PeerInfo& from, Drain&&, int64_t now_ns, Actions& out) {
  const NodeIndex node = registry_.find_peer(from.peer);
  registry_.set_draining(node);
  if (UPDRAFT_PLANT(kDrainLoses)) lose_node(node, "drains", now_ns, out);
}

bool RouterCore::drain_node(const std::string& node_id, int32_t grace_ms, Actions& out) {
  const NodeIndex node = registry_.find_id(node_id);
  if (node == kNoNode) return false;
  registry_.set_draining(node);
  const PeerId& peer = registry_.node(node).peer;
  if (!peer.empty()) out.push_back(Send{peer, Drain{grace_ms}});
  return true;
}

bool RouterCore::undrain_node(const std::string& node_id, Actions& out) {
  const NodeIndex node = registry_.find_id(node_id);
  if (node == kNoNode) return false;
  registry_.resume(node);
  const PeerId& peer = registry_.node(node).peer;
  if (!peer.empty()) out.push_back(Send{peer, Drain{0, true}});
  return true;
}

void RouterCore::lose_node(NodeIndex node, const std::string& why, int64_t now_ns, Actions& out) {
  affinity_.drop(node);
  drop_risen(node, now_ns, out);
  for (const auto& [slot, generation] : snapshot(streams_.on_node(node))) {
    Stream* stream = streams_.at(slot, generation);
    if (stream == nullptr || stream->node != node) continue;
    const auto outcome = stream->state == Stream::State::kDispatched
                             ? BreakerTable::Outcome::kConnectFault
                             : BreakerTable::Outcome::kFault;
    lose(*stream, why, Loss::kGone, outcome, now_ns, out);
  }
}

void RouterCore::drop_risen(NodeIndex node, int64_t now_ns, Actions& out) {
  for (const auto& [slot, generation] : snapshot(streams_.risen_from(node))) {
    if (Stream* stream = streams_.at(slot, generation)) end_unanswered(*stream, now_ns, out);
  }
}

std::vector<std::pair<uint32_t, uint32_t>> RouterCore::snapshot(
    const std::vector<uint32_t>& slots) {
  std::vector<std::pair<uint32_t, uint32_t>> out;
  out.reserve(slots.size());
  for (const uint32_t slot : slots) out.emplace_back(slot, streams_.at(slot).generation);
  return out;
}

// --- work that rises from an edge ---

void RouterCore::handle(const PeerInfo& from, Submit&& submit, int64_t now_ns, Actions& out) {
  const NodeIndex origin = registry_.find_peer(from.peer);
  const Requester requester{0, from.peer, submit.epoch};
  const auto ended = risen_ended_.find(from.peer + ' ' + submit.request.id);
  if (ended != risen_ended_.end() && submit.epoch <= ended->second && !UPDRAFT_PLANT(kRisesTwice)) {
    ++stats_.stale_messages;
    return;
  }
  if (Stream* known = streams_.find(submit.request.id);
      known != nullptr && known->wish.origin == registry_.ref(origin)) {
    if (submit.epoch <= known->origin_epoch) {
      ++stats_.stale_messages;  // the same asked twice
      return;
    }
    end_unanswered(*known, now_ns, out);  // the node has begun anew
  }
  // What a gateway calls its clients says nothing beyond it: two gateways' uid 1000 are two people.
  submit.request.tenant = registry_.node(origin).hello.node_id + '/' + submit.request.tenant;
  take_in(std::move(submit.request), requester, origin, now_ns, out);
}

void RouterCore::remember_risen(const Stream& stream) {
  if (!stream.rose() || !registry_.same(stream.wish.origin)) return;
  const std::string key = registry_.node(stream.wish.origin.index).peer + ' ' + stream.request.id;
  if (risen_ended_.insert_or_assign(key, stream.origin_epoch).second)
    risen_ended_order_.push_back(key);
  if (risen_ended_order_.size() <= kRisenEndedMax) return;
  risen_ended_.erase(risen_ended_order_.front());
  risen_ended_order_.pop_front();
}

void RouterCore::handle(const PeerInfo& from, Cancel&& cancel, int64_t now_ns, Actions& out) {
  Stream* stream = streams_.find(cancel.id);
  const NodeIndex node = registry_.find_peer(from.peer);
  if (stream == nullptr || stream->wish.origin != registry_.ref(node) ||
      cancel.epoch < stream->origin_epoch) {
    ++stats_.stale_messages;
    return;
  }
  end_unanswered(*stream, now_ns, out);
}

// --- answers ---

// The live stream that this node has under this epoch.
Stream* RouterCore::owned(const PeerInfo& from, const RequestId& id, uint32_t epoch) {
  Stream* stream = streams_.find(id);
  const NodeIndex node = registry_.find_peer(from.peer);
  if (stream != nullptr && stream->node != kNoNode && UPDRAFT_PLANT(kEpochUnchecked)) return stream;
  if (stream != nullptr && stream->node == node && stream->epoch == epoch) return stream;
  ++stats_.stale_messages;
  return nullptr;
}

void RouterCore::start(Stream& stream, int32_t prompt_tokens, Actions& out) {
  stream.state = Stream::State::kRunning;
  stream.prompt_tokens = prompt_tokens;
  if (stream.wish.estimate.prompt_count == 1 && !stream.wish.estimate.images) {
    const int64_t text_tokens = prompt_tokens - stream.wish.estimate.overhead_tokens;
    registry_.learn_tokens(stream.wish.model, stream.wish.estimate.text_bytes_max, text_tokens);
  }
  deliver(stream,
          Started{registry_.node(stream.node).hello.node_id, stream.tier_served,
                  stream.request.model, reason_text(stream.reason), prompt_tokens},
          out);
  stream.started = true;
}

void RouterCore::handle(const PeerInfo& from, Accepted&& accepted, int64_t now_ns, Actions& out) {
  Stream* stream = owned(from, accepted.id, accepted.epoch);
  if (stream == nullptr || stream->state != Stream::State::kDispatched) return;
  if (accepted.held_us > 0) {
    const int64_t way_ns = now_ns - stream->dispatched_ns - accepted.held_us * int64_t{1000};
    registry_.measured_way(stream->node, static_cast<double>(way_ns) / 1e9, stream->payload_bytes);
  }
  start(*stream, accepted.prompt_tokens, out);
}

// The grant that comes with an end holds whether or not the request is still known here.
void RouterCore::take_credit(const PeerInfo& from, const std::optional<Credit>& credit,
                             int64_t now_ns) {
  if (!credit) return;
  if (!registry_.on_credit(registry_.find_peer(from.peer), *credit, now_ns))
    ++stats_.protocol_faults;
}

void RouterCore::handle(const PeerInfo& from, Rejected&& rejected, int64_t now_ns, Actions& out) {
  take_credit(from, rejected.credit, now_ns);
  Stream* stream = owned(from, rejected.id, rejected.epoch);
  if (stream == nullptr) return;
  const NodeIndex node = stream->node;
  RequestError& error = rejected.error;
  Wish& wish = stream->wish;
  const bool too_long =
      error.code == ErrorCode::kRejectedTooLong || error.code == ErrorCode::kContextLength;
  if (stream->state != Stream::State::kDispatched || ++stream->refusals > kRefusalsMax ||
      (!too_long && error.code != ErrorCode::kModelNotFound && !worth_a_retry(error.code))) {
    leave_node(*stream, true, outcome_of(error.code), now_ns);
    end(*stream, for_client(std::move(error), registry_.node(node).hello.node_id), now_ns, out);
    serve_queue(node, now_ns, out);
    return;
  }
  leave_node(*stream, true, outcome_of(error.code), now_ns);
  if (too_long) {
    ++stats_.recounted;
    wish.counted_tokens = std::max<int64_t>(wish.counted_tokens, error.prompt_tokens);
    wish.refused_limit_tokens = std::max(wish.refused_limit_tokens, error.limit_tokens);
    if (error.limit_tokens <= 0)
      wish.excluded.push_back({registry_.ref(node), stream->node_boot_epoch});
  } else if (error.code == ErrorCode::kModelNotFound) {
    wish.excluded.push_back({registry_.ref(node), stream->node_boot_epoch});
  } else {
    ++stats_.bounced;
    registry_.refuse_until_beat(node);
  }
  place_anew(*stream, now_ns, out);
  serve_queue(node, now_ns, out);
}

void RouterCore::breach(Stream& stream, const std::string& why, int64_t now_ns, Actions& out) {
  ++stats_.protocol_faults;
  cancel_on_node(stream, out);
  lose(stream, "broke the protocol (" + why + ")", Loss::kAtFault, BreakerTable::Outcome::kFault,
       now_ns, out);
}

void RouterCore::handle(const PeerInfo& from, Tokens&& tokens, int64_t now_ns, Actions& out) {
  Stream* stream = owned(from, tokens.id, tokens.epoch);
  if (stream == nullptr) {
    // A node that goes on with something that has ended here (its cancel was lost) is told again.
    if (streams_.find(tokens.id) == nullptr)
      out.push_back(Send{from.peer, Cancel{tokens.id, tokens.epoch}});
    return;
  }
  if (stream->state == Stream::State::kDispatched) start(*stream, 0, out);
  const Serving* serving = registry_.find_serving(stream->wish.model, stream->node);
  int64_t tokens_max = serving != nullptr ? serving->context_tokens : 0;
  if (!stream->request.echo && stream->wish.estimate.wanted_tokens > 0)
    tokens_max = stream->wish.estimate.wanted_tokens;
  for (TokenChunk& chunk : tokens.chunks) {
    std::string why;
    const ChunkVerdict verdict = take_chunk(*stream, chunk, tokens_max, &why);
    if (verdict == ChunkVerdict::kFault) {
      breach(*stream, why, now_ns, out);
      return;
    }
    if (verdict == ChunkVerdict::kDrop) {
      ++stats_.stale_messages;
      continue;
    }
    stream->tokens_sent = true;
    deliver(*stream, std::move(chunk), out);
  }
}

void RouterCore::handle(const PeerInfo& from, Done&& done, int64_t now_ns, Actions& out) {
  take_credit(from, done.credit, now_ns);
  Stream* stream = owned(from, done.id, done.epoch);
  if (stream == nullptr) return;
  if (!stream->all_choices_finished()) {
    breach(*stream, "done before every choice had its end", now_ns, out);
    return;
  }
  end(*stream, std::move(done.finished), now_ns, out);
}

void RouterCore::handle(const PeerInfo& from, Failed&& failed, int64_t now_ns, Actions& out) {
  take_credit(from, failed.credit, now_ns);
  Stream* stream = owned(from, failed.id, failed.epoch);
  if (stream == nullptr) return;
  const NodeIndex node = stream->node;
  const BreakerTable::Outcome outcome = outcome_of(failed.error.code);
  const bool worth_it = worth_a_retry(failed.error.code);
  RequestError error = for_client(std::move(failed.error), registry_.node(node).hello.node_id);
  if (worth_it && !stream->tokens_sent && stream->retries < config_.retries_max &&
      (retry_budget_ >= 1.0 || UPDRAFT_PLANT(kRetryUnbounded))) {
    retry_budget_ -= 1.0;
    stream->failure = std::move(error);
    lose(*stream, "failed", Loss::kAnswered, outcome, now_ns, out);
  } else {
    leave_node(*stream, true, outcome, now_ns);
    end(*stream, std::move(error), now_ns, out);
  }
  serve_queue(node, now_ns, out);
}

void RouterCore::handle(const PeerInfo&, Welcome&&, int64_t, Actions&) { ++stats_.stale_messages; }
void RouterCore::handle(const PeerInfo&, Blob&&, int64_t, Actions&) { ++stats_.stale_messages; }
void RouterCore::handle(const PeerInfo&, Echo&&, int64_t, Actions&) { ++stats_.stale_messages; }

void RouterCore::on_peer_gone(const PeerId& peer, const std::string& why, int64_t now_ns,
                              Actions& out) {
  const NodeIndex node = registry_.find_peer(peer);
  if (node == kNoNode) return;
  ++stats_.peers_gone;
  registry_.disconnect(node);
  lose_node(node, why, now_ns, out);
}

void RouterCore::on_unsendable(const Submit& submit, int64_t now_ns, Actions& out) {
  Stream* stream = streams_.find(submit.request.id);
  if (stream == nullptr || stream->node == kNoNode || stream->epoch != submit.epoch) return;
  registry_.unsent(stream->node, stream->assigned_slots);
  leave_node(*stream, true, BreakerTable::Outcome::kNeutral, now_ns);
  RequestError error;
  error.code = ErrorCode::kPayloadTooLarge;
  error.message = "the request is larger than a message of the pool may be, " +
                  std::to_string(kMessageBytesMax >> 20) + " MiB";
  end(*stream, std::move(error), now_ns, out);
}

// --- time ---

void RouterCore::on_tick(int64_t now_ns, Actions& out) {
  if (last_tick_ns_ > 0 && now_ns - last_tick_ns_ > kPauseNs)
    registry_.forgive(now_ns - last_tick_ns_, now_ns);
  last_tick_ns_ = now_ns;
  if (now_ns - last_sweep_ns_ >= kSweepEveryNs) {
    last_sweep_ns_ = now_ns;
    lost_.clear();
    registry_.sweep(now_ns, lost_);
    for (const NodeIndex node : lost_) lose_node(node, "was lost", now_ns, out);
    if (breakers_.any_tripped() && !lost_.empty()) {
      for (ModelIndex model = 0; model < registry_.model_count(); ++model)
        breakers_.nodes_changed(model);
    }
  }
  while (!timers_.empty() && timers_.top().at_ns <= now_ns) {
    const Timer timer = timers_.top();
    timers_.pop();
    Stream* stream = streams_.at(timer.slot, timer.generation);
    if (stream == nullptr) continue;
    stream->timer_ns = 0;
    const int64_t at_ns = due_ns(*stream);
    if (at_ns > 0 && at_ns <= now_ns) {
      expire(*stream, now_ns, out);
    } else {
      arm(*stream);
    }
  }
  refresh_models(now_ns, out);
}

// Nodes hear of another set of models; at most ten times a second, however many nodes come and go.
void RouterCore::refresh_models(int64_t now_ns, Actions& out) {
  if (registry_.models_version() == models_version_) return;
  if (models_refreshed_ns_ > 0 && now_ns - models_refreshed_ns_ < kModelsEveryNs) return;
  models_refreshed_ns_ = now_ns;
  models_version_ = registry_.models_version();
  std::vector<ModelInfo> models = registry_.pool_models();
  if (same_models(models, pool_models_)) return;
  pool_models_ = std::move(models);
  for (NodeIndex node = 0; node < registry_.node_slots(); ++node) {
    const NodeLoad& load = registry_.load(node);
    const PeerId& peer = registry_.node(node).peer;
    if (!load.used || load.freshness == Freshness::kDead || peer.empty()) continue;
    welcome(peer, config_.router_epoch, out);
  }
}

// --- views ---

const char* RouterCore::state_name(const NodeLoad& load) const {
  if (load.freshness == Freshness::kDead) return "dead";
  if (load.draining || load.state == NodeState::kDraining) return "draining";
  if (load.state == NodeState::kLoading) return "loading";
  return freshness_name(load.freshness);
}

std::vector<RouterCore::NodeInfo> RouterCore::nodes() const {
  std::vector<NodeInfo> out;
  for (NodeIndex index = 0; index < registry_.node_slots(); ++index) {
    const NodeLoad& load = registry_.load(index);
    if (!load.used) continue;
    const NodeHello& hello = registry_.node(index).hello;
    NodeInfo info{hello.node_id, hello.tier, state_name(load), {}, load.running};
    for (const ModelInfo& model : hello.models) info.models.push_back(model.id);
    out.push_back(std::move(info));
  }
  return out;
}

std::vector<RouterCore::BreakerView> RouterCore::breakers() const {
  std::vector<BreakerView> out;
  for (const BreakerTable::View& view : breakers_.views(last_tick_ns_)) {
    out.push_back({registry_.node(view.node).hello.node_id, registry_.model_id(view.model),
                   breaker_state_name(view.state), view.faults, view.requests, view.retry_ms});
  }
  return out;
}

std::array<std::array<int64_t, RouterStats::kTiers>, 6> RouterCore::count_nodes() const {
  std::array<std::array<int64_t, RouterStats::kTiers>, 6> counts{};
  for (NodeIndex index = 0; index < registry_.node_slots(); ++index) {
    const NodeLoad& load = registry_.load(index);
    if (!load.used) continue;
    const std::string_view state = state_name(load);
    const auto at = std::find(kNodeStates.begin(), kNodeStates.end(), state) - kNodeStates.begin();
    ++counts[static_cast<size_t>(at)][static_cast<size_t>(load.tier)];
  }
  return counts;
}

}  // namespace updraft
